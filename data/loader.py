"""Batches as a function of (seed, step), whatever the number of processes; held-out batches that count every token."""

import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing import active_children, parent_process, resource_tracker
from typing import Any

import numpy as np
from absl import flags

from data.errors import DataError
from data.mixture import Mixture
from data.order import Order, hashed
from data.rows import ManyRows, Rows

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps; an iterator of Grain has a length


class BatchLoader:
    """Shuffled batches of rows, or of a mixture of them, for one process of a run.

    Example i of the run is row i of an endless sequence of permutations, one an epoch, drawn by `seed`; in a mixture, i
    tells the part and the place in that part's own sequence. What the objective draws for it is a function of `seed`
    and i. Row r of the global batch of `step` is example step * global_batch + r, whoever reads it. Nothing is
    remembered between calls.

    Raises DataError for a global_batch that an epoch cannot fill, and for local rows that are not of it.
    """

    def __init__(
        self,
        rows: Rows | Mixture,
        *,
        global_batch: int,
        seed: int,
        curriculum: str = "",
        local_rows: Sequence[int] | np.ndarray | None = None,
        prefetch: int = 2,
        workers: int = 0,
    ):
        """Args:
        global_batch: rows of all processes.
        curriculum: "", "length" or "score": what the first epoch is sorted by, see `data.order.Order`.
        local_rows: those of the global batch that this process reads, in rising order; None: all.
        prefetch: batches that `iterate` keeps ready, each worker for itself.
        workers: processes in which `iterate` prepares batches; 0: a thread of this one.
        """
        _require_positive(global_batch=global_batch)
        for name, value in (("prefetch", prefetch), ("workers", workers)):
            if value < 0:
                raise DataError(f"{name} {value} is negative: use 0 for none")
        local = np.arange(global_batch) if local_rows is None else np.asarray(local_rows, np.int64)
        if not len(local) or local[0] < 0 or local[-1] >= global_batch or (np.diff(local) < 1).any():
            raise DataError(f"local_rows {local.tolist()} are not rising numbers of rows from 0 to {global_batch - 1}")
        self._mixture = rows if isinstance(rows, Mixture) else None
        if isinstance(rows, Mixture):
            rows.check_batch(global_batch, seed)
            parts = dict(rows.parts)
        else:
            _check_enough(rows, global_batch)
            parts = {"": rows}
        self._parts = list(parts.values())
        self._orders = [Order(part, seed, name, curriculum) for name, part in parts.items()]
        self._global_batch = global_batch
        self._local_rows = local
        self._prefetch, self._workers = prefetch, workers
        self._key = hashed(f"objective {seed}", 16)

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of `step` (0, 1, ...): each array of the objective, rows first."""
        if step < 0:
            raise DataError(f"step {step} is negative: the first batch is that of step 0")
        indices_B = step * self._global_batch + self._local_rows
        if self._mixture is None:
            return self._read(0, indices_B, indices_B)
        part_B, number_B = self._mixture.locate(indices_B)
        batch = _empty(self._parts[0], len(indices_B))
        for part in np.unique(part_B).tolist():
            at = np.flatnonzero(part_B == part)
            for name, values in self._read(part, number_B[at], indices_B[at]).items():
                batch[name][at] = values
        return batch

    def iterate(self, start_step: int) -> Generator[Batch, None, None]:
        """batch(start_step), batch(start_step + 1), ... without end, prepared ahead in a thread, or in `workers`.

        Close it: workers end with it, and with this process. A signal to all of them is for this process alone.
        """
        import grain  # a second of import, which `data.loader` alone should not cost

        if start_step < 0:
            raise DataError(f"step {start_step} is negative: the first batch is that of step 0")
        batches = grain.MapDataset.range(start_step, _ENDLESS).map(self.batch)
        # One thread: the work is short and mostly under Python's lock, more of them only fight for it.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._prefetch)
        if not self._workers:
            return _until_closed(batches.to_iter_dataset(options))
        if not flags.FLAGS.is_parsed():  # Grain asks for its own when it starts a process
            flags.FLAGS.mark_as_parsed()
        ahead = max(self._prefetch, 1)
        processes = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=ahead)
        return _until_closed(batches.to_iter_dataset(options).mp_prefetch(processes, _end_with_parent), hushed=True)

    def epochs(self, step: int) -> dict[str, float]:
        """Epochs of each part (of "", where there is one) that the batches before `step` hold."""
        if self._mixture is None:
            return {"": step * self._global_batch / len(self._parts[0])}
        return self._mixture.epochs(step)

    def _read(self, part: int, number_N: np.ndarray, index_N: np.ndarray) -> Batch:
        """Examples `number_N` of a part; `index_N`, those in the run, decide what is drawn for them."""
        rows_N = self._orders[part](number_N)
        return _examples(self._parts[part], rows_N, index_N, self._key)


def _until_closed(batches: Iterable[Batch], *, hushed: bool = False) -> Generator[Batch, None, None]:
    """What `batches` has, and its end when this is closed. `hushed`: processes that it starts hear no signal to stop.

    They inherit that from the thread that starts them. Ctrl-C, and many a cluster, signal every process of a run, and
    the one that trains still needs batches on its way to the last checkpoint.
    """
    iterator: Any = iter(batches)
    try:
        if hushed:
            yield _owned(_first_hushed(iterator))
            yield from _watched(map(_owned, iterator))
        else:
            yield from iterator
    finally:
        iterator.close()


def _watched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same. Raises ChildProcessError, with the process, where one that prepares them was ended from outside."""
    workers = active_children()
    try:
        yield from batches
    except RuntimeError as error:  # Grain has no class for it
        ended = [f"pid {worker.pid} with exit code {worker.exitcode}" for worker in workers if worker.exitcode]
        if not ended or "terminated unexpectedly" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that prepares batches (data.workers) has died: {', '.join(ended)}; -9 is a kill, often for "
            "want of memory: the same command continues from the last checkpoint"
        ) from error


def _first_hushed(iterator: Iterator[Batch]) -> Batch:
    """The first of `iterator`, which starts its processes for it."""
    resource_tracker.ensure_running()  # as a worker starts it, it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return next(iterator)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _owned(batch: Batch) -> Batch:
    """A copy: the arrays of a worker lie in shared memory, and jax may hold the last ones until Python has ended."""
    return {name: np.array(values) for name, values in batch.items()}


def _end_with_parent(*_: int) -> None:
    """In a worker: ends it when the process that reads its batches is gone, whatever ended that."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def held_out_batches(rows: Rows, *, batch_size: int, max_sequences: int) -> Iterator[Batch]:
    """Rows in batches of one shape, for an evaluation: always the same ones, whatever the batch size.

    `max_sequences`: the number of rows, evenly spaced; 0, or more than there are: all. The objective draws the same for
    a row every time; a last batch that is not full is padded with rows of zeros, with weight 0.
    """
    _require_positive(batch_size=batch_size)
    if max_sequences < 0:
        raise DataError(f"max_sequences {max_sequences} is negative: use 0 for all")
    count = min(len(rows), max_sequences or len(rows))
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    key = hashed("held out", 16)

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_size):
            rows_N = chosen[first : first + batch_size]
            batch = _empty(rows, batch_size)
            for name, values in _examples(rows, rows_N, rows_N, key).items():
                batch[name][: len(rows_N)] = values
            yield batch

    return batches()


def _examples(rows: Rows, rows_N: np.ndarray, index_N: np.ndarray, key: int) -> Batch:
    """The examples of `rows_N`, rows first; `index_N` are what, with the key, decides the random numbers of each."""
    if isinstance(rows, ManyRows):
        return rows.examples(rows_N, _generators(key, index_N.tolist()))
    batch = _empty(rows, len(rows_N))
    for place, (row, rng) in enumerate(zip(rows_N.tolist(), _generators(key, index_N.tolist()), strict=True)):
        for name, values in rows.example(row, rng).items():
            batch[name][place] = values
    return batch


def _empty(rows: Rows, count: int) -> Batch:
    return {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in rows.features.items()}


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


def _check_enough(rows: Rows, global_batch: int) -> None:
    """Raises DataError if an epoch has fewer rows than a batch, with what would fit."""
    if (found := len(rows)) >= global_batch:
        return
    length = rows.features["inputs"][0][0]
    shorter = (found - 1) * length // global_batch
    ways = [f"global_batch {found} or less", *[f"a max_length of about {shorter}"] * (shorter > 0), "more text"]
    raise DataError(
        f"an epoch has {found} row(s) of {length}, fewer than global_batch {global_batch}: use {', or '.join(ways)}"
    )


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} {value} must be 1 or more")
