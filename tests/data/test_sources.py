import json
import subprocess
import sys

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources import Document, _standard_library, read_documents


def read(path, **options):
    return list(read_documents(SourceConfig(str(path), **options)))


def refuses(path, *words, **options):
    with pytest.raises(DataError) as error:
        read(path, **options)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def test_standard_library_is_real_text_in_sorted_order():
    documents = read("python-stdlib")
    ids = [document.id for document in documents]
    assert ids == sorted(ids) and len(ids) == len(set(ids))
    assert len(ids) > 400 and sum(len(document.text) for document in documents) > 5_000_000
    assert {"json/decoder.py", "pydoc_data/topics.py", "tokenize.py"} <= set(ids)
    assert not [id for id in ids if {"site-packages", "test", "tests", "__pycache__"} & set(id.split("/"))]
    assert all(document.text for document in documents)


def test_standard_library_leaves_out_what_its_definition_says(tmp_path):
    for name in ("b.py", "a/z.py", "test/t.py", "a/tests/t.py", "site-packages/s.py", ".hidden/h.py", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "a" / "__init__.py").touch()
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9")
    assert list(_standard_library(tmp_path)) == [Document("a/z.py", "# a/z.py"), Document("b.py", "# b.py")]


def test_folder_reads_its_extensions_and_keeps_bytes_as_they_are(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes("\ufeffline\r\nend\n".encode())
    (tmp_path / "a.md").write_bytes("# é".encode())
    (tmp_path / "sub" / "__init__.py").touch()
    (tmp_path / "sub" / "c.py").write_text("pass")
    (tmp_path / "sub" / "d.jsonl").write_text('{"text": "one"}\n{"text": "two", "id": 7}')
    (tmp_path / "e.csv").write_text("not read")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("hidden")
    (tmp_path / ".a.txt").write_text("hidden")
    assert read(tmp_path) == [
        Document("a.md", "# é"),
        Document("b.txt", "\ufeffline\r\nend\n"),
        Document("sub/c.py", "pass"),
        Document("sub/d.jsonl:1", "one"),
        Document("7", "two"),
    ]


def test_one_file_of_any_name_is_text(tmp_path):
    (tmp_path / "notes.log").write_text("hello")
    assert read(tmp_path / "notes.log") == [Document("notes.log", "hello")]


def test_glob_matches_files_of_any_name_below_its_root(tmp_path):
    for name in ("x/1.log", "x/y/2.log", "x/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [document.id for document in read(f"{tmp_path}/**/*.log")] == ["x/1.log", "x/y/2.log"]
    assert [document.id for document in read(f"{tmp_path}/x/?.*")] == ["1.log", "3.txt"]
    refuses(f"{tmp_path}/x/*.md", "matches no file", str(tmp_path))


def test_separator_divides_text_files_and_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("one<|end|>two\n<|end|><|end|>three<|end|>")
    documents = read(tmp_path, document_separator="<|end|>")
    assert documents == [Document("a.txt#0", "one"), Document("a.txt#1", "two\n"), Document("a.txt#3", "three")]
    (tmp_path / "a.txt").write_text("<|end|><|end|>")
    refuses(tmp_path, "has no text", "1 file(s)", document_separator="<|end|>")


def test_jsonl_takes_the_field_it_is_told(tmp_path):
    lines = [{"body": "α\u2028β", "id": "first"}, {"body": "b"}]  # U+2028 ends a line for Python, not for JSONL
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    assert read(tmp_path / "a.jsonl", text_field="body") == [Document("first", "α\u2028β"), Document("a.jsonl:2", "b")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', ["a.jsonl:2", "not JSON", "column 13"]),
        ("", ["a.jsonl:2", "blank line"]),
        ("[1]", ["a.jsonl:2", "list", "'text'"]),
        ('{"body": "a", "title": "b"}', ["a.jsonl:2", "no field 'text'", "'body', 'title'", "data.text_field"]),
        ('{"text": 5}', ["a.jsonl:2", "is a int"]),
        ('{"text": ""}', ["a.jsonl:2", "is empty"]),
        ('{"text": "x\\ud800"}', ["a.jsonl:2", "\\ud800", "at 1"]),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + '\n{"text": "good"}\n')
    refuses(tmp_path / "a.jsonl", *words)


def test_missing_path_names_the_nearest(tmp_path):
    (tmp_path / "corpus.txt").write_text("a")
    refuses(tmp_path / "corpsu.txt", str(tmp_path / "corpsu.txt"), "did you mean", str(tmp_path / "corpus.txt"))
    (tmp_path / "texts").mkdir()
    refuses(tmp_path / "text" / "a.txt", "did you mean", str(tmp_path / "texts"))
    refuses("python_stdlib", "'python-stdlib'")


def test_missing_path_is_an_error_before_the_first_document(tmp_path):
    with pytest.raises(DataError):
        read_documents(SourceConfig(str(tmp_path / "nowhere")))


def test_invalid_utf8_names_file_and_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    refuses(tmp_path / "a.txt", "a.txt", "0xff", "offset 3")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xc3"}\n')
    refuses(tmp_path / "b.jsonl", "b.jsonl", "0xc3", "offset 24")


def test_empty_files_are_errors_that_name_them(tmp_path):
    (tmp_path / "good.txt").write_text("a")
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).touch()
        refuses(tmp_path / name, name, "0 bytes")
        refuses(tmp_path, name, "0 bytes")
        (tmp_path / name).unlink()


def test_folder_without_text_lists_what_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    refuses(tmp_path, ".jsonl, .md, .py, .txt")
    (tmp_path / "__init__.py").touch()
    refuses(tmp_path, "has no text")


def test_data_imports_neither_jax_nor_grain():
    code = (
        "import sys, data.corpus, data.loader, data.objectives\n"
        "print([m for m in ('jax', 'flax', 'grain', 'model', 'train') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
