import os
import subprocess
import sys

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.read import Document, provenance, read_documents, stamp


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


def test_stamp_of_a_dataset_is_unknown_and_of_a_missing_path_an_error(tmp_path):
    assert stamp(SourceConfig("hf:owner/name")) is None
    with pytest.raises(DataError, match="does not exist"):
        stamp(SourceConfig(str(tmp_path / "nowhere")))


def test_provenance_counts_files_and_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("four")
    (tmp_path / "b.md").write_text("é")
    source = SourceConfig(str(tmp_path), licence="CC0-1.0", language="en")
    known = {"path": str(tmp_path), "licence": "CC0-1.0", "language": "en"}
    assert provenance(source) == {**known, "num_files": 2, "num_bytes": 6}
    unknown = {"path": "hf:owner/name", "licence": "", "language": "", "split": "test"}
    source = SourceConfig("hf:owner/name", dataset_split="test")
    assert provenance(source) == {**unknown, "num_files": None, "num_bytes": None}


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
