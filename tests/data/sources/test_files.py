import os

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.files import find_files, format_of, is_read, left_out_of
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
    refuses(tmp_path, ".csv, .jsonl, .ndjson, .parquet, .tsv, .md, .py, .txt", ".gz or .zst")
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


def test_links_are_followed_as_a_glob_does_and_loops_end(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "corpus" / "b.txt").write_text("b")
    (tmp_path / "corpus" / "sub" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "corpus" / "sub" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "self").symlink_to(".")
    assert [document.id for document in read(tmp_path / "corpus")] == ["b.txt", "sub/linked/a.txt"]
    (tmp_path / "real" / "back").symlink_to(tmp_path / "corpus")  # two folders, each in the other
    assert {"b.txt", "sub/linked/a.txt"} <= {document.id for document in read(tmp_path / "corpus")}


@pytest.mark.parametrize("name", ["gone.txt", "gone"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    refuses(tmp_path, str(tmp_path / name), "is a link to", str(tmp_path / "nowhere"))
    refuses(f"{tmp_path}/*", str(tmp_path / name), "is a link to")
    (tmp_path / name).rename(tmp_path / "gone.png")  # would not be read
    assert read(tmp_path) == [Document("a.txt", "a")]


@pytest.mark.parametrize("name", ["a.json", "a.pdf", "a.tar.gz", "a.txt.xz", "a.ZIP", "a.docx"])
def test_a_format_that_is_not_read_is_no_text(tmp_path, name):
    (tmp_path / name).write_text("[1]")
    for path in (tmp_path / name, f"{tmp_path}/*", f"file://{tmp_path}/{name}", f"file://{tmp_path}/*"):
        refuses(path, name, "is not read", ".jsonl")


def test_ndjson_is_jsonl(tmp_path):
    (tmp_path / "a.ndjson").write_text('{"text": "one"}\n')
    assert read(tmp_path) == [Document("a.ndjson:1", "one")]


def test_what_a_folder_has_besides_is_counted(tmp_path):
    for name in ("a.txt", "b.json", "sub/c.json", "d.tar.gz", "README", ".hidden", ".git/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert left_out_of(str(tmp_path)) == {".json": 2, ".tar": 1, "README": 1}
    assert not left_out_of(str(tmp_path / "a.txt")) and not left_out_of("python-stdlib")


def test_a_cleaned_folder_is_not_read_with_its_report(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.jsonl").write_text('{"text": "one"}')
    (tmp_path / "report.md").write_text("# Report")
    (tmp_path / "manifest.json").write_text('{"settings": {}}')
    refuses(tmp_path, f"give its documents, {tmp_path / 'documents'}")
    assert len(read(tmp_path / "documents")) == 1
    (tmp_path / "manifest.json").write_text("[]")  # of something else
    assert len(read(tmp_path)) == 2
