"""What goes on beside the steps may fail: it is told once, and the run is the one that nothing disturbed."""

import os

import pytest
from rich.console import Console as Terminal

from launch import scores
from tests.reliability import harness
from train.console import Console
from train.records import MetricsLog, read_metrics


def test_an_evaluation_and_a_sample_that_fail_are_told_once(tmp_path, monkeypatch, capsys):
    """Row 31: what fails before the last step."""
    often = {"train.eval_every": 4, "train.sample_every": 4, "train.sample_prompts": ("ab",)}
    folder = harness.write(tmp_path / "one", often)
    (folder / "run" / "samples.md").mkdir(parents=True)  # a file that cannot be opened
    make, calls = scores.evaluator, []

    def evaluator(*given):
        evaluate = make(*given)

        def broken(params, tick):
            calls.append(params)
            if len(calls) < 5:
                raise RuntimeError(f"a fault in evaluation {len(calls)}")
            (folder / "run" / "samples.md").rmdir()
            return evaluate(params, tick)

        return broken

    with monkeypatch.context() as broken:
        broken.setattr(scores, "evaluator", evaluator)
        harness.here(folder, "run")
    said = capsys.readouterr().out
    assert "warning: evaluation failed, training goes on: RuntimeError: a fault in evaluation 1" in said
    assert "warning: sample failed, training goes on: IsADirectoryError" in said
    assert said.count("training goes on") == 2 and len(calls) == 5
    harness.assert_same_run(folder / "run", harness.here(folder))


def test_events_on_a_full_disk_do_not_hold_up_the_metrics(tmp_path):
    """Row 31."""
    log = MetricsLog(tmp_path, tensorboard=True)
    full = os.open("/dev/full", os.O_WRONLY)
    (events,) = [
        int(end) for end in os.listdir("/proc/self/fd") if "tfevents" in os.path.realpath(f"/proc/self/fd/{end}")
    ]
    os.dup2(full, events)
    os.close(full)
    with pytest.raises(OSError, match="No space left on device"):
        log.write({"step": 1, "loss": 1.0})
    for step in range(2, 2000):
        log.write({"step": step, "loss": 1.0})
    log.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 2000))


def test_events_that_cannot_be_begun_are_told_with_the_first_record(tmp_path):
    """Row 31."""
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    log = MetricsLog(tmp_path, tensorboard=True)
    with pytest.raises(FileExistsError):
        log.write({"step": 1, "loss": 1.0})
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_words_that_cannot_be_written_end_nothing():
    """Row 31."""
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (it does not close without an error)
    console = Console(Terminal(file=full))
    console.say("step 1")
    console.warn("a loss that is not finite")
    with pytest.raises(OSError, match="No space left on device"):
        full.close()
