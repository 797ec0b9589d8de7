"""Faults in a process that trains, placed by the config file that the tests write: the product knows nothing of them.

`FAULT=step:7:sigkill` kills the process when it has dispatched step 7; `FAULT=step:7:sigkill@1` only process 1. What
comes before the second colon is a place, see `PLACES`; what comes after it is what happens there, see `ACTIONS`. A
fault happens once: its mark in the folder of the test outlives the process, so a run that is started again is spared.
"""

import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arm(folder: str) -> None:
    """Places the fault of the environment, if there is one, in this process."""
    for number, spec in enumerate(filter(None, os.environ.get("FAULT", "").split(","))):
        place, when, what = spec.split(":", 2)
        what, _, process = what.partition("@")
        if process and process != os.environ.get("TESSERA_PROCESS", "0"):
            continue
        PLACES[place](when, functools.partial(_once, Path(folder), f"fault.{number}", ACTIONS[what.split(":")[0]]))


def _once(folder: Path, mark: str, act: Callable[[Path], None]) -> None:
    try:
        (folder / mark).touch(exist_ok=False)
    except FileExistsError:
        return
    act(folder)


def _signalled(number: int) -> Callable[[Path], None]:
    return lambda folder: os.kill(os.getpid(), number)


def _raise(folder: Path) -> None:
    raise RuntimeError("a fault that was placed here")


def _hang(folder: Path) -> None:
    while True:
        time.sleep(3600)


def _hold(folder: Path) -> None:
    ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock: no other thread runs


def _full(folder: Path) -> None:
    """The run folder, which is a small disk, is full."""
    assert os.path.ismount(folder / "run")
    size = 1 << 20
    with open(folder / "run" / "filler", "wb", buffering=0) as filler:
        while size:
            try:
                filler.write(bytes(size))
            except OSError:
                size //= 2


VICTIM: list[Any] = []  # what the place `memory` shows to the action `flip`


def _flip(folder: Path) -> None:
    """One bit of what the last device of this process holds of an array, where it lies."""
    *_, shard = VICTIM.pop().addressable_shards
    ctypes.c_uint8.from_address(shard.data.unsafe_buffer_pointer()).value ^= 1


ACTIONS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda folder: None,
    "flip": _flip,
    "full": _full,
    "sigkill": _signalled(signal.SIGKILL),
    "killworker": lambda folder: os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL),
    "sigterm": _signalled(signal.SIGTERM),
    "sigint": _signalled(signal.SIGINT),
    "sigstop": _signalled(signal.SIGSTOP),
    "raise": _raise,
    "hang": _hang,
    "hold": _hold,
}


def _after(owner: Any, name: str, happens: Callable[..., bool], act: Callable[[], None]) -> None:
    """Acts when `owner.name` was called with arguments for which `happens`."""
    call = getattr(owner, name)

    @functools.wraps(call)
    def called(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        if happens(*args, **options):
            act()
        return result

    setattr(owner, name, called)


def _at_step(when: str, act: Callable[[], None]) -> None:
    """When step `when` was dispatched."""
    from train.peers import Peers

    _after(Peers, "reach", lambda peers, step: step == int(when), act)


def _between_saves(when: str, act: Callable[[], None]) -> None:
    """When step `when` was dispatched, and what was saved before it is on disk, or has failed."""

    def settled() -> None:
        for thread in threading.enumerate():
            if thread.name.startswith(("async_save", "save_finalize")):
                thread.join()
        act()

    _at_step(when, settled)


def _in_save(when: str, act: Callable[[], None]) -> None:
    """`STEP+SECONDS`: so long after the save of that step was started, from a thread."""
    from train.checkpoint import Checkpoints

    step, _, seconds = when.partition("+")
    later = threading.Timer(float(seconds or 0), act)
    _after(Checkpoints, "save", lambda checkpoints, saved, *_: saved == int(step), later.start)


def _in_write(when: str, act: Callable[[], None]) -> None:
    """In the thread that writes the checkpoint of step `when`, before the step gets its name."""
    from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax

    name = orbax.atomicity.on_commit_callback

    async def called(folder: Any, *args: Any, **options: Any) -> Any:
        if str(folder.get_final().name) == when:
            act()
        return await name(folder, *args, **options)

    setattr(orbax.atomicity, "on_commit_callback", called)  # noqa: B010


def _in_compile(when: str, act: Callable[[], None]) -> None:
    """`when` seconds after the compiler started, from a thread."""
    from launch.program import Program

    compile_ = Program.compile

    def called(program: Any) -> Any:
        threading.Timer(float(when), act).start()
        return compile_(program)

    setattr(Program, "compile", called)  # noqa: B010


def _in_memory(when: str, act: Callable[[], None]) -> None:
    """The first weight, when step `when` is done and before anything looks at it."""
    import jax

    from train.checks import Checks

    after = Checks.after

    def called(checks: Any, step: int, state: Any, *others: Any) -> None:
        if step == int(when):
            VICTIM.append(jax.block_until_ready(jax.tree.leaves(state.params)[0]))
            act()
        after(checks, step, state, *others)

    setattr(Checks, "after", called)  # noqa: B010


def _in_evaluation(when: str, act: Callable[[], None]) -> None:
    """Before batch `when` of an evaluation."""
    from launch import scores

    make = scores.make_evaluator

    def called(*given: Any) -> Callable[..., dict[str, float]]:
        evaluate = make(*given)

        def counted(params: Any, tick: Callable[[], None]) -> dict[str, float]:
            batches = itertools.count(1)

            def ticked() -> None:
                if next(batches) == int(when):
                    act()
                tick()

            return evaluate(params, ticked)

        return counted

    setattr(scores, "make_evaluator", called)  # noqa: B010


PLACES: dict[str, Callable[[str, Callable[[], None]], None]] = {
    "step": _at_step,
    "between": _between_saves,
    "save": _in_save,
    "write": _in_write,
    "compile": _in_compile,
    "memory": _in_memory,
    "evaluation": _in_evaluation,
}
