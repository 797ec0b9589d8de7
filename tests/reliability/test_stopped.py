"""Processes that are asked to stop: they save the step that they are in, alone, as two, or with their workers."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.reliability import harness
from train.agreement import Agreement
from train.records import read_lines

LATER = """
    import signal, threading, time
    from train.peers import peers
    def later():
        while not peers().several:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    if os.environ.get("TESSERA_PROCESS") == "1":
        threading.Thread(target=later, daemon=True).start()
"""


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_both(tmp_path):
    """Row 6."""
    folder = harness.write(tmp_path / "two", {}, LATER)
    code, said = harness.run(folder, "--processes=2")
    assert code == 75 and "stopped by SIGTERM outside of the training steps" in said and "step 1/" not in said, said


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    """Row 6."""
    folder = harness.write(tmp_path / "two", {"checkpoint.every_steps": 0})
    code, said = harness.run(folder, "--processes=2", FAULT="step:7:sigterm@1")
    assert code == 75, said
    stopped = int(re.search(r"stopped by SIGTERM: step (\d+) is saved", said)[1])
    assert 7 <= stopped <= 8 and os.listdir(folder / "run" / "checkpoints") == [str(stopped)]
    assert f"tessera {' '.join(harness.command(folder)[3:])} --processes=2" in said
    # It goes on in one process, and nothing was done twice or left out.
    code, said = harness.run(folder, "--processes=1")
    assert code == 0 and f"resuming after step {stopped}" in said, said
    np.testing.assert_allclose(harness.losses(folder / "run"), harness.losses(harness.here(folder)), atol=1e-6)


@pytest.mark.parametrize(
    "flag, fault", [("--processes=1", "sigterm"), pytest.param("--processes=2", "sigterm@1", marks=pytest.mark.slow)]
)
def test_an_evaluation_gives_way_to_a_signal(tmp_path, flag, fault):
    """Row 6. No sample is drawn either."""
    often = {"train.eval_every": 10, "train.eval_sequences": 48, "train.sample_every": 10, "checkpoint.every_steps": 0}
    folder = harness.write(tmp_path / "one", {**often, "train.sample_prompts": ("ab",)})
    code, said = harness.run(folder, flag, FAULT=f"evaluation:2:{fault}")
    assert code == 75 and "stopped by SIGTERM: step 10 is saved" in said, said
    assert "eval/loss" not in said and "--- sample" not in said, said
    code, said = harness.run(folder, flag, "--stop_after=15")
    assert code == 0 and "resuming after step 10" in said, said
    code, said = harness.run(folder, flag, FAULT=f"step:20:{fault}")  # with the last step the run is done
    assert code == 0 and "--- sample" in said, said
    run, whole = folder / "run", harness.here(folder)
    if flag == "--processes=1":
        harness.assert_same_run(run, whole)
    np.testing.assert_allclose(harness.losses(run), harness.losses(whole), atol=1e-6)
    scored = [[line["step"] for line in read_lines(of) if "eval/loss" in line] for of in (run, whole)]
    assert scored == [[20], [10, 20]]


def test_a_command_that_ends_with_an_evaluation_finishes_it(tmp_path):
    folder = harness.write(tmp_path / "one", {"train.eval_every": 10, "train.eval_sequences": 48})
    code, said = harness.run(folder, "--stop_after=10", FAULT="evaluation:2:sigterm")
    assert code == 0 and said.count("eval/loss") == 1, said


def test_saves_by_the_clock_come_whatever_else_is_agreed_upon(tmp_path, monkeypatch):
    """Several processes know the answer to a question at the next one; evaluations ask in between."""

    class Several(Agreement):
        def __init__(self, mesh):
            super().__init__(mesh)
            self._alone = False

    monkeypatch.setattr("launch.train.Agreement", Several)
    often = {"train.eval_every": 1, "train.eval_sequences": 16}
    clock = {"checkpoint.every_steps": 0, "checkpoint.every_minutes": 1e-6, "checkpoint.keep_last": 20}
    run = harness.here(harness.write(tmp_path / "one", {**often, **clock}))
    assert len(os.listdir(run / "checkpoints")) > 15


def members(group):
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = stat.read_text().rpartition(")")[2].split()[:3]
            found += [int(stat.parent.name)] if int(its) == group and state != "Z" else []
    return found


@pytest.mark.slow
def test_workers_wait_for_the_last_checkpoint_and_outlive_no_run(tmp_path):
    """Rows 1 and 7."""
    folder = harness.write(tmp_path / "one", {"data.workers": 2, "train.steps": 100_000})
    process = harness.start(folder)
    harness.wait_for_step(process, folder, 10)
    assert len(members(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, said = harness.end(process, folder)
    assert code == 75 and re.search(r"stopped by SIGINT: step \d+ is saved", said), said
    assert "Traceback" not in said and "leaked" not in said, said

    done = len(harness.losses(folder / "run"))
    process = harness.start(folder)
    harness.wait_for_step(process, folder, done + 10)
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while left := members(process.pid):
        assert time.monotonic() < until, left
        time.sleep(0.1)
