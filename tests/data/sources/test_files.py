import os

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.files import find_files, format_of, is_read
from data.sources.read import read_documents


def read(path, **options):
    return list(read_documents(SourceConfig(str(path), **options)))


def refuses(path, *words):
    with pytest.raises(DataError) as error:
        read(path)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def test_folder_reads_its_formats_and_keeps_bytes_as_they_are(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes("\ufeffline\r\nend\n".encode())
    (tmp_path / "a.md").write_bytes("# é".encode())
    (tmp_path / "sub" / "__init__.py").touch()
    (tmp_path / "sub" / "c.py").write_text("pass")
    (tmp_path / "sub" / "d.jsonl").write_text('{"text": "one"}\n{"text": "two", "id": 7}')
    (tmp_path / "e.csv").write_text("id,text\n,x")
    (tmp_path / "f.TSV").write_text("id\ttext\nnine\ty")
    (tmp_path / "g.json").write_text("not read")
    (tmp_path / "h.zip").write_text("not read")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("hidden")
    (tmp_path / ".a.txt").write_text("hidden")
    assert read(tmp_path) == [
        Document("a.md", "# é"),
        Document("b.txt", "\ufeffline\r\nend\n"),
        Document("e.csv:2", "x"),
        Document("nine", "y"),
        Document("sub/c.py", "pass"),
        Document("sub/d.jsonl:1", "one"),
        Document("7", "two"),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "read_in_a_folder"),
    [
        ("a.jsonl", ".jsonl", True),
        ("a.JSONL.GZ", ".jsonl", True),
        ("a.b.csv.zst", ".csv", True),
        ("a.parquet", ".parquet", True),
        ("a.json", ".json", False),
        ("a.gz", "", False),
        ("README", "", False),
        (".a.txt", ".txt", False),
    ],
)
def test_the_suffix_below_that_of_compression_is_the_format(name, kind, read_in_a_folder):
    assert (format_of(name), is_read(name)) == (kind, read_in_a_folder)


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


def test_missing_path_names_the_nearest(tmp_path):
    (tmp_path / "corpus.txt").write_text("a")
    refuses(tmp_path / "corpsu.txt", str(tmp_path / "corpsu.txt"), "did you mean", str(tmp_path / "corpus.txt"))
    (tmp_path / "texts").mkdir()
    refuses(tmp_path / "text" / "a.txt", "did you mean", str(tmp_path / "texts"))
    refuses("python_stdlib", "'python-stdlib'")
    refuses("python-docstring", "'python-docstrings'")


def test_folder_without_text_lists_what_is_read(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    refuses(tmp_path, ".csv, .jsonl, .md, .py, .txt, .parquet, .tsv", ".gz or .zst")
    (tmp_path / "__init__.py").touch()
    refuses(tmp_path, "has no text")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):  # as the system answers all but root
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refuses(tmp_path, str(tmp_path / "closed"), "Permission denied")


def test_a_file_has_its_size_and_time_of_change(tmp_path):
    (tmp_path / "a.txt").write_text("four")
    os.utime(tmp_path / "a.txt", ns=(5, 123_456_789_012_345_678))
    (file,) = find_files(str(tmp_path), ())
    assert (file.id, file.size, file.version) == ("a.txt", 4, "123456789012345678")
    assert file.place == str(tmp_path / "a.txt")
