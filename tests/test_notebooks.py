"""Notebooks run from their percent sources, and each .ipynb holds what its source does."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from configs import gpt2_124m
from launch import train
from tests import tiny

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
MARKER = re.compile(r"^# %%(?: \[(markdown)\])?\n", re.MULTILINE)


def cells(source):
    """(kind, text) of every cell of a percent source. Markdown loses its `# `, a cell its blank lines at the end."""
    parts = MARKER.split(source)  # header, kind, text, kind, text, …
    found = []
    for kind, text in zip(parts[1::2], parts[2::2], strict=True):
        if kind:
            text = re.sub(r"^# ?", "", text.rstrip("\n"), flags=re.MULTILINE)
        found.append((kind or "code", text.rstrip("\n")))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 20 steps."""
    folder = tmp_path_factory.mktemp("notebooks")
    config = tiny.config(folder)
    config.checkpoint.every_steps = 0
    assert train.run(config) == train.DONE
    return folder / "run"


@pytest.fixture
def figures():
    """Draws into memory, whatever the machine has for a screen; the figures that are open at the end."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.close("all")
    yield lambda: [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")


def execute(path):
    """Runs the code cells in one namespace, from the folder of the notebook as Jupyter does."""
    names = {"__name__": "__main__"}
    for number, (kind, text) in enumerate(cells(path.read_text(encoding="utf-8")), 1):
        if kind == "code":
            exec(compile(text, f"{path.name}, cell {number}", "exec"), names)
    return names


def test_first_look_runs(run, figures, monkeypatch, capsys):
    monkeypatch.setenv("TESSERA_RUN", str(run))
    monkeypatch.chdir(FOLDER)
    names = execute(FOLDER / "first_look.py")
    out = capsys.readouterr().out

    assert names["parameters"]["count"].sum() == 34_720 and "34,720 parameters" in out
    assert names["parameters"]["percent"].sum() == pytest.approx(100, abs=1)
    assert len(set(re.findall(r"--- temperature (\S+)\ndef .", out))) == 3

    bars, curves = (figure.axes[0] for figure in figures())
    widths = [bar.get_width() for bar in bars.patches]
    assert len(widths) == 10 and widths == sorted(widths, reverse=True) and 0 < sum(widths) < 1
    assert names["probabilities_V"].sum() == pytest.approx(1) and widths[0] == names["probabilities_V"].max()
    training, held_out = (line.get_xydata() for line in curves.lines)
    assert training.shape == (20, 2) and held_out.shape == (2, 2) and np.isfinite(held_out).all()

    # One byte a token: bits per byte are nats over ln 2.
    np.testing.assert_allclose(names["scores"]["bits_per_byte"], names["scores"]["loss"] / np.log(2), rtol=1e-5)


def test_first_look_says_how_to_get_a_run(tmp_path, monkeypatch, figures):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_RUN", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no run in .*/runs/gpt_demo: train one with `make demo`, or set TESS"):
        execute(FOLDER / "first_look.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_holds_what_its_source_does(path):
    """If this fails: `jupytext --to ipynb notebooks/NAME.py`."""
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    held = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert held == cells(path.read_text(encoding="utf-8"))
    assert len(held) > 3 and {kind for kind, _ in held} == {"code", "markdown"}
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(held)


def test_every_notebook_has_a_source():
    assert SOURCES and {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SOURCES}


def test_no_notebook_hides_a_package_from_a_kernel_that_starts_beside_it():
    at_the_root = {path.stem for path in FOLDER.parent.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {"data", "model", "tessera"} <= at_the_root
    assert not at_the_root & {path.stem for path in SOURCES}


def test_plan_runs(monkeypatch):
    """Of a small GPT-2, whose plan is compiled in seconds."""
    small = gpt2_124m.get_config()
    small.data.tokenizer_vocab = 500
    small.model.update(vocab_size=512, num_layers=2, embed_dim=64, num_heads=4, max_length=32)
    monkeypatch.setattr(gpt2_124m, "get_config", lambda: small)
    monkeypatch.chdir(FOLDER)
    names = execute(FOLDER / "plan.py")

    arrays, plan = names["arrays"].set_index("array"), names["plan"]
    up = arrays.loc["decoder/layers/mlp/up/kernel"]
    assert (up["tiles"], up["copies"], up["bytes a device"]) == (4, 2, 2 * 64 * 256 * 4 / 4)
    memory = names["memory"]["MiB"]
    assert memory["parameters"] == plan.bytes["parameters"] / 2**20 and memory["total"] > memory["parameters"] > 0
    assert plan.tokens_per_step == 16 * 32 and plan.mesh["data"] == plan.mesh["fsdp"] == plan.mesh["tensor"] == 2
    collectives = names["collectives"].set_index("kind")
    assert "all-gather" in collectives.index and (collectives["MiB"] > 0).all()
    page = names["tessera"].picture(names["config"], plan).page()
    assert "decoder/layers/mlp/up/kernel" in page and "memory of one of 8 devices" in page


def test_text_to_batches_runs(figures, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(FOLDER)
    names = execute(FOLDER / "text_to_batches.py")
    assert "\nTrue\n" in capsys.readouterr().out and names["inspection"].documents == 500
    packings = names["packings"]
    assert list(packings.index) == ["chunk", "isolate", "first_fit", "best_fit"]
    assert packings["filled"].between(0.97, 1).all() and packings["rows"].max() <= packings["rows"].min() * 1.03
    (image,) = figures()[0].axes[0].images
    assert image.get_array().shape == (16, 256) and len(np.unique(image.get_array())) > 2
