"""Real runs in processes of their own: written, started, watched, broken, and compared."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tessera
from launch import train
from train.records import read_metrics

FILE = """
import os
from pathlib import Path
from tests import tiny
from tests.reliability import faults
def get_config():
    config = tiny.config(Path({folder!r}))
    config.optimizer.peak_lr = 1e-3
    config.train.update(eval_every=0, eval_sequences=8, sample_prompts=())
    config.model.update(dropout=0.1, num_layers=1)
    config.update_from_flattened_dict({changes!r})
    faults.arm({folder!r})
    {more}
    return config
"""
BUSY = 300.0  # seconds: the machine may be busy


def write(folder: Path, changes: Mapping[str, Any] | None = None, more: str = "") -> Path:
    """A config file in `folder`, of 20 steps with a checkpoint after every fifth, changed by `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = FILE.format(folder=str(folder), changes=dict(changes or {}), more=more)
    (folder / "config.py").write_text(text, encoding="utf-8")
    return folder


def command(folder: Path, *flags: str, devices: int = 8, before: Sequence[str] = ()) -> list[str]:
    tessera = [sys.executable, "-m", "tessera", *before]
    return [*tessera, "train", f"--config={folder}/config.py", f"--devices={devices}", *flags]


def start(
    folder: Path, *flags: str, devices: int = 8, before: Sequence[str] = (), **environ: str
) -> subprocess.Popen[bytes]:
    """`tessera train` on the config of `folder`, in a process group of its own; its words go to `folder`/said.txt.

    `before` goes in front of `train`, such as `supervise --`; `environ` is added, such as `FAULT`.
    """
    if any(flag.startswith("--processes=2") for flag in flags):
        flags = (*flags, "--heartbeat_timeout=10")
    with open(folder / "said.txt", "wb") as said:
        return subprocess.Popen(
            command(folder, *flags, devices=devices, before=before),
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environ},
            process_group=0,
        )


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text(encoding="utf-8", errors="replace")


def end(process: subprocess.Popen[bytes], folder: Path, seconds: float = BUSY) -> tuple[int, str]:
    """Waits: the exit code, and all that was said."""
    code = process.wait(timeout=seconds)
    return code, said(folder)


def run(folder: Path, *flags: str, devices: int = 8, **environ: str) -> tuple[int, str]:
    """Starts `tessera train` and waits: the exit code, and all that was said."""
    return end(start(folder, *flags, devices=devices, **environ), folder)


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> list[int]:
    """Waits until the run has logged `step`; the process ids of its processes, where it has several."""
    path = folder / "run" / "metrics.jsonl"
    until = time.monotonic() + BUSY
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b'"loss"') >= step:
            return [int(pid) for pid in re.findall(r"process \d \(host .*?, pid (\d+)\)", said(folder))]
        assert process.poll() is None, said(folder)
        time.sleep(0.02)
    raise AssertionError(said(folder))


def wait_until_frozen(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits until a SIGSTOP has stopped a process."""
    until, how = time.monotonic() + BUSY, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
    while not (found := os.waitid(os.P_PID, process.pid, how)):
        assert time.monotonic() < until, said(folder)
        time.sleep(0.02)
    assert found.si_code == os.CLD_STOPPED, said(folder)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that waits for its parent to look has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def here(folder: Path, name: str = "alone", **changes: Any) -> Path:
    """The run folder of the same training as `write` describes, undisturbed and in this process."""
    scope: dict[str, Any] = {}
    exec((folder / "config.py").read_text(encoding="utf-8"), scope)
    config = scope["get_config"]()
    config.update_from_flattened_dict({**changes, "run.dir": str(folder / name)})
    assert train.run(config) == train.DONE
    return folder / name


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def params(run: Path, step: int | None = None) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get(tessera.load(run, step=step).params))


def assert_same_run(a: Path, b: Path) -> None:
    """Final parameters equal in every bit, and every logged loss."""
    for x, y in zip(params(a), params(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert losses(a) == losses(b)
