"""Runs that read several sources, or packed rows, as a user starts them."""

import json

import numpy as np
import pytest

from configs import defaults
from data.errors import DataError
from launch import train
from launch.experiment import read
from tests import tiny
from train.console import Console
from train.records import RunError, read_metrics

STEPS = 12
T5 = {
    "model.architecture": "encoder_decoder",
    "model.positions": "learned",
    "objective.name": "span_corruption",
    "train.sample_prompts": (),
}
KINDS = {
    "decoder": {},
    "encoder": {"model.architecture": "encoder", "model.head": "masked_lm", "objective.name": "masked_lm"},
    "encoder_decoder": T5,
    "lstm": {"model.architecture": "lstm"},
}


def documents(file, letters, count):
    rng = np.random.default_rng(len(letters))
    words = ["".join(rng.choice(list(letters), 4)) for _ in range(20)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def config_of(folder, **changes):
    """Two sources of many short documents: the second comes in at step 6."""
    config = tiny.config(folder)
    config.data.path = ""
    config.data.mixture = {
        "first": defaults.source(documents(folder / "a.jsonl", "abcd", 300), weight=(1.0, 0.5)),
        "second": defaults.source(documents(folder / "b.jsonl", "wxyz", 300), weight=(0.0, 0.5), max_epochs=2.0),
    }
    config.data.update(mixture_stages=(6,), packing="best_fit", held_out_by="document", workers=0)
    config.model.num_layers = 1
    config.train.update(steps=STEPS, eval_every=STEPS // 2, eval_sequences=16, global_batch=8, sample_prompts=())
    config.update_from_flattened_dict(changes)
    return config


def run(config):
    lines, console = [], Console()
    console.say = lambda text="": lines.append(text)
    return train.run(config, console=console), "\n".join(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_of_packed_rows_trains_every_kind(tmp_path, kind):
    code, said = run(config_of(tmp_path, **KINDS[kind]))
    assert code == train.DONE
    records = read_metrics(tmp_path / "run")
    halfway, last = (records[step - 1] for step in (STEPS // 2, STEPS))
    assert records[STEPS // 2 - 1]["loss"] < records[0]["loss"] - 0.5
    # What was never drawn in the first half is learned in the second.
    assert last["eval/second/loss"] < halfway["eval/second/loss"] - 0.1
    parts = last["eval/first/loss"], last["eval/second/loss"]
    assert min(parts) < last["eval/loss"] < max(parts)
    assert "stages from steps 0, 6 of 12" in said and "packed: " in said
    assert "\ndata: read first 0." in said and ", second 0." in said
    first, second = (next(line for line in said.splitlines() if line.startswith(name)) for name in ("first ", "second"))
    assert "100.00% 50.00%" in first and "0.00% 50.00%" in second


def test_a_part_that_would_be_read_too_often_stops_the_run_before_it_begins(tmp_path):
    config = config_of(tmp_path)
    config.data.mixture.second.max_epochs = 0.05
    with pytest.raises(DataError, match=r"second.* max_epochs"):
        run(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_stage_behind_the_last_step_stops_the_run_before_anything_is_read(tmp_path):
    config = config_of(tmp_path)
    config.data.mixture_stages = (STEPS,)
    with pytest.raises(DataError, match=r"no step of a run of 12 is in the last stage"):
        run(config)
    assert not (tmp_path / "cache").exists()


def test_another_weight_is_another_run_and_tokenises_nothing(tmp_path):
    assert run(config_of(tmp_path))[0] == train.DONE
    changed = config_of(tmp_path)
    changed.data.mixture.second.weight = (0.0, 0.9)
    with pytest.raises(RunError, match=r"data.mixture.second.weight: \[0.0, 0.5\] -> \[0.0, 0.9\]"):
        run(changed)
    changed.run.dir = str(tmp_path / "other")
    code, said = run(changed)
    assert code == train.DONE and "tokenised" not in said and "reused" in said


def test_an_ngram_counts_one_text(tmp_path):
    with pytest.raises(ValueError, match="an n-gram model counts one text as it is"):
        run(config_of(tmp_path, **{"model.architecture": "ngram"}))


def test_a_curriculum_by_scores_needs_scores(tmp_path):
    with pytest.raises(ValueError, match=r"none is set for first, second"):
        read(config_of(tmp_path, **{"data.curriculum": "score"}))
