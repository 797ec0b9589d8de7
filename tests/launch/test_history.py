"""`tessera history` on a tiny text: every row is there, and the same command again trains nothing twice."""

import json

import pytest

from launch import history
from tests import tiny
from train.records import read_metrics


def test_history_scores_every_model_and_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "NETWORKS", {"GRU": {"architecture": "gru"}, "GPT": {}})
    config = tiny.config(tmp_path)
    config.mesh.data = 8
    picture = history.run(config, 1e-4, tmp_path / "out")
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "history.json").read_text())}
    assert list(rows) == ["unigram", "bigram", "trigram", "4-gram", "5-gram", "GRU", "GPT"]
    assert rows["bigram"]["bits_per_byte"] < rows["unigram"]["bits_per_byte"]
    last = read_metrics(tmp_path / "out" / "GPT")[-1]
    assert rows["GPT"]["bits_per_byte"] == last["eval/bits_per_byte"] and last["step"] == 20
    assert "| GRU |" in (tmp_path / "out" / "history.md").read_text()
    monkeypatch.setattr("launch.program.Program.compile", lambda self: pytest.fail("compiled again"))
    assert history.run(config, 1e-4, tmp_path / "out") == picture


def test_no_time_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="minutes is 0"):
        history.run(tiny.config(tmp_path), 0, tmp_path)


def test_only_a_decoder_has_this_history(tmp_path):
    config = tiny.config(tmp_path)
    config.model.update(architecture="encoder", head="masked_lm")
    config.objective.name = "masked_lm"
    with pytest.raises(ValueError, match="a decoder trained by causal_lm.*not of an encoder trained by masked_lm"):
        history.run(config, 1, tmp_path)
