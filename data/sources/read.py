"""Where text comes from: built in, files and folders here or behind a URL, Hugging Face datasets. One line names it."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.config import SourceConfig
from data.errors import DataError
from data.sources import hub_datasets, remote, standard_library
from data.sources.documents import Document
from data.sources.files import File, find_files
from data.sources.formats import read_file

__all__ = ["Document", "provenance", "read_documents", "stamp"]

BUILT_IN = {
    standard_library.SOURCES: standard_library.library_sources,
    standard_library.DOCSTRINGS: standard_library.library_docstrings,
}
_READING = 1  # raised where the same files come to be read differently, so that no stamp outlives it


def read_documents(
    source: SourceConfig, *, cache_dir: str = "~/.cache/tessera", report: Callable[[str], object] | None = None
) -> Iterator[Document]:
    """The documents of a source, one at a time, always in the same order: files sorted by name, then as in the file.

    `source.path` is one of
    - "python-stdlib": the `.py` sources of the installed standard library, `pydoc_data/topics.py` (the language
      reference) among them; without tests, character tables, site-packages, empty files and files not in UTF-8;
    - "python-docstrings": the docstrings of the same files, one a document;
    - a file: .jsonl, .csv, .tsv (with a header row) and .parquet are records, the text in `text_field`; anything else
      is UTF-8 text. All but .parquet may be compressed (.gz, .zst), as in "a.jsonl.zst";
    - a folder: every such file and every .md, .py and .txt file below it; names that start with "." are left out;
    - a glob ("**" crosses folders): every file it matches;
    - a URL of one of these ("https://…", "gs://…", "s3://…"): each file is fetched once, into `cache_dir`, before it
      is read; `report` gets a line about each;
    - "hf:OWNER/NAME" or "hf:OWNER/NAME:CONFIG": the `dataset_split` of a Hugging Face dataset, streamed.

    A text file is one document, or, with a `document_separator`, one document between each two separators (the
    separator itself, and documents of no characters, are dropped). Bytes are kept as they are: line ends too. A
    record's id is its `id_field`; without one, file and line (of Parquet: row).

    Empty texts are an error, not skipped, except empty `.py` files in a folder or glob, which mark packages.

    Raises DataError, before the first document for a missing path, else when the bad place is reached.
    """
    if hub_datasets.is_dataset(source.path):
        return hub_datasets.read_dataset(source)
    files = _files(source)
    if source.path in BUILT_IN:
        return BUILT_IN[source.path](files)
    return _documents(source, files, cache_dir, report)


def stamp(source: SourceConfig) -> str | None:
    """A digest that stays while nothing has changed since it was last taken, without reading any text.

    It covers the settings of the source and the names, sizes and times of its files (behind a URL: what the server
    tells of their versions; built in: also Python's version). None for Hugging Face datasets, which do not tell. A
    file rewritten with the same size and time of change looks the same to it. Raises DataError as `read_documents`.
    """
    if hub_datasets.is_dataset(source.path):
        return None
    python = sys.version if source.path in BUILT_IN else ""
    files = [(file.place, file.id, file.size, file.version) for file in _files(source)]
    return hashlib.blake2b(repr((_READING, source, python, files)).encode(), digest_size=16).hexdigest()


def provenance(source: SourceConfig) -> dict[str, Any]:
    """What is recorded of where a text came from; counts and bytes (as stored) are None where they are not known."""
    known: dict[str, Any] = {"path": source.path, "licence": source.licence, "language": source.language}
    if hub_datasets.is_dataset(source.path):
        return {**known, "split": source.dataset_split, "num_files": None, "num_bytes": None}
    sizes = [file.size for file in _files(source)]
    num_bytes = None if None in sizes else sum(size or 0 for size in sizes)
    return {**known, "num_files": len(sizes), "num_bytes": num_bytes}


def _files(source: SourceConfig) -> list[File]:
    if source.path in BUILT_IN:
        return standard_library.library_files()
    if remote.is_url(source.path):
        return remote.list_files(source.path)
    return find_files(source.path, known=tuple(BUILT_IN))


def _documents(
    source: SourceConfig, files: list[File], cache_dir: str, report: Callable[[str], object] | None
) -> Iterator[Document]:
    count = 0
    for file in files:
        path = remote.fetch(file, cache_dir, report) if remote.is_url(source.path) else Path(file.place)
        for document in read_file(path, file, source):
            count += 1
            yield document
    if count == 0:
        path = f"data.path {source.path!r}"
        raise DataError(f"{path} has no text: {len(files)} file(s), 0 documents of 1 character or more")
