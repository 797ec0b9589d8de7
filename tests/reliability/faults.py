"""Faults in a process that trains, placed by the config file that the tests write: the product knows nothing of them.

`FAULT=step:7:sigkill` kills the process when it has dispatched step 7; `FAULT=step:7:sigkill@1` only process 1. What
comes before the second colon is a place, see `PLACES`; what comes after it is what happens there, see `ACTIONS`. A
fault happens once: its mark in the folder of the test outlives the process, so a run that is started again is spared.
"""

import functools
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
        PLACES[place](when, functools.partial(_once, Path(folder) / f"fault.{number}", ACTIONS[what.split(":")[0]]))


def _once(mark: Path, act: Callable[[], None]) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    act()


def _signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _raise() -> None:
    raise RuntimeError("a fault that was placed here")


def _hang() -> None:
    while True:
        time.sleep(3600)


ACTIONS: dict[str, Callable[[], None]] = {
    "sigkill": _signalled(signal.SIGKILL),
    "sigterm": _signalled(signal.SIGTERM),
    "sigint": _signalled(signal.SIGINT),
    "sigstop": _signalled(signal.SIGSTOP),
    "raise": _raise,
    "hang": _hang,
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
    """When step `when` was dispatched, and what was saved before it is on disk."""
    from train.checkpoint import Checkpoints

    made: list[Checkpoints] = []
    _after(Checkpoints, "__init__", lambda checkpoints, *_, **__: bool(made.append(checkpoints)), act)

    def settled() -> None:
        made[-1].wait()
        act()

    _at_step(when, settled)


def _in_save(when: str, act: Callable[[], None]) -> None:
    """`STEP+SECONDS`: so long after the save of that step was started, from a thread."""
    from train.checkpoint import Checkpoints

    step, _, seconds = when.partition("+")
    later = threading.Timer(float(seconds or 0), act)
    _after(Checkpoints, "save", lambda checkpoints, saved, *_: saved == int(step), later.start)


def _in_compile(when: str, act: Callable[[], None]) -> None:
    """`when` seconds after the compiler started, from a thread."""
    from launch.program import Program

    compile_ = Program.compile

    def called(program: Any) -> Any:
        threading.Timer(float(when), act).start()
        return compile_(program)

    setattr(Program, "compile", called)  # noqa: B010


PLACES: dict[str, Callable[[str, Callable[[], None]], None]] = {
    "step": _at_step,
    "between": _between_saves,
    "save": _in_save,
    "compile": _in_compile,
}
