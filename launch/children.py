"""`--processes=N`: one command as N processes of this machine, which find each other on the loopback."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.memory import has_tpu
from launch.processes import CHILD, COORDINATOR, COUNT, INDEX
from train.peers import START_AGAIN

GRACE = 15.0  # seconds that the others have to end after one has failed: they are told why, and end by themselves
SAVING = 120.0  # the same after one has stopped on request: the others may still write


def run(arguments: Sequence[str], count: int, devices: int) -> int:
    """Starts `tessera` with `arguments` in `count` processes and stays until all have ended: the exit code.

    Standard output and error of process 0 are this one's; lines of the others come with their number before them. A
    signal goes to all of them. When one fails, the others end. `devices`: emulated CPU devices of all together, or 0
    for those of the machine, of which GPUs are shared out.

    The code is that of the process that failed first (128 + n where signal n killed it), 75 where all have saved and
    stopped on request, else 0.

    Raises:
        ValueError: devices that the processes cannot share evenly.
    """
    environments = _environments(arguments, count, devices)
    # The last one of two flags counts.
    command = [sys.executable, "-m", "tessera", *arguments, "--processes=0", f"--devices={devices // count}"]
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, _: object) -> None:
        received.append(number)  # `_ended` passes it on: while children are started, it would miss some

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for index, environment in enumerate(environments):
            children.append(_started(command, index, environment))
        return _ended(children, received)
    finally:
        _send(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(command: Sequence[str], index: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A child in a process group of its own, so that Ctrl-C reaches it once, through this process."""
    output, errors = (subprocess.PIPE, subprocess.STDOUT) if index else (None, None)
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=errors, process_group=0
    )
    if index:
        threading.Thread(target=_copy, args=(child, index), daemon=True).start()
    return child


def _copy(child: subprocess.Popen[bytes], index: int) -> None:
    """A thread: what a child writes, to standard error, with its number before each line."""
    assert child.stdout is not None
    for line in child.stdout:
        print(f"[process {index}] {line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


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
    for index in range(count):
        own = {COUNT: str(count), INDEX: str(index), COORDINATOR: coordinator, CHILD: shlex.join(arguments)}
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * part : (index + 1) * part])} if gpus else {}
        made.append({**os.environ, **own, **visible})
    return made


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA numbers them."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(number) for number in range(sum(1 for _ in Path("/dev").glob("nvidia[0-9]*")))]
