"""`tessera data tokenizer` from the command line: trains, saves, judges, compares, and refuses with a reason."""

import json
import subprocess
import sys

import pytest
from absl import flags

from data.errors import DataError
from data.tokenizers.tokenizer import load_tokenizer
from launch import data_tokenizer

ENGLISH = "the quick brown fox jumps over the lazy dog, said the other fox of the quick dogs\n"
CHINESE = "你好世界，世界你好。\n"


def run(*arguments):
    values = flags.FlagValues()
    data_tokenizer.define(values)
    return data_tokenizer.run(values, values(["tokenizer", *map(str, arguments)])[1:])


@pytest.fixture
def texts(tmp_path):
    """The paths of an English and a Chinese text."""
    paths = tmp_path / "en.txt", tmp_path / "zh.txt"
    for path, text in zip(paths, (ENGLISH, CHINESE), strict=True):
        path.write_text(text * 30, encoding="utf-8")
    return paths


@pytest.mark.parametrize(
    ("kind", "flags_given", "vocab_size", "special"),
    [
        ("bpe", ["--symbols=<a>,<b>", "--sentinels=2"], 310, {"unk": 0, "eos": 1, "extra_0": 2, "extra_1": 3}),
        ("unigram", ["--nobyte_fallback", "--coverage=1"], 40, {"unk": 0, "eos": 1}),
        ("byte_bpe", [], 290, {"eos": 289}),
        (
            "wordpiece",
            ["--lowercase", "--nochinese_characters"],
            80,
            {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        ),
    ],
)
def test_each_kind_is_trained_saved_and_judged(texts, tmp_path, capsys, kind, flags_given, vocab_size, special):
    out = tmp_path / "new" / kind
    sources = [f"{path.stem}:{path}" for path in texts]
    assert run(*sources, f"--kind={kind}", f"--vocab_size={vocab_size}", f"--out={out}", *flags_given) == 0
    tokenizer = load_tokenizer(out)
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (vocab_size, special)
    printed = capsys.readouterr()
    assert f"{vocab_size} ids, fingerprint {tokenizer.fingerprint}" in printed.out
    rows = [line.split("|")[1].strip() for line in printed.out.split("\n") if line.startswith("|")]
    assert rows[2:] == ["en", "zh"]
    assert "judged by the text it is trained on" in printed.err and "trained on 2 documents" in printed.err


def test_settings_reach_the_training(texts, tmp_path):
    common = [texts[0], "--vocab_size=280"]
    for name, more in {"a": [], "b": ["--symbols=fox"], "c": ["--kind=byte_bpe", "--symbols=fox"]}.items():
        run(*common, f"--out={tmp_path / name}", *more)
    found = [load_tokenizer(tmp_path / name).encode("xfoxfox") for name in "abc"]
    assert found[0][-2:] != found[1][-2:] == [2, 2] and found[2][-2:] == [279, 279]


def test_comparison_on_held_out_text_needs_no_training(texts, tmp_path, capsys):
    run(texts[0], "--vocab_size=300", f"--out={tmp_path / 'bpe'}")
    capsys.readouterr()
    compare = ["--compare=byte", f"--compare={tmp_path / 'bpe'}", *(f"--held_out={p.stem}:{p}" for p in texts)]
    assert run(*compare) == 0
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in capsys.readouterr().out.split("\n") if "|" in line
    ]
    assert rows[2:] == [["en", "byte", "257"], ["en", "bpe", "300"], ["zh", "byte", "257"], ["zh", "bpe", "300"]]
    run(*compare, "--format=json")
    fields = json.loads(capsys.readouterr().out)
    assert fields["byte"]["languages"]["en"]["tokens"] == len(ENGLISH) * 30
    assert fields["bpe"]["languages"]["en"]["tokens"] < len(ENGLISH) * 15


def test_a_new_tokenizer_is_compared_with_others(texts, tmp_path, capsys):
    run(texts[0], "--vocab_size=300", f"--out={tmp_path / 'new'}", "--compare=byte", f"--held_out=zh:{texts[1]}")
    out = capsys.readouterr().out
    assert (
        out.startswith("sentencepiece, 300 ids") and "| zh       | new       |" in out and "| zh       | byte " in out
    )


def test_a_language_is_told_from_a_url():
    values = flags.FlagValues()
    data_tokenizer.define(values)
    values(["tokenizer", "--text_field=body"])
    named = ["zh:a/b.txt", "s3://bucket/x", "hf:owner/name", "en:hf:owner/name", "a:b"]
    sources = [data_tokenizer._source(values, name) for name in named]
    assert [(s.language, s.path) for s in sources] == [
        ("zh", "a/b.txt"),
        ("", "s3://bucket/x"),
        ("", "hf:owner/name"),
        ("en", "hf:owner/name"),
        ("", "a:b"),
    ]
    assert sources[0].text_field == "body"


def test_text_beyond_the_limit_is_left_out_and_said(texts, monkeypatch, capsys):
    monkeypatch.setattr(data_tokenizer, "_JUDGED_CHARACTERS", 200)
    run("--compare=byte", f"--held_out=en:{texts[0]}", "--document_separator=\n", "--format=json")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["byte"]["languages"]["en"]["documents"] == 3
    assert "en: judged by the first 3 documents, 243 characters; the rest of en:" in printed.err


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            ["TEXT", "--kind=byte-bpe", "--out=x"],
            ValueError,
            "no kind of tokenizer 'byte-bpe': did you mean 'byte_bpe'",
        ),
        (["TEXT", "--kind=zzz", "--out=x"], ValueError, "'zzz': bpe, unigram, byte_bpe, wordpiece are trained"),
        (["TEXT"], ValueError, "--out=FOLDER is needed"),
        (["TEXT", "--out=."], DataError, "exists already: remove it, or give another --out"),
        (["TEXT", "--out=TEXT/a/b"], DataError, "would lie in the file .*en.txt: give another --out"),
        (["TEXT", "--out=x", "--lowercase"], ValueError, "--lowercase would change nothing in bpe"),
        (
            ["TEXT", "--out=x", "--kind=byte_bpe", "--nobyte_fallback"],
            ValueError,
            "--byte_fallback would change nothing",
        ),
        (["TEXT", "--out=x", "--vocab_size=100"], DataError, "a vocabulary of 100 ids is too small"),
        (["TEXT", "--out=x", "--symbols=a,,b"], DataError, "symbol 2 of 3, '', is empty"),
        (["TEXT", "--out=x", "--symbols=a,a"], DataError, "symbol 2 of 2, 'a', is given twice"),
        (["TEXT", "--out=x", "--held_out=/no/such"], DataError, "'/no/such' does not exist"),
        (["TEXT", "--out=x", "--compare=/no/such"], DataError, "'/no/such' does not exist"),
        (["/no/such", "--out=x"], DataError, "'/no/such' does not exist"),
        (["--compare=byte"], ValueError, "give a source to train on, or --compare and --held_out"),
        (["--compare=byte", "--compare=byte", "--held_out=TEXT"], ValueError, "names a tokenizer twice: byte, byte"),
        (["--compare=byte", "--held_out=TEXT", "--vocab_size=9"], ValueError, "--vocab_size would change nothing"),
    ],
)
def test_mistakes_are_told_before_training(texts, tmp_path, monkeypatch, arguments, error, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        run(*(argument.replace("TEXT", str(texts[0])) for argument in arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["en.txt", "zh.txt"]


def test_help_wakes_nothing_heavy():
    code = (
        "import sys; from absl import flags; from launch import data_tokenizer as d; d.define(flags.FlagValues()); "
        "heavy = {'jax', 'numpy', 'tokenizers', 'sentencepiece'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
