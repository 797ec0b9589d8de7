"""Where text comes from: built in, files and folders here or behind a URL, Hugging Face datasets. One line names it."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import SourceConfig
from data.errors import DataError
from data.sources import hub_datasets, remote, standard_library
from data.sources.broken import Broken
from data.sources.documents import Document
from data.sources.files import File, find_files, is_text
from data.sources.formats import read_file

__all__ = ["Document", "State", "check_settings", "look", "provenance", "read_documents", "stamp"]

BUILT_IN = {
    standard_library.SOURCES: standard_library.library_sources,
    standard_library.DOCSTRINGS: standard_library.library_docstrings,
}
_READING = 2  # raised where the same files come to be read differently, so that no stamp outlives it


def read_documents(
    source: SourceConfig,
    *,
    cache_dir: str = "~/.cache/tessera",
    report: Callable[[str], object] = lambda _: None,
    broken: Broken | None = None,
) -> Iterator[Document]:
    """The documents of a source, one at a time, always in the same order: files sorted by name, then as in the file.

    `source.path` is one of
    - "python-stdlib": the `.py` sources of the installed standard library, `pydoc_data/topics.py` (the language
      reference) among them; without tests, character tables, site-packages, empty files and files not in UTF-8;
    - "python-docstrings": the docstrings of the same files, one a document;
    - a file: .jsonl (or .ndjson), .csv, .tsv (with a header row) and .parquet are records, the text in `text_field`;
      anything else is UTF-8 text, but for suffixes that say it is none (.json, .pdf, .zip and more), which are errors.
      All but .parquet may be compressed (.gz, .zst), as in "a.jsonl.zst";
    - a folder: every such file and every .md, .py and .txt file below it; names that start with "." are left out;
    - a glob ("**" crosses folders): every file it matches;
    - a URL of one of these ("https://…", "gs://…", "s3://…"): each file is fetched once, into `cache_dir`, before it
      is read; `report` gets a line about each;
    - "hf:OWNER/NAME" or "hf:OWNER/NAME:CONFIG": the `dataset_split` of a Hugging Face dataset, streamed.

    A text file is one document, or, with a `document_separator`, one document between each two separators (the
    separator itself, and documents of no characters, are dropped; one that is in none of the files is an error). Bytes
    are kept as they are: line ends too. A record's id is its `id_field`; without one, file and line (of Parquet: row).

    Empty texts are an error, not skipped, except empty `.py` files in a folder or glob, which mark packages.

    Up to `source.skip_broken` records that cannot be read are left out; who asks for more than the others gives
    `broken`, in which they are counted.

    Raises DataError, before the first document for a missing path, else when the bad place is reached.
    """
    broken = broken or Broken(source.skip_broken)
    if hub_datasets.is_dataset(source.path):
        return hub_datasets.read_dataset(source, broken)
    files = _files(source)
    if source.path in BUILT_IN:
        return BUILT_IN[source.path](files)
    return _documents(source, files, cache_dir, report, broken)


@dataclass(frozen=True)
class State:
    """What can be told of a source without reading any text."""

    # Stays while nothing has changed. It covers the settings of the source but for what is only recorded, and the
    # names, sizes and times of its files (behind a URL: what the server tells of their versions; built in: also
    # Python's version; of a dataset its revision). A file rewritten with the same size and time looks the same to it.
    stamp: str
    files: list[File]  # none are known of a dataset
    origin: dict[str, Any]  # num_files, num_bytes (as stored) and revision, None where they are not known


def look(source: SourceConfig) -> State:
    """The present state of a source. Raises DataError as `read_documents`, and Unreachable where nothing answers."""
    if hub_datasets.is_dataset(source.path):
        revision = hub_datasets.revision(source)
        return State(_digest(source, revision), [], {"num_files": None, "num_bytes": None, "revision": revision})
    files = _files(source)
    python = sys.version if source.path in BUILT_IN else ""
    sizes = [file.size for file in files]
    num_bytes = None if None in sizes else sum(size or 0 for size in sizes)
    origin = {"num_files": len(files), "num_bytes": num_bytes, "revision": None}
    listed = [(file.place, file.id, file.size, file.version) for file in files]
    return State(_digest(source, python, listed), files, origin)


def _digest(source: SourceConfig, *seen: object) -> str:
    return hashlib.blake2b(repr((_READING, settings_read(source), *seen)).encode(), digest_size=16).hexdigest()


def is_remote(source: SourceConfig) -> bool:
    """Whether a network stands between."""
    return hub_datasets.is_dataset(source.path) or remote.is_url(source.path)


def settings_read(source: SourceConfig) -> SourceConfig:
    """The source without the settings that are recorded and not read."""
    return dataclasses.replace(source, language="", licence="")


def stamp(source: SourceConfig) -> str:
    return look(source).stamp


def provenance(source: SourceConfig, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is recorded of where a text came from: all settings of the source, and its `State.origin`."""
    return dataclasses.asdict(source) | (look(source).origin if origin is None else origin)


def check_settings(source: SourceConfig, files: Sequence[File]) -> None:
    """Raises DataError for a setting that is not as it is by default, and that nothing of the source would read."""
    of_records = {"text_field", "id_field", "score_field", "skip_broken"}
    if hub_datasets.is_dataset(source.path):
        kind, reads = "a dataset", of_records | {"dataset_split"}
    elif source.path in BUILT_IN:
        kind, reads = "built in", set()
    elif not any(map(is_text, files)):
        kind, reads = "records without text files", of_records
    elif all(map(is_text, files)):
        kind, reads = "text without records", {"document_separator", "skip_broken"}
    else:
        kind, reads = "files", of_records | {"document_separator"}
    recorded = {"path", "language", "licence"}
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name not in reads | recorded and value != field.default:
            raise DataError(
                f"data.{field.name}={value!r} would change nothing, as {source.path} is {kind}: set it to "
                f"{field.default!r}, or data.path to what was meant"
            )


def _files(source: SourceConfig) -> list[File]:
    if source.path in BUILT_IN:
        return standard_library.library_files()
    if remote.is_url(source.path):
        return remote.list_files(source.path)
    return find_files(source.path, known=tuple(BUILT_IN))


def _documents(
    source: SourceConfig, files: list[File], cache_dir: str, report: Callable[[str], object], broken: Broken
) -> Iterator[Document]:
    count, divided = 0, False
    for file in files:
        path = remote.fetch(file, cache_dir, report) if remote.is_url(source.path) else Path(file.place)
        for document in read_file(path, file, source, broken):
            count += 1
            divided = divided or (document.id != file.id and is_text(file))
            yield document
    if count == 0:
        path = f"data.path {source.path!r}"
        skipped = f", {broken.count} broken and skipped" if broken.count else ""
        raise DataError(f"{path} has no text: {len(files)} file(s), 0 documents of 1 character or more{skipped}")
    if source.document_separator and not divided and any(map(is_text, files)):
        raise _never_divided(source)


def _never_divided(source: SourceConfig) -> DataError:
    separator = source.document_separator
    hint = "look at one of them, or set it to ''"
    if "\\n" in separator:
        hint = "it has a backslash and the letter n, where a line end was meant: a shell writes one as $'\\n'"
    return DataError(f"data.document_separator {separator!r} is in no text file of {source.path}: {hint}")
