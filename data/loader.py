"""Batches as a function of (seed, step), whatever the number of processes; held-out batches that count every token."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.errors import DataError
from data.examples import Objective
from data.store import TokenStore

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps; an iterator of Grain has a length


class BatchLoader:
    """Shuffled batches of a store, for one process of a run.

    The corpus is cut into `blocks_per_epoch` blocks, `objective.stride` tokens apart: each token is read once an epoch,
    but for up to stride-1 at the end. Example i of the run is block i of an endless sequence of permutations, one an
    epoch, drawn by `seed`; what the objective draws for it is a function of `seed` and i. Row r of the global batch of
    `step` is example step * global_batch + r. Process p of P holds rows p*B/P to (p+1)*B/P. Nothing is remembered
    between calls.

    Raises DataError for a global_batch that the processes cannot share evenly or that an epoch cannot fill.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        global_batch: int,
        seed: int,
        objective: Objective,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 2,
    ):
        """`global_batch`: rows of all processes; `prefetch`: batches `iterate` keeps ready."""
        _require_positive(global_batch=global_batch, process_count=process_count)
        if prefetch < 0:
            raise DataError(f"prefetch {prefetch} is negative: use 0 for none")
        if not 0 <= process_index < process_count:
            raise DataError(f"process_index {process_index} is not one of {process_count} processes (0 is the first)")
        if global_batch % process_count:
            raise DataError(
                f"global_batch {global_batch} is not divisible by {process_count} processes: "
                f"use {_nearest_multiples(global_batch, process_count)}"
            )
        self.blocks_per_epoch = _check_enough(store, objective, global_batch)
        self._tokens = np.asarray(store.tokens)  # a plain view: slicing a memmap costs microseconds more
        self._global_batch = global_batch
        self._rows = global_batch // process_count
        self._first_row = process_index * self._rows
        self._objective = objective
        self._prefetch = prefetch
        self._order = _block_order(self.blocks_per_epoch, seed)
        self._key = _hashed(f"objective {seed}", 16)

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of `step` (0, 1, ...): each array of the objective, rows first."""
        if step < 0:
            raise DataError(f"step {step} is negative: the first batch is that of step 0")
        first = step * self._global_batch + self._first_row
        indices = range(first, first + self._rows)
        blocks = [int(self._order[index]) for index in indices]
        return _batch(self._tokens, blocks, indices, self._key, self._objective)

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """batch(start_step), batch(start_step + 1), ... without end, prepared ahead in a thread of Grain."""
        import grain  # a second of import, which `data.loader` alone should not cost

        if start_step < 0:
            raise DataError(f"step {start_step} is negative: the first batch is that of step 0")
        # One thread: the work is short and mostly under Python's lock, more of them only fight for it.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._prefetch)
        steps = grain.MapDataset.range(start_step, _ENDLESS)
        return iter(steps.map(self.batch).to_iter_dataset(options))

    def epoch(self, step: int) -> float:
        """Epochs of data that the batches before `step` hold."""
        return step * self._global_batch / self.blocks_per_epoch


def held_out_batches(
    store: TokenStore, *, batch_size: int, max_sequences: int, objective: Objective
) -> Iterator[Batch]:
    """Blocks of a store in batches of one shape, for an evaluation: always the same ones, whatever the batch size.

    `max_sequences`: so many blocks, evenly spaced over the store; 0, or more than there are: all. Every token of those
    blocks is shown to the objective exactly once, which draws the same for it every time; a last block or batch that
    is not full is padded by targets of weight 0. Raises DataError for a store with nothing to predict.
    """
    _require_positive(batch_size=batch_size)
    if max_sequences < 0:
        raise DataError(f"max_sequences {max_sequences} is negative: use 0 for all")
    read = store.num_tokens - objective.overlap
    if read < 1:
        needed = 1 + objective.overlap
        raise DataError(f"{store.folder} holds {store.num_tokens} token(s): the first prediction needs {needed}")
    num_blocks = -(-read // objective.stride)
    count = min(num_blocks, max_sequences or num_blocks)
    blocks = [*np.linspace(0, num_blocks - 1, count).astype(int).tolist(), *[num_blocks] * (-count % batch_size)]
    batches = [blocks[first : first + batch_size] for first in range(0, len(blocks), batch_size)]
    return (_batch(store.tokens, batch, batch, _hashed("held out", 16), objective) for batch in batches)


def _batch(tokens: np.ndarray, blocks: Sequence[int], indices: Sequence[int], key: int, objective: Objective) -> Batch:
    """The examples of `blocks`, rows first; `indices` are what, with the key, decides the random numbers of each."""
    batch = {name: np.empty((len(blocks), *shape), kind) for name, (shape, kind) in objective.features.items()}
    stride, length = objective.stride, objective.stride + objective.overlap
    for row, (block, rng) in enumerate(zip(blocks, _generators(key, indices), strict=True)):
        example = objective(tokens[block * stride : block * stride + length], rng)
        for name, rows in batch.items():
            rows[row] = example[name]
    return batch


def _generators(key: int, indices: Sequence[int]) -> Iterator[np.random.Generator]:
    """For each index, random numbers that are a function of it and the key: a stream of Philox (Salmon et al. 2011).

    It is one generator that is set anew, which takes a tenth of the time of a new one: use each before the next.
    """
    bits = np.random.Philox(key=key)
    generator, state = np.random.Generator(bits), bits.state
    for index in indices:
        state["state"]["counter"][3] = index  # the last of four words: streams lie 2^192 numbers apart
        bits.state = state
        yield generator


def _block_order(num_blocks: int, seed: int) -> Any:
    """Example index -> block index: a permutation an epoch, by Grain's shuffle, which looks up any index at once.

    Grain shuffles epoch e with seed + e: epoch 1 of seed 5 would be epoch 0 of seed 6. Hashed seeds lie far apart.
    """
    import grain

    return grain.MapDataset.range(num_blocks).shuffle(seed=_hashed(f"block order {seed}", 4)).repeat()


def _hashed(text: str, num_bytes: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest(), "big")


def _check_enough(store: TokenStore, objective: Objective, global_batch: int) -> int:
    """Blocks in an epoch. Raises DataError if they are fewer than a batch, with what would fit."""
    read = max(store.num_tokens - objective.overlap, 0)
    num_blocks = read // objective.stride
    if num_blocks >= global_batch:
        return num_blocks
    ways = [f"global_batch {num_blocks} or less"] * (num_blocks > 0)
    ways += [f"blocks of {read // global_batch} or less (a shorter max_length)"] * (read >= global_batch)
    raise DataError(
        f"{store.folder} holds {store.num_tokens} tokens, {num_blocks} block(s) of {objective.stride}, fewer than "
        f"global_batch {global_batch}: use {', or '.join([*ways, 'more text'])}"
    )


def _nearest_multiples(number: int, divisor: int) -> str:
    below = number // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} {value} must be 1 or more")
