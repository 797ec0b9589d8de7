"""Training of each family as a user starts it: whole runs of tiny configs, asked afterwards, resumed, refused."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import tessera
from data.loader import BatchLoader
from evaluation.encoder import Encoder
from evaluation.language_model import LanguageModel
from evaluation.sequence_to_sequence import SequenceToSequence
from launch import train
from tests import tiny
from train.console import Console
from train.records import read_metrics

STEPS = 12
T5 = {
    "model.architecture": "encoder_decoder",
    "model.positions": "relative",
    "model.norm": "rms",
    "model.bias": "none",
    "model.num_layers": 1,
    "train.sample_prompts": ("abc<extra_0>",),
}
FAMILIES = {
    "masked_lm": {
        "model.architecture": "encoder",
        "model.head": "masked_lm",
        "objective.name": "masked_lm",
        "train.sample_prompts": ("ab<mask>",),
    },
    "span_corruption": T5 | {"objective.name": "span_corruption"},
    "ul2": T5 | {"objective.name": "ul2", "train.sample_prompts": ()},
    "prefix_lm": {"objective.name": "prefix_lm", "objective.label_smoothing": 0.1, "train.sample_prompts": ("ab",)},
    "lstm": {"model.architecture": "lstm", "train.sample_prompts": ("ab",)},
    "ngram": {
        "model.architecture": "ngram",
        "model.ngram_order": 3,
        "train.sample_prompts": ("ab",),
        "train.eval_sequences": 0,
    },
}
CLASSES = {"masked_lm": Encoder, "span_corruption": SequenceToSequence, "ul2": SequenceToSequence}


def config_of(folder, name):
    config = tiny.config(folder)
    config.model.num_layers = 1
    config.train.update(steps=STEPS, eval_every=STEPS // 2, eval_sequences=16)
    config.checkpoint.every_steps = STEPS
    config.update_from_flattened_dict(FAMILIES[name])
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """name -> the folder of its finished run; each is trained once."""
    folders = {}

    def folder(name):
        if name not in folders:
            made, lines, console = tmp_path_factory.mktemp(name), [], Console()
            console.say = lambda text="": lines.append(text)
            assert train.run(config_of(made, name), console=console) == train.DONE
            (made / "said.txt").write_text("\n".join(lines))
            folders[name] = made
        return folders[name] / "run"

    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_learns_and_can_be_asked(trained, name, capsys):
    run = trained(name)
    records = read_metrics(run)
    if name == "ngram":
        assert len(records) == 1 and 1 < records[0]["eval/loss"] < np.log(8)  # eight letters and blanks
    else:
        assert [record["step"] for record in records] == list(range(1, STEPS + 1))
        size = json.loads((run / "config.json").read_text())["model"]["vocab_size"]
        assert records[0]["loss"] == pytest.approx(np.log(size), rel=0.1)
        assert records[-1]["loss"] < records[0]["loss"] - 1
        assert records[-1]["eval/loss"] < records[STEPS // 2 - 1]["eval/loss"]
    assert ("eval/bits_per_byte" in records[-1]) == (name in ("prefix_lm", "lstm", "ngram"))
    lm = tessera.load(run)
    assert type(lm) is CLASSES.get(name, LanguageModel)
    # The same command again.
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.glob("*.*")}
    assert train.run(config_of(run.parent, name)) == train.DONE
    assert "is complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before


@pytest.mark.parametrize("name", ["masked_lm", "span_corruption", "prefix_lm", "lstm", "ngram"])
def test_samples_are_what_the_finished_run_says(trained, name):
    run = trained(name)
    lm, (prompt,) = tessera.load(run), FAMILIES[name]["train.sample_prompts"]
    (text,) = lm.complete([prompt], max_tokens=8, temperature=0.8, seed=0)
    step = 1 if name == "ngram" else STEPS
    assert (run / "samples.md").read_text() == f"## Step {step}\n\n```\n{text}\n```\n\n"


def test_a_run_without_prompts_has_no_samples(trained):
    run = trained("ul2")
    assert not (run / "samples.md").exists()
    assert "samples      none: train.sample_prompts is empty" in (run.parent / "said.txt").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("masked_lm", '.fill("ab<mask>"))'),
        ("span_corruption", '.fill("abc<extra_0>", max_tokens=50))'),
        ("ul2", '.fill("a <extra_0>", max_tokens=50))'),
        ("lstm", '.generate("ab", max_tokens=50))'),
        ("ngram", "after 1 step, "),
        ("ngram", "a table of "),
    ],
)
def test_a_run_ends_with_what_to_do_next(trained, name, says):
    assert says in (trained(name).parent / "said.txt").read_text()


def test_the_tokeniser_of_a_run_has_the_ids_of_its_objective(trained):
    bert, t5 = tessera.load(trained("masked_lm")), tessera.load(trained("ul2"))
    assert bert.config.vocab_size == bert.tokenizer.vocab_size == 257 + 4
    assert t5.config.vocab_size == t5.tokenizer.vocab_size == 257 + 1 + 100 + 3  # pad, sentinels, modes
    assert t5.config.decoder_start_id == t5.tokenizer.special_ids["pad"]
    assert [text for text, _ in bert.fill("abc<mask>", top=1)[0]] != [""]


def test_a_masked_run_that_was_stopped_goes_on_as_if_it_was_not(trained, tmp_path, monkeypatch):
    """What is masked is a function of the seed and the example: parameters and losses are bit-equal."""
    iterate = BatchLoader.iterate

    def interrupted(self, start_step):
        for step, batch in enumerate(iterate(self, start_step), start_step):
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "iterate", interrupted)
        assert train.run(config_of(tmp_path, "masked_lm")) == train.START_AGAIN
    assert len(read_metrics(tmp_path / "run")) == 7
    assert train.run(config_of(tmp_path, "masked_lm")) == train.DONE
    broken, whole = tmp_path / "run", trained("masked_lm")
    pairs = zip(*(jax.tree.leaves(jax.device_get(tessera.load(run).params)) for run in (broken, whole)), strict=True)
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)
    losses = [[record["loss"] for record in read_metrics(run)] for run in (broken, whole)]
    assert losses[0] == losses[1] and len(set(losses[0])) == STEPS


def test_the_scores_of_an_ngram_run_are_those_of_its_logits(trained):
    """Windows of 32 targets over the whole held-out text, the last tenth, which ends with an end of document."""
    run = trained("ngram")
    lm, text = tessera.load(run), (run.parent / "corpus.txt").read_bytes()
    ids = np.array([*text[int(len(text) * 0.9) :], 256])
    nats = []
    for start in range(0, len(ids) - 1, 32):
        window = ids[start : start + 33]
        logits = lm.logits([[*window[:-1], *[0] * (33 - len(window))]])[0, : len(window) - 1].astype(np.float64)
        nats.extend(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(window) - 1), window[1:]])
    (record,) = read_metrics(run)
    assert len(nats) == len(ids) - 1
    assert record["eval/loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert record["eval/perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert record["eval/bits_per_byte"] == pytest.approx(np.sum(nats) / np.log(2) / (len(nats) - 1), rel=1e-5)
    assert record["step"] == 1 and record["tokens"] == int(len(text) * 0.9) + 1


def test_counting_that_could_not_be_scored_is_done_again(tmp_path, monkeypatch):
    config = config_of(tmp_path, "ngram")
    with monkeypatch.context() as patch:
        patch.setattr("launch.count.held_out_scores", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.run(config)
    assert train.run(config) == train.DONE
    assert len(read_metrics(tmp_path / "run")) == 1 and (tmp_path / "run" / "samples.md").exists()


def test_a_prompt_that_cannot_be_answered_is_found_before_counting(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.count.count_ngrams", lambda *_: pytest.fail("counted"))
    config = config_of(tmp_path, "ngram")
    config.data.tokenizer = "char"
    config.train.sample_prompts = ("abZ",)
    with pytest.raises(ValueError, match="train.sample_prompts: character 'Z' .* at position 2 is not among"):
        train.run(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mesh.data": 8}, "mesh.data is 8: an n-gram model is counted and scored on one device, use 1"),
        ({"mesh.context": 0}, "mesh.context is 0: an n-gram model"),
        ({"mesh.fsdp": -1}, "mesh data=-1, fsdp=-1: sizes are positive, and at most one is -1"),
        ({"mesh.slices": 2}, "mesh.slices is 2: it must divide the 1 devices, or be -1"),
    ],
)
def test_a_mesh_that_means_nothing_to_counting_is_refused(tmp_path, changes, says):
    config = config_of(tmp_path, "ngram")
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=says):
        train.run(config)
    assert not (tmp_path / "run").exists()


MISMATCHES = {
    "masked_lm of a decoder": (
        {"objective.name": "masked_lm"},
        "'masked_lm' trains encoder with head 'masked_lm': model.architecture is 'decoder' with head 'lm'",
    ),
    "causal_lm of an encoder": (
        FAMILIES["masked_lm"] | {"objective.name": "causal_lm"},
        "'causal_lm' trains decoder or gru or lstm or ngram or rnn with head 'lm': model.architecture is 'encoder'",
    ),
    "masked_lm without its head": (
        FAMILIES["masked_lm"] | {"model.head": "pooler"},
        "trains encoder with head 'masked_lm': model.architecture is 'encoder' with head 'pooler'",
    ),
    "span_corruption of a decoder": ({"objective.name": "span_corruption"}, "trains encoder_decoder with head 'lm'"),
    "prefix_lm of an lstm": (FAMILIES["lstm"] | {"objective.name": "prefix_lm"}, "trains decoder with head 'lm'"),
    "masked_lm of an n-gram model": (
        FAMILIES["ngram"] | {"objective.name": "masked_lm"},
        "objective.name is 'masked_lm': an n-gram model has causal_lm",
    ),
}


@pytest.mark.parametrize(("change", "says"), MISMATCHES.values(), ids=MISMATCHES)
def test_an_objective_that_the_architecture_cannot_learn_is_refused(tmp_path, change, says):
    config = tiny.config(tmp_path)
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=says):
        train.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "prompt", "says"),
    [
        ("masked_lm", "abc", "a prompt needs a <mask> and at most 32 tokens: 'abc'"),
        ("span_corruption", "<mask>", "the text has <mask>, for which this tokeniser has no id"),
        ("ul2", "<extra_100>", "the text has <extra_100>, for which this tokeniser has no id"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_found_before_training(tmp_path, monkeypatch, name, prompt, says):
    monkeypatch.setattr("launch.program.Program.compile", lambda self: pytest.fail("compiled"))
    config = config_of(tmp_path, name)
    config.train.sample_prompts = (prompt,)
    with pytest.raises(ValueError, match=f"train.sample_prompts: {says}"):
        train.run(config)


@pytest.fixture
def generate(trained, capsys):
    """Runs `tessera generate` on the run of a family: exit code, stdout, stderr."""

    def command(name, *arguments):
        run = trained(name)
        capsys.readouterr()
        code = tessera.main(["generate", f"--run={run}", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_generate_fills_the_masks_of_an_encoder(generate, trained):
    lm = tessera.load(trained("masked_lm"))
    first, second = lm.complete(["ab<mask>", "<mask>c"], max_tokens=1, temperature=0.0, seed=0)
    assert generate("masked_lm", "--prompt=ab<mask>") == (0, f"{first}\n", "")
    assert generate("masked_lm", "--prompt=ab<mask>", "--prompt=<mask>c") == (0, f"{first}\n\n{second}\n", "")
    code, out, err = generate("masked_lm", "--prompt=ab")
    assert code == 78 and out == "" and "'ab' has no <mask> to fill" in err


def test_generate_shows_the_answers_of_an_encoder_decoder(generate, trained):
    lm = tessera.load(trained("span_corruption"))
    answer = lm.generate("ab<extra_0>", max_tokens=6, temperature=0.8)
    assert generate("span_corruption", "--prompt=ab<extra_0>", "--max_tokens=6") == (
        0,
        f"ab<extra_0>\n-> {answer}\n",
        "",
    )
    code, out, _ = generate("span_corruption", "--prompt=ab", "--max_tokens=6", "--num_beams=2", "--num_samples=2")
    found = lm.generate("ab", max_tokens=6, num_beams=2, num_samples=2, details=True)
    expected = [f"--- sample {n} of 2 (score {c.score:.4f})\nab\n-> {c.text}\n" for n, c in enumerate(found, 1)]
    assert code == 0 and out == "\n".join(expected)


def test_generate_continues_by_counts(generate, trained):
    lm = tessera.load(trained("ngram"))
    text = lm.generate("ab", max_tokens=60, temperature=0.8, seed=3)
    assert generate("ngram", "--prompt=ab", "--max_tokens=60", "--seed=3") == (0, f"ab{text}\n", "")
    assert set(text) <= set("abcdefgh \ufffd")
