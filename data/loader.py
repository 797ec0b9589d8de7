"""Batches as a function of (seed, step), whatever the number of processes; held-out batches that count every token."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.errors import DataError
from data.store import TokenStore

Batch = dict[str, np.ndarray]
Objective = Callable[[np.ndarray], Batch]

_ENDLESS = 2**62  # steps; an iterator of Grain has a length


class BatchLoader:
    """Shuffled batches of a store, for one process of a run.

    The corpus is cut into `blocks_per_epoch` blocks of length+1 tokens, `length` apart: each token is a target once
    an epoch, but for the first, and up to length-1 at the end. Example i of the run is block i of an endless
    sequence of permutations, one an epoch, drawn by `seed`; row r of the global batch of `step` is example
    step * global_batch + r. Process p of P holds rows p*B/P to (p+1)*B/P. Nothing is remembered between calls.

    Raises DataError for a global_batch that the processes cannot share evenly or that an epoch cannot fill.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        global_batch: int,
        seed: int,
        objective: Objective,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 2,
    ):
        """`length`: tokens a row; `global_batch`: rows of all processes; `prefetch`: batches `iterate` keeps ready."""
        _require_positive(length=length, global_batch=global_batch, process_count=process_count)
        if prefetch < 0:
            raise DataError(f"prefetch {prefetch} is negative: use 0 for none")
        if not 0 <= process_index < process_count:
            raise DataError(f"process_index {process_index} is not one of {process_count} processes (0 is the first)")
        if global_batch % process_count:
            raise DataError(
                f"global_batch {global_batch} is not divisible by {process_count} processes: "
                f"use {_nearest_multiples(global_batch, process_count)}"
            )
        self.blocks_per_epoch = _check_enough(store, length, global_batch)
        self._tokens = np.asarray(store.tokens)  # a plain view: slicing a memmap costs microseconds more
        self._length = length
        self._global_batch = global_batch
        self._rows = global_batch // process_count
        self._first_row = process_index * self._rows
        self._objective = objective
        self._prefetch = prefetch
        self._order = _block_order(self.blocks_per_epoch, seed)

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of `step` (0, 1, ...): each array of the objective, rows first."""
        if step < 0:
            raise DataError(f"step {step} is negative: the first batch is that of step 0")
        first = step * self._global_batch + self._first_row
        return _stack([self._objective(self._block(self._order[i])) for i in range(first, first + self._rows)])

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

    def _block(self, index: int) -> np.ndarray:
        start = int(index) * self._length
        return self._tokens[start : start + self._length + 1]


def held_out_batches(
    store: TokenStore, *, length: int, batch_size: int, max_sequences: int, objective: Objective
) -> Iterator[Batch]:
    """Blocks of a store in batches of one shape, for an evaluation: always the same ones, whatever the batch size.

    `max_sequences`: so many blocks, evenly spaced over the store; 0, or more than there are: all. Every token of those
    blocks but the first is a target of weight objective(...)["weights"] exactly once: a last block or batch that is not
    full is padded by targets of weight 0. Raises DataError for a store of less than 2 tokens.
    """
    _require_positive(length=length, batch_size=batch_size)
    if max_sequences < 0:
        raise DataError(f"max_sequences {max_sequences} is negative: use 0 for all")
    targets = store.num_tokens - 1
    if targets < 1:
        raise DataError(f"{store.folder} holds {store.num_tokens} token(s): the first prediction needs 2")
    num_blocks = -(-targets // length)
    count = min(num_blocks, max_sequences or num_blocks)
    blocks = [*np.linspace(0, num_blocks - 1, count).astype(int).tolist(), *[num_blocks] * (-count % batch_size)]
    return (
        _stack([_padded_block(store, block, length, objective) for block in blocks[first : first + batch_size]])
        for first in range(0, len(blocks), batch_size)
    )


def _padded_block(store: TokenStore, block: int, length: int, objective: Objective) -> Batch:
    ids = np.zeros(length + 1, store.tokens.dtype)
    there = store.tokens[block * length : block * length + length + 1]
    ids[: len(there)] = there
    example = objective(ids)
    real = np.arange(length) < len(there) - 1
    return {**example, "weights": np.where(real, example["weights"], np.float32(0))}


def _stack(examples: list[Batch]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _block_order(num_blocks: int, seed: int) -> Any:
    """Example index -> block index: a permutation an epoch, by Grain's shuffle, which looks up any index at once.

    Grain shuffles epoch e with seed + e: epoch 1 of seed 5 would be epoch 0 of seed 6. Hashed seeds lie far apart.
    """
    import grain

    hashed = int.from_bytes(hashlib.blake2b(f"block order {seed}".encode(), digest_size=4).digest(), "big")
    return grain.MapDataset.range(num_blocks).shuffle(seed=hashed).repeat()


def _check_enough(store: TokenStore, length: int, global_batch: int) -> int:
    """Blocks in an epoch. Raises DataError if they are fewer than a batch, with what would fit."""
    targets = max(store.num_tokens - 1, 0)
    num_blocks = targets // length
    if num_blocks >= global_batch:
        return num_blocks
    ways = [f"global_batch {num_blocks} or less"] * (num_blocks > 0)
    ways += [f"length {targets // global_batch} or less"] * (targets >= global_batch)
    raise DataError(
        f"{store.folder} holds {store.num_tokens} tokens, {num_blocks} block(s) of length {length}, fewer than "
        f"global_batch {global_batch}: use {', or '.join([*ways, 'more text'])}"
    )


def _nearest_multiples(number: int, divisor: int) -> str:
    below = number // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} {value} must be 1 or more")
