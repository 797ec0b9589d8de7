"""Row 22: a data worker dies, a record is corrupt: an error that names it, soon; what is whole again goes on."""

import json

import pytest

from data.cleaning.pipeline import clean
from data.config import SourceConfig
from data.corpus import prepare
from data.errors import DataError
from data.sources.read import read_documents
from launch.experiment import read
from tests import tiny
from tests.reliability import harness


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_which_goes_on(tmp_path):
    """Row 22."""
    folder = harness.write(tmp_path / "one", {"data.workers": 2})
    code, said = harness.run(folder, FAULT="step:7:killworker")
    assert code == 75, said
    assert "a process that prepares batches (data.workers) has died: pid " in said and "exit code -9" in said, said
    code, said = harness.run(folder)
    assert code == 0 and "resuming after step" in said, said
    harness.assert_same_run(folder / "run", harness.here(folder, **{"data.workers": 0}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8: byte 0xe9 at offset 3"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n', r"a\.jsonl:2 is not UTF-8: byte 0xe9 at offset 29"),
        ("a.csv", b"text\none\ncaf\xe9\n", r"a\.csv:3 is not UTF-8: byte 0xe9 at offset 12"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "tw', r"a\.jsonl:2: not JSON \(Unterminated string"),
    ],
)
def test_a_source_with_a_broken_record_names_file_and_place(name, content, says, tmp_path):
    """Row 22."""
    (tmp_path / name).write_bytes(content)
    config = tiny.config(tmp_path)
    config.data.path = str(tmp_path / name)
    with pytest.raises(DataError, match=says):
        prepare(read(config).data)


SKIPPED = {
    "a.txt": (b"one|caf\xe9|two|three|\xff|four", ["a.txt#0", "a.txt#2", "a.txt#3", "a.txt#5"]),
    "a.jsonl": (
        b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "two"}\n{"text": "three"}\n{"text": "tw\n{"text": "four"}\n',
        ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "a.jsonl:6"],
    ),
    "a.csv": (  # a broken byte inside a cell of two lines takes the whole row, and nothing else
        b'n,text\n1,one\n2,"caf\xe9\nau lait"\n3,two\n4,three\n5\n6,four\n',
        ["a.csv:2", "a.csv:5", "a.csv:6", "a.csv:8"],
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_broken_records_are_skipped_where_asked_and_counted(name, tmp_path):
    """Row 22."""
    content, ids = SKIPPED[name]
    (tmp_path / name).write_bytes(content)
    config = tiny.config(tmp_path)
    config.data.update(path=str(tmp_path / name), tokenizer="byte", held_out=0.5, held_out_by="tail")
    config.data.document_separator = "|" if name == "a.txt" else ""
    said: list[str] = []
    config.data.skip_broken = 1
    with pytest.raises(DataError, match=r"one broken record more than the 1 of data.skip_broken(.|\n)*not UTF-8: byte"):
        prepare(read(config).data, said.append)
    config.data.skip_broken = 2
    source = read(config).data.parts[""].source
    texts = ["one", "two", "three", "four"]
    assert [(d.id, d.text) for d in read_documents(source)] == list(zip(ids, texts, strict=True))
    for _ in range(2):  # also where nothing is read again
        said.clear()
        corpus = prepare(read(config).data, said.append)
        assert any("2 broken record(s) skipped, as data.skip_broken allows" in line for line in said), said
        assert sum(str(tmp_path / name) in line and "not UTF-8: byte 0xe9" in line for line in said) == 1
        recorded = json.loads((corpus.train.folder / "manifest.json").read_text())["provenance"]
        assert recorded["num_skipped"] == len(recorded["first_skipped"]) == 2
    clean([source], tmp_path / "clean")
    manifest = json.loads((tmp_path / "clean/manifest.json").read_text())
    assert (manifest["documents_in"], manifest["sources"][0]["num_skipped"]) == (4, 2)
    (tmp_path / name).write_bytes(content.replace(b"caf\xe9", b"cafe"))
    assert prepare(read(config).data, said.append).fingerprint != corpus.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"te\xe9xt\none\n", r"a\.csv:1 is not UTF-8"),
        ("a.csv", b'text\n"one"x\ntwo\n', r"a\.csv:2: this row cannot be read as CSV"),
        ("a.jsonl.gz", b"\x1f\x8b", r"a\.jsonl\.gz is cut off"),
    ],
)
def test_a_file_that_cannot_be_read_on_is_no_broken_record(name, content, says, tmp_path):
    """Row 22."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(read_documents(SourceConfig(str(tmp_path / name), skip_broken=9)))
