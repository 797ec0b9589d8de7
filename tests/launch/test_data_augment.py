"""`tessera data augment` as a user calls it."""

import json
from types import SimpleNamespace

import pytest
from absl import flags

from data.errors import DataError
from data.tokenizers.tokenizer import ByteTokenizer
from evaluation.encoder import Encoder
from evaluation.language_model import LanguageModel
from launch import data_augment, translation


def call(*arguments: str) -> int:
    values = flags.FlagValues()
    data_augment.define(values)
    return data_augment.run(values, values(["tessera", *arguments])[1:])


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source.jsonl"
    lines = [
        {"name": "a", "body": "one two three four 你好", "stars": 2},
        {"name": "b", "body": "five six", "stars": 1},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_writes_documents_and_their_copies(source, tmp_path, capsys):
    out = tmp_path / "new" / "out.jsonl"
    fields = ("--text_field=body",)
    assert call(str(source), "--transforms=token_masking:1", "--copies=2", f"--out={out}", *fields) == 0
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["text"] for record in records[:2]] == ["one two three four 你好", "[MASK] " * 4 + "[MASK][MASK]"]
    assert [record["id"].split("#")[1:] for record in records] == [[], ["aug1"], ["aug2"]] * 2
    assert records[1]["transform"] == "token_masking:1.0:[MASK]" and records[1]["seed"] == 0
    assert "2 documents as they are, 4 copies by token_masking:1, seed 0" in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]


def test_the_same_seed_writes_the_same_bytes(source, tmp_path):
    outs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        call(
            str(source), "--transforms=swap:0.5", f"--seed={seed}", f"--out={out}", "--text_field=body", "--nooriginal"
        )
    first, second, third = (out.read_bytes() for out in outs)
    assert first == second != third
    assert first.count(b"\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transforms=swap:0.1", "--out=x.jsonl"], "one source is needed, 0 are given"),
        (["SOURCE", "--transforms=swap:0.1"], "is no name of a .jsonl file"),
        (["SOURCE", "--transforms=swap:0.1", "--out=x.txt"], "is no name of a .jsonl file"),
        (["SOURCE", "--transforms=swap:0.1", "--out=SOURCE"], "exists already"),
        (["SOURCE", "--out=x.jsonl"], "neither --transforms nor --back_translate says anything"),
        (["SOURCE", "--out=x.jsonl", "--back_translate=a"], "--back_translate names 1 models: two are needed"),
        (["SOURCE", "--out=x.jsonl", "--back_translate=a,b", "--prompt={}"], "--prompt is needed twice, each with {}"),
        (
            ["SOURCE", "--out=x.jsonl", "--transforms=swap:0.1", "--temperature=0", "--prompt={}"],
            "--prompt, --temperature would change nothing without --back_translate",
        ),
    ],
)
def test_flags_that_say_too_little(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*(argument.replace("SOURCE", str(source)) for argument in arguments))


@pytest.mark.parametrize("argument", ["--seed=-3", "--copies=0"])
def test_numbers_below_the_least_are_refused_with_the_flag(source, argument):
    with pytest.raises(flags.IllegalFlagValueError, match=f"flag {argument}"):
        call(str(source), "--transforms=swap:0.1", "--out=x.jsonl", argument)


class Model:
    """Answers with its name around a text, or by nothing where there is a 5; what it was asked is in `calls`."""

    def __init__(self, name):
        self.name, self.calls = name, []
        self.config, self.tokenizer = SimpleNamespace(max_length=14), ByteTokenizer()

    def generate(self, texts, **options):
        self.calls.append((list(texts), options))
        return [f" {self.name}({text})" if "5" not in text else " " for text in texts]


class DecoderModel(Model, LanguageModel):
    pass


def load_models(monkeypatch, kind):
    models = {}
    monkeypatch.setattr(translation, "load", lambda name: models.setdefault(name, kind(name)))
    return models


def test_back_translation_by_two_models(tmp_path, monkeypatch, capsys):
    models = load_models(monkeypatch, Model)
    monkeypatch.setattr(translation, "BATCH", 4)
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    text = "A b.\nC d! No 5? E? F? G? Too long for it."
    source.write_text(json.dumps({"text": text}))
    call(str(source), "--back_translate=t,b", "--prompt=x {}", "--prompt={}", f"--out={out}", "--seed=2", "--copies=2")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    there, back = models["t"].calls, models["b"].calls
    assert [texts for texts, _ in there[:2]] == [["x A b.", "x C d!", "x No 5?", "x E?"], ["x F?", "x G?"]]
    assert [texts for texts, _ in back[:2]] == [["t(x A b.)", "t(x C d!)", "t(x E?)", "t(x F?)"], ["t(x G?)"]]
    expected = "b(t(x A b.))\nb(t(x C d!)) No 5? b(t(x E?)) b(t(x F?)) b(t(x G?)) Too long for it."
    assert [record["text"] for record in records] == [text, expected, expected]
    assert records[1]["transform"] == "back_translation:t:b"
    assert [options["max_tokens"] for _, options in there] == [128] * 4
    seeds = [options["seed"] for _, options in there]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]  # of a copy
    printed = capsys.readouterr().out
    assert "2 copies by back_translation:t:b, seed 2" in printed and "4 times a sentence stayed as it is" in printed


def test_the_answer_of_a_decoder_is_in_its_context(monkeypatch):
    load_models(monkeypatch, DecoderModel)
    translator = translation.Translator("t", prompt="{}", max_tokens=10, temperature=0.0)
    assert translator(["abc", "abcd"], 0) == ["t(abc)", ""] and translator.failures == 1


def test_transforms_follow_the_back_translation(source, tmp_path, monkeypatch):
    load_models(monkeypatch, Model)
    out = tmp_path / "out.jsonl"
    call(str(source), "--back_translate=t,b", "--transforms=token_masking:1", f"--out={out}", "--text_field=body")
    assert json.loads(out.read_text().splitlines()[3])["text"] == "[MASK]([MASK]([MASK] [MASK]))"


def test_an_encoder_does_not_translate(source, tmp_path, monkeypatch):
    monkeypatch.setattr(translation, "load", lambda name: Encoder.__new__(Encoder))
    with pytest.raises(ValueError, match="t is an encoder, which writes no text"):
        call(str(source), "--back_translate=t,b", f"--out={tmp_path / 'out.jsonl'}")


def test_a_bad_source_leaves_no_file(source, tmp_path):
    with pytest.raises(DataError, match="no field 'text'"):
        call(str(source), "--transforms=swap:0.1", f"--out={tmp_path / 'out.jsonl'}")
    assert [path.name for path in tmp_path.iterdir()] == ["source.jsonl"]
