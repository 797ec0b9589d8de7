"""`tessera supervise -- train …`: starts a training again when it died of something that another start may cure.

A preemption, a kill, a crash of the driver, a peer that is gone or stuck: these end a process with 75 or by a signal.
Any other code, such as that of a wrong config or of a full disk, would only come again and ends the supervisor too.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.processes import CHILD, SINCE, TO_SAVE
from train.peers import START_AGAIN
from train.records import RunError, read_lines

LONGEST = 300.0  # seconds between two starts, however often they fail
IMPATIENT = 5.0  # seconds that a child has to end after the second Ctrl-C
INTERRUPTED = 128 + signal.SIGINT  # somebody pressed Ctrl-C: not to be started again


@dataclasses.dataclass(frozen=True)
class Reached:
    """How far a run has come."""

    folder: int  # inode of the run folder, another one once --fresh has made a new one; 0: there is none
    saved: int | None  # newest finished checkpoint
    logged: int  # last step in metrics.jsonl


def run(command: Sequence[str], folder: Path, *, restarts: int, backoff: float, again: Sequence[str]) -> int:
    """Runs `command`, which trains in the run `folder`, until it is done or nothing helps: its last exit code.

    A signal is passed on, and then there is no further start. Each start but the first is a line of
    RUN/restarts.jsonl. `--fresh` is left out once it has made its new folder.

    Args:
        restarts: gives up after so many in a row without a newer finished checkpoint.
        backoff: seconds before the first of them, twice as many before each further one. A run that has saved and
            stopped on request starts at once.
        again: the arguments of this supervisor, for the message that says how the run continues.
    """
    received: list[int] = []
    before = {n: signal.signal(n, lambda n, _: received.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    environ, began, failures = {**os.environ, CHILD: shlex.join(again)}, time.time(), 0
    first = at = reached(folder)
    try:
        while True:
            code = _ended(command, environ, received)
            if received or code == INTERRUPTED or not (code == START_AGAIN or code > 128):
                return code
            died = time.time()
            _waited(TO_SAVE, received, functools.partial(_free, folder))
            last, at = at, reached(folder)
            newer = at.saved is not None and (at.folder != last.folder or at.saved > (last.saved or 0))
            failures = 0 if newer else failures + 1
            what = f"{_called(code)} at step {at.logged}, the newest checkpoint is {at.saved}"
            if failures > restarts:
                _say(f"{what}: giving up after {restarts} restarts without a newer one")
                return code
            pause = 0.0 if newer and code == START_AGAIN else min(LONGEST, backoff * 2 ** max(failures - 1, 0))
            count = f" ({failures} of {restarts} without a newer one)" if failures else ""
            _say(f"{what}: starting again in {pause:g} s{count}")
            if not _waited(pause, received):
                return code
            if at.folder != first.folder:
                command = [word for word in command if not word.startswith(("--fresh", "-fresh"))]
            environ[SINCE] = str(max(began, _written(folder)))
            _note(folder, died, code, at)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reached(folder: Path) -> Reached:
    """What the files of a run say; nothing is restored for it."""
    try:
        inode, records = folder.stat().st_ino, read_lines(folder)
    except (OSError, RunError):  # no folder, or a log that the next start will complain of
        inode, records = 0, []
    names = [path.parent.name for path in folder.glob("checkpoints/*/_CHECKPOINT_METADATA")]
    done = max((int(name) for name in names if name.isdigit()), default=None)
    return Reached(inode, done, records[-1]["step"] if records else 0)


def _ended(command: Sequence[str], environ: Mapping[str, str], received: Sequence[int]) -> int:
    """Starts the child, passes on the signals that are `received` until it ends: its code, 128 + n for signal n.

    Its group is its own, so that Ctrl-C reaches it once, through this process. Its input ends with this process, upon
    which it saves and stops.
    """
    sent, deadline = 0, float("inf")
    child = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, process_group=0)
    try:
        while child.poll() is None:
            for number in received[sent:]:
                child.send_signal(number)
                sent += 1
            if received.count(signal.SIGINT) > 1:
                deadline = min(deadline, time.monotonic() + IMPATIENT)
            if time.monotonic() > deadline:
                child.kill()
            time.sleep(0.05)
    finally:
        child.kill()  # where this was left by an error
        code = child.wait()
    if code == -signal.SIGTERM and signal.SIGTERM in received:
        return START_AGAIN  # the signal came before the child could say so
    return code if code >= 0 else 128 - code


def _waited(seconds: float, received: Sequence[int], ready: Callable[[], bool] = lambda: False) -> bool:
    """Waits so many seconds, or until something is `ready`; False as soon as a signal is received."""
    deadline = time.monotonic() + seconds
    while not received and time.monotonic() < deadline and not ready():
        time.sleep(0.05)
    return not received


def _free(folder: Path) -> bool:
    """Whether nobody holds the run folder: processes that a dead child left behind still save in it."""
    try:
        with open(folder / ".lock", "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there is no lock, or none that one could hold
        pass
    return True


def _written(folder: Path) -> float:
    """Unix time of the last record of the run; 0: it has none."""
    with contextlib.suppress(OSError):
        return (folder / "metrics.jsonl").stat().st_mtime
    return 0.0


def _note(folder: Path, died: float, code: int, at: Reached) -> None:
    """A line of restarts.jsonl; lost where there is no folder yet, or no space."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(died)),
        "host": socket.gethostname(),
        "ended": _called(code),
        "step": at.logged,
        "continues_after": at.saved or 0,
        "seconds_down": round(time.time() - died, 3),
    }
    with contextlib.suppress(OSError), open(folder / "restarts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _called(code: int) -> str:
    """ "code 75", or the name of the signal behind the code."""
    try:
        return signal.Signals(code - 128).name if code > 128 else f"code {code}"
    except ValueError:
        return f"code {code}"


def _say(what: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"tessera supervise: {what}", file=sys.stderr, flush=True)
