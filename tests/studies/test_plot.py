"""The picture of runs: valid, of the right size, and it shows what it is given."""

import warnings

import numpy as np
import pytest
from matplotlib import colors, image

import tessera
from train.records import MetricsLog, RunError, write_json


def make_run(folder, steps, evals=(), tokens=256):
    """A run folder with records at `steps` and evaluations at `evals`."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"config": {"seed": 0}, "model": {}, "fingerprints": {}})
    log = MetricsLog(folder, tensorboard=False)
    for step in steps:
        log.write({"step": step, "loss": 1 + 5 / (1 + step), "tokens": tokens * step})
    for step in evals:
        log.write({"step": step, "eval/loss": 2.0, "eval/bits_per_byte": 1 + 5 / (1 + step)})
    log.close()
    return folder


def pixels(path, colour):
    """How many pixels of the left and of the right half of a picture have a matplotlib colour."""
    picture = image.imread(path)
    assert picture.shape == (420, 1100, 4)
    near = np.abs(picture[..., :3] - colors.to_rgb(colour)).max(axis=-1) < 0.02
    return near[:, :550].sum(), near[:, 550:].sum()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_two_runs_of_different_steps_in_one_picture(tmp_path):
    make_run(tmp_path / "runs" / "a", range(1, 31), evals=[10, 20, 30])
    make_run(tmp_path / "runs" / "b", range(10, 110, 10), evals=[50, 100], tokens=64)
    out = tmp_path / "pictures" / "both.png"
    assert tessera.plot_runs([tmp_path / "runs" / "a", tmp_path / "runs" / "b"], out) == out
    assert out.read_bytes().startswith(b"\x89PNG\r\n") and 10_000 < out.stat().st_size < 500_000
    for colour in ("C0", "C1"):
        assert min(pixels(out, colour)) > 100
    assert max(pixels(out, "C2")) == 0


def test_a_glob_and_a_string_do_as_well(tmp_path):
    make_run(tmp_path / "a", [1, 2, 3], evals=[3])
    made = tessera.plot_runs(f"{tmp_path}/*", str(tmp_path / "out.png"))
    assert made == tmp_path / "out.png" and min(pixels(made, "C0")) > 50


def test_a_run_that_has_no_evaluation_yet_shows_its_loss(tmp_path):
    make_run(tmp_path / "a", range(1, 31))
    out = tessera.plot_runs([tmp_path / "a"], tmp_path / "one.png")
    left, right = pixels(out, "C0")
    assert left > 100 and right == 0

    make_run(tmp_path / "b", range(1, 31), evals=[30], tokens=512)
    out = tessera.plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "two.png")
    assert pixels(out, "C0")[0] > 100 and min(pixels(out, "C1")) > 20
    assert pixels(out, "C0")[1] == 0  # no line, and no promise of one in the legend


def test_a_run_that_has_logged_nothing_yet_does_not_stop_the_others(tmp_path):
    make_run(tmp_path / "a", [])
    make_run(tmp_path / "b", range(1, 31), evals=[30])
    out = tessera.plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    assert min(pixels(out, "C0")) > 20
    with pytest.raises(RunError, match="no loss to draw"):
        tessera.plot_runs([tmp_path / "a"], tmp_path / "out.png")


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no metrics.jsonl in"):
        tessera.plot_runs([tmp_path / "nothing"], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
