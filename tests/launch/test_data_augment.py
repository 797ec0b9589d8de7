"""`tessera data augment` as a user calls it."""

import json

import pytest
from absl import flags

from data.errors import DataError
from launch import data_augment


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
        (["SOURCE", "--out=x.jsonl"], "--transforms says nothing"),
    ],
)
def test_flags_that_say_too_little(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*(argument.replace("SOURCE", str(source)) for argument in arguments))


def test_a_bad_source_leaves_no_file(source, tmp_path):
    with pytest.raises(DataError, match="no field 'text'"):
        call(str(source), "--transforms=swap:0.1", f"--out={tmp_path / 'out.jsonl'}")
    assert [path.name for path in tmp_path.iterdir()] == ["source.jsonl"]
