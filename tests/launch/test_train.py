"""Training as a user starts it: whole runs of a tiny config, resumed, killed, refused."""

import json
import re

import numpy as np
import pytest

from data.errors import DataError
from launch import train
from tests import tiny
from tests.reliability import harness
from train.console import Console
from train.profile import ProfileSteps
from train.records import RunError, read_metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of 20 steps on one device, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.config(folder)
    config.mesh.data = 8
    lines = []
    console = Console()
    console.say = lambda text="": lines.append(text)
    assert train.run(config, console=console) == train.DONE
    return folder, "\n".join(lines)


def test_a_run_learns_and_explains_itself(finished):
    folder, said = finished
    run = folder / "run"
    records = read_metrics(run)
    assert [r["step"] for r in records] == list(range(1, 21))
    assert records[0]["loss"] == pytest.approx(np.log(257), abs=0.1)
    assert records[-1]["loss"] < records[0]["loss"] - 1
    assert {"step", "loss", "grad_norm", "learning_rate", "tokens_per_second"} <= records[0].keys()
    assert {"eval/loss", "eval/bits_per_byte", "eval/perplexity"} <= records[9].keys() & records[19].keys()
    # One byte a token, but for the end of the text, which has none and is the last token scored.
    text = len((folder / "corpus.txt").read_text())
    targets = text - int(text * 0.9)
    scored = 31 * 32 + (targets % 32 or 32)
    expected = records[19]["eval/loss"] / np.log(2) * scored / (scored - 1)
    assert records[19]["eval/bits_per_byte"] == pytest.approx(expected)
    assert records[19]["tokens"] == 20 * 8 * 32
    config = json.loads((run / "config.json").read_text())
    assert (
        config["config"]["train.steps"] == 20
        and config["model"]["vocab_size"] == 257
        and config["model"]["mlp_dim"] == 128
    )
    assert [sorted(start["packages"])[2] for start in json.loads((run / "environment.json").read_text())] == ["jax"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG") and "## Step 20" in (run / "samples.md").read_text()
    assert (run / "checkpoints" / "20").is_dir() and (run / "tokenizer").is_dir()
    for word in (
        "bits per byte",
        "next:",
        "tessera generate",
        "FLOPs a token",
        "temporary a device, predicted",
        "from step 0",
    ):
        assert word in said
    assert re.search(
        r"step 20/20 100%  loss \d.* lr .* grad .* tok/s  MFU -  \d+ ms/step  data \d+%  mem .* ETA 0s", said
    )


def test_every_second_of_a_run_has_a_name(finished):
    folder, said = finished
    records = [record for record in read_metrics(folder / "run") if "goodput" in record]
    for record in records:
        seconds = [value for name, value in record.items() if name.startswith("time/")]
        assert record["goodput"] == pytest.approx(record["time/productive"] / sum(seconds))
        assert record["recompiles"] == 0
    last = records[-1]
    assert last["time/compile"] > 0 and last["time/evaluation"] > 0 and last["time/checkpoint"] > 0
    assert last["time/lost"] == 0 and re.search(r"goodput: \d+% \(.*compile .*\d programs compiled", said)


def test_the_same_command_again_says_that_the_run_is_complete(finished, capsys):
    folder, _ = finished
    config = tiny.config(folder)
    config.mesh.data = 8
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    assert train.run(config) == train.DONE
    assert "is complete: 20 of 20 steps" in capsys.readouterr().out
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [("model.embed_dim", 32, 64), ("optimizer.name", "adamw", "lion"), ("data.tokenizer", "byte", "char")],
    ids=["width", "optimizer", "tokenizer"],
)
def test_another_config_in_the_same_folder_is_refused_with_the_difference(finished, change):
    """Row 27. What is allowed, with a note: see `test_more_steps_continue_a_complete_run`."""
    folder, _ = finished
    name, before, after = change
    config = tiny.config(folder)
    config.update_from_flattened_dict({name: after, "train.sample_prompts": ("a",)})
    with pytest.raises(RunError, match=rf"holds another run:\n(  .*\n)*  {name}: {before!r} -> {after!r}\n"):
        train.run(config)


def test_fresh_starts_over_and_deletes_nothing(tmp_path):
    config = tiny.config(tmp_path)
    config.train.steps = 4
    assert train.run(config) == train.DONE
    config.seed = 1
    assert train.run(config, fresh=True) == train.DONE
    assert len(list(tmp_path.glob("run.*/checkpoints/4"))) == 1
    assert len(read_metrics(tmp_path / "run")) == 4


def test_more_steps_continue_a_complete_run(tmp_path, capsys):
    """Row 27: a harmless change."""
    config = tiny.config(tmp_path)
    config.optimizer.schedule = "constant"
    config.train.steps = 6
    assert train.run(config) == train.DONE
    config.train.steps = 9
    assert train.run(config, profile=ProfileSteps(8, 9)) == train.DONE
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    # The same command again goes on: what is behind is not traced again.
    config.train.steps = 12
    with pytest.raises(ValueError, match="steps:8-13: this run has 12 steps"):
        train.run(config, profile=ProfileSteps(8, 13))
    assert train.run(config, profile=ProfileSteps(8, 9)) == train.DONE
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    said = capsys.readouterr().out
    assert "profile    steps 8 to 9 are behind: no trace" in said
    assert "changed since the run began: train.steps: 6 -> 9" in said and "resuming after step 6" in said
    whole = tiny.config(tmp_path)
    whole.optimizer.schedule = "constant"
    whole.update_from_flattened_dict({"train.steps": 12, "run.dir": str(tmp_path / "whole")})
    assert train.run(whole) == train.DONE
    harness.assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_corpus_shorter_than_a_batch_is_an_error_with_numbers(tmp_path):
    config = tiny.config(tmp_path, text="only a few words, fewer than a batch takes")
    with pytest.raises(DataError, match=r"\d+"):
        train.run(config)


def test_what_is_wrong_is_said_before_the_compiler_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.program.Program.compile", lambda self: pytest.fail("compiled"))
    for change, says in (
        ({"train.sample_prompts": ("x" * 40,)}, "prompt 0 has 40 tokens, the context has 32"),
        ({"mesh.data": 2, "mesh.expert": 4}, "mesh.expert is 4, but model.experts is 0"),
        ({"mesh.data": 4, "mesh.context": 2, "model.architecture": "lstm"}, "'context' cut the length into 2 .*'lstm'"),
        ({"train.global_batch": 4096}, "4096"),
    ):
        config = tiny.config(tmp_path)
        config.update_from_flattened_dict(change)
        with pytest.raises(ValueError, match=says):
            train.run(config)
    config = tiny.config(tmp_path)
    with config.unlocked():
        config.optimiser = 3
    with pytest.raises(ValueError, match=r"optimiser \(near \['optimizer'\]\)"):
        train.run(config)


def test_an_error_in_the_last_sample_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.language_model.LanguageModel.generate", lambda *_, **__: 1 / 0)
    config = tiny.config(tmp_path)
    config.train.steps = 3
    with pytest.raises(ZeroDivisionError):
        train.run(config)
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_tokeniser_larger_than_the_table_is_an_error(tmp_path):
    config = tiny.config(tmp_path)
    config.model.vocab_size = 100
    with pytest.raises(ValueError, match="model.vocab_size 100 is smaller than the tokeniser's vocabulary of 257"):
        train.run(config)
