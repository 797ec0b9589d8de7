"""`tessera data inspect` as a user calls it."""

import json
from typing import Any

import pytest
from absl import flags

from configs import defaults
from data.config import DataConfig
from data.corpus import prepare
from data.errors import DataError
from launch import data_inspect
from launch.experiment import section

CONFIG = """
from ml_collections import ConfigDict

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.data.update(path="", tokenizer="byte", held_out=0.3, cache_dir={cache!r}, packing="best_fit")
    parts = {{"first": {first!r}, "second": {second!r}}}
    config.data.mixture = ConfigDict(
        {{name: defaults.source(path, weight=(1.0,), max_epochs={epochs}) for name, path in parts.items()}}
    )
    config.model.update(architecture="encoder", head="masked_lm", max_length=48, embed_dim=64, num_heads=4)
    config.model.positions = "learned"
    config.objective.update(name="masked_lm", mask_rate=0.2)
    config.train.update(steps=4, global_batch=2)
    return config
"""


def call(*arguments: str) -> int:
    values = flags.FlagValues()
    data_inspect.define(values)
    return data_inspect.run(values, values(["tessera", *arguments])[1:])


@pytest.fixture
def sources(tmp_path):
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for file in files:
        lines = [json.dumps({"body": f"{file.stem} text {n}", "text": f"{file.stem} number {n}"}) for n in range(30)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def test_a_source_on_the_screen_and_as_html(sources, tmp_path, capsys):
    html = tmp_path / "new" / "report.html"
    assert call(str(sources[0]), "--text_field=body", "--examples=2", "--max_length=32", f"--html={html}") == 0
    out = capsys.readouterr().out
    assert "documents     30" in out and "first text  30" in " ".join(out.split(" ")).replace("   ", "  ")
    assert "examples drawn at random: 2" in out and f"{html} written" in out and "\x1b" not in out
    text = html.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count('class="example"') == 2 and "first text" in text


def test_a_store_finds_its_tokenizer(sources, config_of, capsys):
    corpus = prepare(config_of(str(sources[0])), report=lambda line: None)
    assert call(str(corpus.train.folder), "--objective=prefix_lm", "--examples=1", "--max_documents=3") == 0
    out = capsys.readouterr().out
    assert "char, " in out and f"a sample: 3 of {corpus.train.num_documents}, drawn at random" in out
    assert "⟧{" in out[out.index("\nrow ") :]
    with pytest.raises(ValueError, match="--text_field would change nothing: a store says that itself"):
        call(str(corpus.train.folder), "--text_field=body")


@pytest.fixture
def config_of(tmp_path):
    def make(path: str) -> DataConfig:
        config: Any = defaults.get_config()
        config.data.update(path=path, tokenizer="char", held_out=0.3, cache_dir=str(tmp_path / "cache"))
        return section(DataConfig, "data", config.data)

    return make


def test_a_config_shows_its_mixture_and_its_rows(sources, tmp_path, capsys):
    file = tmp_path / "experiment.py"
    first, second = map(str, sources)
    file.write_text(CONFIG.format(cache=str(tmp_path / "cache"), first=first, second=second, epochs=9.0))
    html = tmp_path / "report.html"
    assert call(str(file), "--examples=1", f"--html={html}") == 0
    out = capsys.readouterr().out
    assert f"{file}: masked_lm, 48 tokens, packing best_fit" in out
    assert "50.00%" in out and "first (training split)" in out and "second (training split)" in out
    assert out.count("⟨cls⟩") > 2 and "⟨mask⟩→" in out and "‖⟨cls⟩" in out
    assert html.read_text(encoding="utf-8").count('<div class="tessera">') == 2

    file.write_text(CONFIG.format(cache=str(tmp_path / "cache"), first=first, second=second, epochs=0.01))
    assert call(str(file), "--examples=0") == 0
    assert "a run would be refused: data.mixture.first: 4 steps" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--objective would change nothing: a config says that itself"):
        call(str(file), "--objective=ul2")


def test_a_python_file_that_is_no_config_is_text(tmp_path, capsys):
    file = tmp_path / "module.py"
    file.write_text("answer = 42\n")
    assert call(str(file), "--examples=1") == 0
    assert "answer = 42↵" in capsys.readouterr().out


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="one store, source or config is needed, 0 are given"):
        call()
    for name in ("examples", "seed", "max_documents"):
        with pytest.raises(flags.IllegalFlagValueError, match=f"--{name}=-1"):
            call("data", f"--{name}=-1")
    with pytest.raises(DataError, match="does not exist"):
        call(str(tmp_path / "nothing.txt"))
