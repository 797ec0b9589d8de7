"""One supervised run of two processes that is broken again and again, at moments drawn from a seed.

`CHAOS=30 python -m pytest tests/reliability/test_chaos.py` breaks it thirty times, which takes about fifteen minutes;
`CHAOS_SEED=1` draws other moments.
"""

import itertools
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import harness

TIMES, SEED = int(os.environ.get("CHAOS", "6")), int(os.environ.get("CHAOS_SEED", "0"))
# Packed documents of several lengths, dropout and microbatches: whatever a resume could do otherwise.
CHANGES = {
    "train.steps": 30 * TIMES,
    "train.microbatches": 2,
    "data.document_separator": "e ",
    "data.packing": "first_fit",
}
PROCESSES = ("--processes=2", "--start_timeout=30")
# The first is the parent of both: a preemption.
FAULTS = ("terminate parent", "kill parent", "kill one", "terminate one", "freeze one", "fill disk")


def faults(rng: random.Random) -> Iterator[str]:
    """All kinds, shuffled, again and again."""
    while True:
        yield from rng.sample(FAULTS, len(FAULTS))


def children(pid: int) -> list[int]:
    return [int(child) for child in told(pid, f"task/{pid}/children").split()]


def told(pid: int, file: str) -> bytes:
    """By the kernel of a process; nothing of one that has just ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def trainers(parent: int) -> list[int]:
    """The processes that train, as soon as they know who they are."""
    return [child for child in children(parent) if b"\0TESSERA_PROCESS=" in told(child, "environ")]


def break_it(supervisor: subprocess.Popen[bytes], folder: Path, fault: str, rng: random.Random) -> None:
    """Waits for the next start and for a moment of it, then does what `fault` says and waits until it has worked."""
    pids: list[int] = []
    until = time.monotonic() + harness.BUSY
    while len(pids) < 2:
        assert supervisor.poll() is None and time.monotonic() < until, harness.said(folder)
        parent = next(iter(children(supervisor.pid)), 0)
        pids = trainers(parent) if parent else []
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 8))  # somewhere between the first import and the first steps
    else:
        metrics = folder / "run" / "metrics.jsonl"
        done = metrics.read_bytes().count(b'"loss"') if metrics.exists() else 0
        harness.wait_for_step(supervisor, folder, done + rng.randint(1, 15))
        time.sleep(rng.uniform(0, 0.1))
    one = rng.choice(pids)
    if fault == "fill disk":
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    else:
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}[fault.split()[0]]
        os.kill(parent if fault.endswith("parent") else one, number)
    while not all(harness.gone(pid) for pid in (parent, *pids)):
        assert time.monotonic() < until, harness.said(folder)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300 * (1 + TIMES))
def test_whatever_breaks_a_run_its_weights_and_losses_are_those_of_the_unbroken_one(tmp_path):
    """Rows 1, 2, 3, 4, 5, 6, 8, 15 and 20."""
    whole = harness.write(tmp_path / "whole", CHANGES)
    code, said = harness.run(whole, *PROCESSES, devices=4)
    assert code == 0, said
    rng, folder = random.Random(SEED), harness.write(tmp_path / "broken", CHANGES)
    before = ("supervise", "--backoff=0.1", f"--restarts={3 * TIMES}", "--")
    supervisor = harness.start(folder, *PROCESSES, devices=4, before=before)
    try:
        for fault in itertools.islice(faults(rng), TIMES):
            break_it(supervisor, folder, fault, rng)
            if fault == "fill disk":  # starting again would not help: one makes space, and gives the same command
                code, said = harness.end(supervisor, folder)
                assert code == 74, said
                supervisor = harness.start(folder, *PROCESSES, devices=4, before=before)
        code, said = harness.end(supervisor, folder)
    finally:
        supervisor.terminate()
    assert code == 0, said
    assert len((folder / "run" / "restarts.jsonl").read_text().splitlines()) >= TIMES - TIMES // len(FAULTS) - 1
    harness.assert_same_run(folder / "run", whole / "run")
