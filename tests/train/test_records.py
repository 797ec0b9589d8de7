"""The run folder: one owner, whole files, and metrics that survive a kill."""

import json
import os
import subprocess
import sys

import pytest

from train.records import MetricsLog, RunError, compare_configs, open_run, read_metrics, write_json


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path):
    held = f"with open_run(Path({str(tmp_path)!r})): print('mine')"
    code = f"from pathlib import Path; from train.records import open_run\n{held}"
    with open_run(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert second.returncode == 1 and f"pid {os.getpid()} on " in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "mine\n"


def test_metrics_are_appended_and_the_last_word_on_a_step_counts(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 10.0 - step})
    log.write({"step": 3, "eval/loss": 5.0})
    log.close()
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write({"step": 2, "loss": 8.5})
    log.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 9.0},
        {"step": 2, "loss": 8.5},
        {"step": 3, "loss": 7.0, "eval/loss": 5.0},
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_torn_last_line_is_left_out_and_cut_when_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [2.0, 1.0]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2 is no JSON"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="no metrics.jsonl"):
        read_metrics(tmp_path / "nothing")


def test_tensorboard_events_lie_beside(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write({"step": 1, "loss": 2.0})
    log.close()
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1 and b"loss" in events[0].read_bytes()


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    (tmp_path / "b.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "b.json", {"x": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]  # nothing half done is left


def test_differences_are_harmless_or_another_run():
    saved = {
        "train.steps": 10,
        "model.embed_dim": 32,
        "optimizer.peak_lr": 1e-3,
        "mesh.fsdp": 1,
        "train.global_batch": 8,
        "a": [1],
    }
    now = {**saved, "train.steps": 20, "mesh.fsdp": 4, "model.embed_dim": 64, "train.global_batch": 16, "a": (1,)}
    harmless, other = compare_configs(saved, now)
    assert harmless == ["mesh.fsdp: 1 -> 4", "train.steps: 10 -> 20"]
    assert other == ["model.embed_dim: 32 -> 64", "train.global_batch: 8 -> 16"]


@pytest.mark.parametrize(
    ("leaf", "is_harmless"),
    [
        ("data.workers", True),
        ("data.mixture.code.max_epochs", True),
        ("data.mixture.code.licence", True),
        ("data.mixture.code.weight", False),
        ("data.packing", False),
        ("data.curriculum", False),
    ],
)
def test_leaves_of_the_data_that_change_no_batch_may_change(leaf, is_harmless):
    harmless, other = compare_configs({leaf: 1}, {leaf: 2})
    assert (harmless, other) == (([f"{leaf}: 1 -> 2"], []) if is_harmless else ([], [f"{leaf}: 1 -> 2"]))
