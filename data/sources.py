"""Where text comes from: the standard library's own source, text files, JSONL files, folders, globs."""

import glob
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from data.config import SourceConfig
from data.errors import DataError, missing_path

STANDARD_LIBRARY = "python-stdlib"
TEXT_SUFFIXES = (".md", ".py", ".txt")
FOLDER_SUFFIXES = (".jsonl", *TEXT_SUFFIXES)
# Installed beside the standard library without being its source; `encodings` is tables of characters, not text.
_NOT_SOURCE = {"encodings", "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    id: str  # unique in its corpus; for files, the path relative to the corpus' root, with "/"
    text: str  # never empty
    score: float | None = None  # what a curriculum sorts by, where the source has a score_field


def read_documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of a corpus, one at a time, always in the same (sorted) order.

    `source.path` is one of
    - "python-stdlib": the `.py` sources of the installed standard library, `pydoc_data/topics.py` (the language
      reference) among them; without tests, character tables, site-packages, empty files and files not in UTF-8;
    - a file: `.jsonl` has one JSON object a line, the text in `text_field`; anything else is UTF-8 text;
    - a folder: every .jsonl, .md, .py and .txt file below it; names that start with "." are left out;
    - a glob ("**" crosses folders): every file it matches.

    A text file is one document, or, with a `document_separator`, one document between each two separators (the
    separator itself, and documents of no characters, are dropped). Bytes are kept as they are: line ends too.

    Empty texts are an error, not skipped, except empty `.py` files in a folder or glob, which mark packages.

    Raises DataError, before the first document for a missing path, else when the bad place is reached.
    """
    path, text_field, document_separator = source.path, source.text_field, source.document_separator
    if path == STANDARD_LIBRARY:
        return _standard_library(Path(sysconfig.get_paths()["stdlib"]))
    return _documents_of_files(path, *_find_files(path), text_field, document_separator)


def _standard_library(root: Path) -> Iterator[Document]:
    for file in _files_below(root, (".py",), _NOT_SOURCE):
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few sources declare another encoding
        if text:
            yield Document(file.relative_to(root).as_posix(), text)


def _files_below(root: Path, suffixes: tuple[str, ...], left_out: set[str]) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in left_out and not name.startswith(".")]
        found += [Path(folder, n) for n in names if Path(n).suffix in suffixes and not n.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _find_files(path: str) -> tuple[Path, list[Path]]:
    """The folder that ids are relative to, and the files, sorted by id."""
    expanded = Path(path).expanduser()
    if expanded.is_file():
        if expanded.stat().st_size == 0:
            raise DataError(f"{expanded} is empty (0 bytes)")
        return expanded.parent, [expanded]
    if expanded.is_dir():
        files = _files_below(expanded, FOLDER_SUFFIXES, set())
        if not files:
            raise DataError(f"no file to read below {expanded.absolute()}: {', '.join(FOLDER_SUFFIXES)} are read")
        return expanded, [file for file in files if not _marks_package(file)]
    if glob.has_magic(path):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), expanded.parts))
        matches = (Path(match) for match in glob.glob(str(expanded), recursive=True))
        files = sorted((m for m in matches if m.is_file()), key=lambda file: file.relative_to(root).as_posix())
        if not files:
            raise DataError(f"the glob {path!r} matches no file (tried {expanded.absolute()})")
        return root, [file for file in files if not _marks_package(file)]
    raise missing_path("data.path", path, known=(STANDARD_LIBRARY,))


def _marks_package(file: Path) -> bool:
    return file.suffix == ".py" and file.stat().st_size == 0


def _documents_of_files(
    path: str, root: Path, files: list[Path], text_field: str, separator: str
) -> Iterator[Document]:
    count = 0
    for file in files:
        id = file.relative_to(root).as_posix()
        read = _jsonl(file, id, text_field) if file.suffix == ".jsonl" else _text(file, id, separator)
        for document in read:
            count += 1
            yield document
    if count == 0:
        raise DataError(f"data.path {path!r} has no text: {len(files)} file(s), 0 documents of 1 character or more")


def _text(file: Path, id: str, separator: str) -> Iterator[Document]:
    text = _decode(file.read_bytes(), file, 0)
    if not text:
        raise DataError(f"{file} is empty (0 bytes): remove it, or give it text")
    if not separator:
        yield Document(id, text)
        return
    for number, part in enumerate(text.split(separator)):
        if part:
            yield Document(f"{id}#{number}", part)


def _jsonl(file: Path, id: str, text_field: str) -> Iterator[Document]:
    offset = 0
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            yield _record(_decode(line, file, offset), f"{file}:{number}", f"{id}:{number}", text_field)
            offset += len(line)
    if offset == 0:
        raise DataError(f"{file} is empty (0 bytes): remove it, or give it text")


def _record(line: str, place: str, default_id: str, text_field: str) -> Document:
    try:
        record = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        why = "blank line" if not line.strip() else f"{error.msg} at column {error.colno}"
        raise DataError(f"{place}: not JSON ({why}): {line.strip()[:60]!r}") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{place}: a JSON {type(record).__name__}, where an object with the field {text_field!r} is read"
        )
    if text_field not in record:
        there = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{place}: no field {text_field!r}; fields there: {there}; set data.text_field")
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field {text_field!r} is a {type(text).__name__}, not a string")
    if not text:
        raise DataError(f"{place}: field {text_field!r} is empty: remove the record, or give it text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{place}: field {text_field!r} has half a surrogate pair ({found}) at {error.start}"
        ) from error
    return Document(str(record.get("id", default_id)), text)


def _decode(content: bytes, file: Path, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, content[error.start]
        raise DataError(f"{file} is not UTF-8: byte 0x{byte:02x} at offset {at} ({error.reason})") from error
