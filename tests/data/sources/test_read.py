import os
import re
import subprocess
import sys

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.files import find_files
from data.sources.read import Document, check_settings, provenance, read_documents, stamp


def test_missing_path_is_an_error_before_the_first_document(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "*.txt", "memory://nowhere/a.txt", "hf:nonsense"):
        with pytest.raises(DataError):
            read_documents(SourceConfig(str(path)))


def test_a_document_of_a_source_is_the_one_of_data_documents():
    assert Document("a", "b") == Document("a", "b", None)


def change_content(folder):
    (folder / "a.txt").write_text("other text")


def change_time(folder):
    os.utime(folder / "a.txt", ns=(1, 1))


def add_file(folder):
    (folder / "b.txt").write_text("a")


def rename(folder):
    (folder / "a.txt").rename(folder / "c.txt")


@pytest.mark.parametrize("change", [change_content, change_time, add_file, rename])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_stamp_changes_with_names_sizes_and_times(tmp_path, change, scheme):
    (tmp_path / "a.txt").write_text("text")
    source = SourceConfig(f"{scheme}{tmp_path}")
    before = stamp(source)
    assert before is not None and stamp(source) == before
    change(tmp_path)
    assert stamp(source) != before


def test_stamp_changes_with_how_the_files_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    settings = [{}, {"document_separator": "x"}, {"text_field": "t"}, {"id_field": "i"}, {"score_field": "s"}]
    stamps = [stamp(SourceConfig(str(tmp_path), **changes)) for changes in settings]
    assert len(set(stamps)) == len(settings)


def test_stamp_of_what_is_built_in_changes_with_python(monkeypatch):
    sources, docstrings = (SourceConfig(path) for path in ("python-stdlib", "python-docstrings"))
    before = stamp(sources)
    assert before == stamp(sources) != stamp(docstrings)
    monkeypatch.setattr(sys, "version", "3.99")
    assert stamp(sources) != before


def test_stamp_of_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        stamp(SourceConfig(str(tmp_path / "nowhere")))


def test_stamp_stays_where_only_what_is_recorded_changes(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert stamp(SourceConfig(str(tmp_path), licence="MIT", language="en")) == stamp(SourceConfig(str(tmp_path)))


def test_provenance_is_all_settings_and_counts_files_and_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("four")
    (tmp_path / "b.md").write_text("é")
    settings = {"text_field": "t", "id_field": "i", "score_field": "s", "document_separator": "|"}
    settings |= {
        "path": str(tmp_path),
        "dataset_split": "train",
        "skip_broken": 0,
        "licence": "CC0-1.0",
        "language": "en",
    }
    assert provenance(SourceConfig(**settings)) == {**settings, "num_files": 2, "num_bytes": 6, "revision": None}


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("a.txt", {"text_field": "body"}),
        ("a.txt", {"id_field": "key"}),
        ("a.txt", {"score_field": "quality"}),
        ("a.txt", {"dataset_split": "test"}),
        ("b.jsonl", {"document_separator": "|"}),
        ("b.jsonl", {"dataset_split": "test"}),
        (".", {"dataset_split": "test"}),
        ("python-stdlib", {"document_separator": "|"}),
        ("python-docstrings", {"text_field": "body"}),
        ("python-stdlib", {"dataset_split": "test"}),
        ("python-stdlib", {"score_field": "quality"}),
        ("hf:owner/name", {"document_separator": "|"}),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(tmp_path, path, changes):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    files = find_files(str(tmp_path / path), ()) if (tmp_path / path).exists() else []
    source = SourceConfig(str(tmp_path / path) if files else path, **changes)
    ((name, value),) = changes.items()
    with pytest.raises(DataError, match=rf"data\.{name}='{re.escape(value)}' would change nothing.*{re.escape(path)}"):
        check_settings(source, files)
    check_settings(SourceConfig(source.path, language="en", licence="MIT"), files)


def test_a_setting_that_one_file_of_a_folder_reads_is_fine(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"body": "b"}')
    source = SourceConfig(str(tmp_path), text_field="body", id_field="key", score_field="s", document_separator="|")
    check_settings(source, find_files(str(tmp_path), ()))
    check_settings(SourceConfig("hf:owner/name", text_field="body", dataset_split="test"), [])


def test_a_separator_that_is_nowhere_is_refused_and_a_slip_explained(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("three")
    with pytest.raises(DataError, match=r"is in no text file .*a backslash and the letter n"):
        list(read_documents(SourceConfig(str(tmp_path), document_separator="\\n\\n")))
    with pytest.raises(DataError, match=r"'<end>' is in no text file .*set it to ''"):
        list(read_documents(SourceConfig(str(tmp_path), document_separator="<end>")))
    documents = list(read_documents(SourceConfig(str(tmp_path), document_separator="\n\n")))
    assert [document.id for document in documents] == ["a.txt#0", "a.txt#1", "b.txt"]
    (tmp_path / "a.txt").write_text("one\n\n")
    documents = read_documents(SourceConfig(str(tmp_path), document_separator="\n\n"))
    assert next(documents) == Document("a.txt#0", "one")


def test_importing_sources_loads_nothing_heavy():
    heavy = ("jax", "flax", "grain", "model", "train", "pyarrow", "pandas", "fsspec", "datasets", "zstandard")
    code = f"import sys, data.sources\nprint([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_data_imports_neither_jax_nor_grain():
    code = (
        "import sys, data.corpus, data.loader, data.objectives\n"
        "print([m for m in ('jax', 'flax', 'grain', 'model', 'train') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
