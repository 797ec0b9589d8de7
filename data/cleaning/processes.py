"""A function over many arguments in worker processes, with bounded memory, that leaves no process behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from data.errors import DataError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_given: tuple[Callable[..., Any], Any]  # in a worker process: the function, and the argument shared by all calls


def each(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """function(shared, item) for each, as they get done. One worker: here, in order.

    At most twice as many items as workers are in flight, so an iterator of large ones may be given; `shared` is sent to
    each worker once. Processes are spawned, never forked: this one may have threads. The first error ends all workers
    and is raised. Raises DataError for a process that was killed.
    """
    if workers < 1:
        raise DataError(f"workers {workers} must be 1 or more")
    if workers == 1:
        yield from (function(shared, item) for item in items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (function, shared))
    waiting: set[Future[Result]] = set()
    try:
        for item in items:
            waiting.add(pool.submit(_call, item))
            if len(waiting) == 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        way_out = f"start again with fewer than {workers} workers to go on"
        raise DataError(f"a worker process was killed, perhaps for want of memory: {way_out}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _call(item: Any) -> Any:
    function, shared = _given
    return function(shared, item)


def _begin(function: Callable[..., Any], shared: Any) -> None:
    global _given
    _given = function, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends the pool
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    """Without its parent a worker would wait for work for ever."""
    wait_for([sentinel])
    os._exit(1)
