"""`--processes=N`: one command as N processes of this machine, which find each other on the loopback."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.logs import Pipe
from launch.memory import has_tpu
from launch.processes import CHILD, COORDINATOR, COUNT, INDEX, follow_parent
from train.peers import START_AGAIN

GRACE = 15.0  # seconds that the others have to end after one has failed: they are told why, and end by themselves
LAST_LINES = 5.0  # seconds until what they wrote last is shown
SAVING = 120.0  # the same after one has stopped on request: the others may still write


def run(arguments: Sequence[str], count: int, devices: int, folder: Path) -> int:
    """Starts `tessera` with `arguments` in `count` processes and stays until all have ended: the exit code.

    Standard output and error of process 0 are this one's; lines of the others come with their number before them, and
    what each writes is kept in the logs of the run's `folder`. A signal goes to all of them. When one fails, the others
    end. `devices`: emulated CPU devices of all together, or 0 for those of the machine, of which GPUs are shared out.

    The code is that of the process that failed first (128 + n where signal n killed it), 75 where all have saved and
    stopped on request, else 0.

    Raises:
        ValueError: devices that the processes cannot share evenly.
    """
    environments = _environments(arguments, count, devices)
    # The last one of two flags counts.
    command = [sys.executable, "-m", "tessera", *arguments, "--processes=0", f"--devices={devices // count}"]
    children: list[subprocess.Popen[bytes]] = []
    pipes: list[Pipe] = []
    copier: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, _: object) -> None:
        received.append(number)  # `_ended` passes it on: while children are started, it would miss some

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    follow_parent()  # a supervisor, if there is one
    try:
        for index, environment in enumerate(environments):
            children.append(_started(command, index, environment, pipes))
        copier = _copier(folder, children[0].pid, shlex.join(["tessera", *arguments]), pipes)
        return _ended(children, received)
    finally:
        _send(children, signal.SIGKILL)
        for child in children:
            child.wait()
        if copier:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that a child left behind may hold a pipe
                copier.wait(LAST_LINES)
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(
    command: Sequence[str], index: int, environment: Mapping[str, str], pipes: list[Pipe]
) -> subprocess.Popen[bytes]:
    """A child in a process group of its own, so that Ctrl-C reaches it once, through this process; adds its `pipes`."""
    output, written = os.pipe()
    errors, complained = (output, written) if index else os.pipe()
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=written, stderr=complained, process_group=0
    )
    pipes += [Pipe(index, 2 if index else 1, output)] + ([] if index else [Pipe(index, 2, errors)])
    for end in {written, complained}:
        os.close(end)
    return child


def _copier(folder: Path, first: int, command: str, pipes: Sequence[Pipe]) -> subprocess.Popen[bytes]:
    """The process that reads the pipes; `first`: the process id of child 0."""
    ends = [f"{pipe.index},{pipe.shown},{pipe.end}" for pipe in pipes]
    started = subprocess.Popen(
        [sys.executable, "-m", "launch.logs", str(folder), f"pid {first} on", command, *ends],
        stdin=subprocess.DEVNULL,
        pass_fds=[pipe.end for pipe in pipes],
        process_group=0,
    )
    for pipe in pipes:
        os.close(pipe.end)
    return started


def _ended(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int:
    """Waits for all, and passes on the signals that are `received` on the way; the exit code."""
    codes: dict[int, int] = {}  # of those that have ended, in this order
    deadline, sent, killed = float("inf"), 0, False
    while len(codes) < len(children):
        for number in received[sent:]:
            _send(children, number)
            sent += 1
        for index, child in enumerate(children):
            if index in codes or (code := child.poll()) is None:
                continue
            if code == -signal.SIGTERM and signal.SIGTERM in received:
                code = START_AGAIN  # the signal came before the child could say so
            codes[index] = code if code >= 0 else 128 - code
            if code < 0 and time.monotonic() < deadline:
                print(
                    f"tessera: process {index} (pid {child.pid}) was ended by {signal.Signals(-code).name}",
                    file=sys.stderr,
                )
            if code:
                deadline = min(deadline, time.monotonic() + (SAVING if code == START_AGAIN else GRACE))
        if received.count(signal.SIGINT) > 1 and not killed:
            deadline = min(deadline, time.monotonic() + 2.0)
        if time.monotonic() > deadline:
            left = ", ".join(str(index) for index in range(len(children)) if index not in codes)
            print(f"tessera: ending process {left}, which did not end by itself", file=sys.stderr)
            _send(children, signal.SIGKILL)
            deadline, killed = float("inf"), True
        time.sleep(0.05)
    failed = [code for code in codes.values() if code not in (0, START_AGAIN)]
    return failed[0] if failed else max(codes.values())


def _send(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)


def _environments(arguments: Sequence[str], count: int, devices: int) -> list[dict[str, str]]:
    """The environment of each child, with its part of the GPUs."""
    gpus = [] if devices else _gpus(os.environ)
    if devices % count or len(gpus) % count:
        what = f"--devices={devices}" if devices else f"{len(gpus)} GPUs"
        raise ValueError(f"--processes={count} cannot share {what} evenly: use numbers of which one divides the other")
    if not devices and not gpus and has_tpu():
        raise ValueError("--processes on a TPU host: one process drives all its chips; start one process a host")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    part, made = len(gpus) // count, []
    # Process 0 writes into a pipe, as on the terminal behind it.
    size = shutil.get_terminal_size()
    terminal = {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)} if os.isatty(1) else {}
    above = os.environ.get(CHILD) or shlex.join(arguments)
    for index in range(count):
        own = {COUNT: str(count), INDEX: str(index), COORDINATOR: coordinator, CHILD: above}
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * part : (index + 1) * part])} if gpus else {}
        made.append({**os.environ, **own, **visible, **({} if index else terminal)})
    return made


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA numbers them."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(number) for number in range(sum(1 for _ in Path("/dev").glob("nvidia[0-9]*")))]
