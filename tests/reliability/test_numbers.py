"""Numbers that go wrong: not finite, far off, or not the same where they should be. Whole runs, in this process."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data.loader import BatchLoader
from launch import train
from tests import tiny
from tests.reliability import faults, harness
from tests.reliability.test_checkpoints import flip_a_bit
from train.checks import ReplicasDiffer
from train.console import Console
from train.meter import TrainingError
from train.peers import START_AGAIN
from train.records import RunError, read_metrics
from train.restore import finished_steps


@pytest.fixture
def broken(monkeypatch):
    """`broken(change, steps)`: the batches of those steps are changed in the memory of the host."""
    whole = BatchLoader.iterate

    def broken(change, steps):
        def iterate(loader, first):
            for number, batch in enumerate(whole(loader, first), start=first + 1):
                yield change(batch) if number in steps else batch

        monkeypatch.setattr(BatchLoader, "iterate", iterate)

    return broken


def not_a_number(batch):
    return {**batch, "weights": batch["weights"] * np.float32(np.nan)}


def noise(batch):
    """What no network that has learned the corpus expects: one letter of no word, wherever it predicts."""
    return {**batch, "targets": np.full_like(batch["targets"], 7)}


def config_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    config = tiny.config(folder)
    config.train.update(eval_every=0, eval_sequences=8, sample_prompts=())
    config.model.update(num_layers=1, dropout=0.1)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def run(config, code=train.DONE):
    """What it said, once it has ended."""
    console, lines = Console(), []
    console.say = console.warn = lambda text="": lines.append(text)
    if code is train.DONE:
        assert train.run(config, console=console) == code
    else:
        with pytest.raises(code) as raised:
            train.run(config, console=console)
        lines.append(str(raised.value))
    return "\n".join(lines)


def saved(config, step):
    """The whole state of a checkpoint, as numpy."""
    with ocp.StandardCheckpointer() as reader:
        items = [reader.restore(f"{config.run.dir}/checkpoints/{step}/{item}") for item in ("params", "training")]
    return [np.asarray(x) for x in jax.tree.leaves(items)]


def test_a_batch_of_nan_changes_nothing_and_nan_for_good_stops_the_run(tmp_path, broken):
    """Row 23. Row 24."""
    changes = {"train__steps": 14, "train__max_skipped": 4, "checkpoint__every_steps": 1, "checkpoint__keep_last": 20}
    config = config_of(tmp_path, **changes)
    broken(not_a_number, {5, *range(9, 99)})
    said = run(config, TrainingError)
    assert "step 5: loss or gradient not finite" in said and "update skipped (1 in a row)" in said
    records = read_metrics(tmp_path / "run")
    assert [r["skipped"] for r in records[:8]] == [0] * 4 + [1] * 4
    assert np.isfinite([r["loss"] for r in records[5:8]]).all()
    before, after, later = (saved(config, step) for step in (4, 5, 6))
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]
    assert [(before[i], after[i]) for i in changed] == [(4, 5)]  # the step alone
    assert sum(not np.array_equal(a, b) for a, b in zip(after, later, strict=True)) > 10

    assert "4 updates in a row were skipped" in said and "not finite: steps 9 to 12, examples 64 to 95" in said
    steps = finished_steps(tmp_path / "run" / "checkpoints")
    assert max(steps) >= 11
    for step in steps:
        assert all(np.isfinite(leaf).all() for leaf in saved(config, step)), step
    # Nothing is broken: where the batches are whole again, the same command goes on.
    broken(not_a_number, ())
    assert f"resuming after step {max(steps)}" in run(config)


def test_a_spike_is_skipped_and_the_window_survives_a_resume(tmp_path, broken):
    """Row 25. Stopped between the steps that fill the window and the spike."""
    changes = {"train__steps": 30, "train__spike_window": 20, "optimizer__schedule": "constant"}
    broken(noise, {26})
    whole = config_of(tmp_path / "whole", **changes)
    said = run(whole)
    assert "step 26: a spike of the loss or gradient norm" in said and "not finite" not in said
    records = read_metrics(tmp_path / "whole" / "run")
    assert [r["spikes"] for r in records] == [r["skipped"] for r in records] == [0] * 25 + [1] * 5
    for steps in (24, 30):
        parts = config_of(tmp_path / "parts", **changes | {"train__steps": steps})
        assert ("step 26: a spike" in run(parts)) == (steps == 30)
    harness.assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    for a, b in zip(saved(whole, 30), saved(parts, 30), strict=True):
        np.testing.assert_array_equal(a, b)
    # With another window it would be another run.
    whole.train.update(spike_window=0, steps=40)
    assert "train.spike_window: 20 -> 0" in run(whole, RunError)


def memory_fails_after(step, monkeypatch):
    """One bit of the last device's copy of the first weight flips, as in a process of its own."""
    from train.checks import Checks

    monkeypatch.setattr(Checks, "after", Checks.after)  # to be as before when the test ends
    faults.PLACES["memory"](str(step), lambda: faults.ACTIONS["flip"](Path()))


def test_a_flipped_bit_is_named_before_it_is_saved_and_the_run_goes_on_without_it(tmp_path, monkeypatch):
    """Row 26. Not due by the number of the step, but a save is. Every third step is also computed twice."""
    changes = {"mesh__data": 8, "train__steps": 12, "checks__replicas_every": 100, "checks__repeat_every": 3}
    with monkeypatch.context() as patch:
        memory_fails_after(8, patch)
        said = run(config_of(tmp_path / "bad", **changes), ReplicasDiffer)
    assert re.search(r"step 10: copies .* differ: /params/decoder/[\w/]+ on cpu:7 of this process", said), said
    # Nothing but what the fault reached is named: that device, whatever else on it went wrong from there.
    assert said.count("of this process") == said.count(" on cpu:7 of this process")
    assert finished_steps(tmp_path / "bad" / "run" / "checkpoints")[-1] == 5
    assert "resuming after step 5" in run(config_of(tmp_path / "bad", **changes))
    quiet = config_of(tmp_path / "good", **changes | {"checks__replicas_every": 0, "checks__repeat_every": 0})
    run(quiet)
    harness.assert_same_run(tmp_path / "bad" / "run", tmp_path / "good" / "run")


@pytest.mark.slow
def test_of_two_processes_the_one_with_the_flipped_bit_is_named(tmp_path):
    """Rows 11 and 26. Both end with the code that starts them again; the newest step is damaged then, and both go on
    from the one before it."""
    changes = {"mesh.data": 8, "checks.replicas_every": 3, "train.steps": 12, "checkpoint.every_steps": 3}
    folder = harness.write(tmp_path / "two", changes)
    code, said = harness.run(folder, "--processes=2", FAULT="memory:8:flip@1")
    assert code == START_AGAIN, said
    assert re.search(r"step 9: copies .* differ: /params/\S+ on \S+ of process 1 \(host", said), said
    assert "of process 0 (" not in re.search("copies of the same weights differ.*", said)[0]
    checkpoints = folder / "run" / "checkpoints"
    flip_a_bit(checkpoints / "6")
    code, said = harness.run(folder, "--processes=2", FAULT="memory:8:flip@1")
    assert code == 0 and "resuming after step 3" in said, said
    assert "checkpoint 6 is damaged: not what was saved, by their checksums: params/" in said, said
    assert (checkpoints / "6.corrupt").is_dir() and finished_steps(checkpoints)[-1] == 12


TIMES = {"tokens_per_second", "step_seconds", "data_wait", "elapsed", "eta", "mfu", "goodput"}
PROCESS = {"memory_bytes", "compiles"}  # what else this process has done before


def test_the_same_seed_gives_the_same_metrics_line_by_line(tmp_path):
    """Dropout, packed documents, microbatches and an evaluation; but for `time/…`, `TIMES` and `PROCESS`."""
    lines = []
    for name in ("one", "two"):
        changes = {
            "train__microbatches": 2,
            "train__global_batch": 16,
            "train__eval_every": 5,
            "data__packing": "best_fit",
            "mesh__data": 4,
        }
        config = config_of(tmp_path / name, mesh__fsdp=2, train__steps=10, **changes)
        config.data.document_separator = " a"
        said = run(config)
        lines.append((tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines())
    assert len(lines[0]) == len(lines[1]) == 12
    for number, pair in enumerate(zip(*lines, strict=True)):
        one, two = (
            {k: v for k, v in json.loads(line).items() if k not in TIMES | PROCESS and k[:5] != "time/"}
            for line in pair
        )
        assert one == two, number
        assert {"loss", "grad_norm", "skipped"} <= one.keys() or "eval/loss" in one
    assert "documents" in said
