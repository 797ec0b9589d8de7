"""Run folders as one table."""

import json

import pytest

import tessera
from launch.leaves import flat
from tests import tiny
from train.records import MetricsLog, RunError, write_json


def make_run(folder, steps, **model):
    """A run folder as training writes it: a record at each of `steps`, an evaluation at the last."""
    folder.mkdir(parents=True)
    config = tiny.config(folder)
    config.model.update(model)
    write_json(folder / "config.json", {"config": flat(config), "model": {}, "fingerprints": {}})
    log = MetricsLog(folder, tensorboard=False)
    for step in steps:
        log.write({"step": step, "loss": 5.0 / step, "tokens": 256 * step})
    log.write({"step": steps[-1], "eval/loss": 2.0, "eval/bits_per_byte": 2.9})
    log.close()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs `a` and `b`, and beside them a folder and a file that are none."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", [1, 2, 3])
    make_run(folder / "b", [10, 20], embed_dim=64)
    (folder / "notes").mkdir()
    (folder / "readme.txt").write_text("no run")
    return folder


def test_a_run_is_a_row_a_step(runs):
    frame = tessera.read_runs(runs / "a")
    assert list(frame["run"]) == [str(runs / "a")] * 3
    assert list(frame["step"]) == [1, 2, 3] and list(frame["tokens"]) == [256, 512, 768]
    assert list(frame["loss"]) == [5.0, 2.5, 5.0 / 3]
    # An evaluation stands in the row of its step, and nowhere else.
    assert list(frame["eval/bits_per_byte"].isna()) == [True, True, False] and frame["eval/bits_per_byte"][2] == 2.9
    assert set(frame["config.model.embed_dim"]) == {32} and set(frame["config.optimizer.peak_lr"]) == {1e-2}
    assert frame["config.train.sample_prompts"][0] == ["\n"]
    leaves = json.loads((runs / "a" / "config.json").read_text())["config"]
    assert {name for name in frame if name.startswith("config.")} == {f"config.{name}" for name in leaves}


def test_a_glob_finds_the_runs_and_nothing_else(runs):
    frame = tessera.read_runs(f"{runs}/*")
    assert list(frame["run"]) == [str(runs / "a")] * 3 + [str(runs / "b")] * 2
    assert list(frame.index) == [0, 1, 2, 3, 4]
    assert list(frame["step"]) == [1, 2, 3, 10, 20]
    assert dict(zip(frame["run"], frame["config.model.embed_dim"], strict=True)) == {
        str(runs / "a"): 32,
        str(runs / "b"): 64,
    }
    assert tessera.read_runs(runs / "*").equals(frame)


def test_a_list_keeps_its_order_and_counts_a_run_once(runs):
    frame = tessera.read_runs([runs / "b", str(runs / "a"), f"{runs}/*"])
    assert list(frame["run"]) == [str(runs / "b")] * 2 + [str(runs / "a")] * 3


def test_a_step_that_was_done_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "resumed", [1, 2])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 1.5}\n{"step": 3, "loss": 1.25}\n{"step": 4, "lo')
    frame = tessera.read_runs(run)
    assert list(frame["step"]) == [1, 2, 3] and list(frame["loss"]) == [5.0, 1.5, 1.25]


def test_a_run_whose_name_looks_like_a_glob_is_found(tmp_path):
    run = make_run(tmp_path / "lr[1e-3]", [1])
    assert list(tessera.read_runs(run)["run"]) == [str(run)]


def test_what_is_missing_is_an_error(runs, tmp_path):
    for patterns in (runs / "c", str(runs / "notes"), [runs / "a", runs / "c"]):
        with pytest.raises(RunError, match="no metrics.jsonl in .*(c|notes): it is not the folder of a run"):
            tessera.read_runs(patterns)
    with pytest.raises(RunError, match=r"no run matches .*/x\*: name folders that hold a metrics.jsonl"):
        tessera.read_runs(f"{runs}/x*")
    with pytest.raises(RunError, match="no run matches"):
        tessera.read_runs([])


def test_metrics_without_a_config_are_no_run(tmp_path):
    run = make_run(tmp_path / "half", [1])
    (run / "config.json").unlink()
    with pytest.raises(RunError, match="no config.json in .*half: it is not the folder of a run"):
        tessera.read_runs(run)
    whole = make_run(tmp_path / "whole", [1])
    assert list(tessera.read_runs(f"{tmp_path}/*")["run"]) == [str(whole)]
