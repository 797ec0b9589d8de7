"""`python -m launch.logs`: what the processes of `--processes` write goes to the terminal and into RUN/logs.

It is a process of its own: where their parent is killed, the others still have whom to write to, and can save and stop.
"""

import contextlib
import dataclasses
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from train.records import append

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and the moves of a progress bar


@dataclasses.dataclass
class Pipe:
    """What one process writes."""

    index: int  # of the process
    shown: int  # 1 or 2: the terminal's standard output or error
    end: int  # file descriptor to read
    line: bytes = b""  # what has no end yet


class Logs:
    """RUN/logs/process_N.log of each process, appended to, whole lines only.

    Lines wait in memory until process 0 holds the run folder: before, it may be renamed, or be another run's.
    """

    def __init__(self, folder: Path, holder: str, command: str, processes: int) -> None:
        """`holder`: how the lock of the folder begins when process 0 has it."""
        start = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {command}\n".encode()
        self._folder, self._holder, self._held = folder, holder.encode(), False
        self._waiting = {index: [start] for index in range(processes)}

    def add(self, index: int, line: bytes) -> None:
        self._waiting[index].append(line)

    def write(self) -> None:
        """Writes what waits, if it can. Where the disk is full, it is lost: training goes on."""
        with contextlib.suppress(OSError):
            self._held = self._held or (self._folder / ".lock").read_bytes().startswith(self._holder)
        if not self._held:
            return
        for index, lines in self._waiting.items():
            with contextlib.suppress(OSError):
                if lines:
                    (self._folder / "logs").mkdir(exist_ok=True)
                    append(self._folder / "logs" / f"process_{index}.log", b"".join(lines))
            lines.clear()


def copy(pipes: Sequence[Pipe], logs: Logs) -> None:
    """Until all pipes are closed: process 0 is shown as it is, lines of the others with their number before them.

    Those wait for the end of a line that process 0 has begun, a second at most: a progress bar has none.
    """
    others: list[tuple[float, int, bytes]] = []  # since when, where and what
    begun = False
    with selectors.DefaultSelector() as ready:
        for pipe in pipes:
            ready.register(pipe.end, selectors.EVENT_READ, pipe)
        while ready.get_map():
            for key, _ in ready.select(timeout=1.0):
                pipe: Pipe = key.data
                if not (data := os.read(pipe.end, 65536)):
                    ready.unregister(pipe.end)
                    data = b"\n" if pipe.line else b""
                if not pipe.index and data:
                    _show(pipe.shown, data)
                    begun = not data.endswith(b"\n")
                *lines, pipe.line = (pipe.line + data).split(b"\n")
                for line in lines:
                    if pipe.index:
                        others.append(
                            (time.monotonic(), pipe.shown, b"[process %d] %s\n" % (pipe.index, line.rstrip()))
                        )
                    logs.add(pipe.index, plain(line) + b"\n")
                pipe.line = pipe.line.rpartition(b"\r")[2] or pipe.line  # a bar draws itself anew for hours
            if others and (not begun or not ready.get_map() or time.monotonic() - others[0][0] > 1.0):
                for _, shown, line in others:
                    _show(shown, line)
                others.clear()
            logs.write()


def plain(line: bytes) -> bytes:
    """A line as it is read in the end: without colours, and without the bar that was drawn before it."""
    return CONTROL.sub(b"", line.rstrip().rpartition(b"\r")[2])


def _show(where: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        while data:
            data = data[os.write(where, data) :]


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when those that it copies have ended
    folder, holder, command, *ends = sys.argv[1:]
    numbers = [tuple(map(int, end.split(","))) for end in ends]
    pipes = [Pipe(index, shown, end) for index, shown, end in numbers]
    copy(pipes, Logs(Path(folder), holder, command, 1 + max(pipe.index for pipe in pipes)))
