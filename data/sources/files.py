"""Which files a path, a folder or a glob names."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from data.errors import DataError, missing_path

TEXT_SUFFIXES = (".md", ".py", ".txt")
FOLDER_SUFFIXES = (".csv", ".jsonl", *TEXT_SUFFIXES, ".parquet", ".tsv")  # what is read of a folder
COMPRESSED_SUFFIXES = (".gz", ".zst")  # may follow any of them but .parquet, which is compressed inside


@dataclass(frozen=True)
class File:
    """A file of a source, here or elsewhere."""

    id: str  # path relative to the root of the source, with "/"
    place: str  # path or URL, as errors name it
    size: int | None  # bytes; None: a server does not say
    version: str  # another one where the content may be another


def format_of(name: str) -> str:
    """The suffix that says how a file is read, without that of its compression: ".jsonl" for "a.jsonl.gz"."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def is_read(name: str) -> bool:
    """Whether a file of this name is read where it is found in a folder."""
    return format_of(name) in FOLDER_SUFFIXES and not name.startswith(".")


def nothing_to_read(place: str) -> DataError:
    """The error for a folder without a file that `is_read`."""
    suffixes = f"{', '.join(FOLDER_SUFFIXES)} are read, also with {' or '.join(COMPRESSED_SUFFIXES)} after it"
    return DataError(f"no file to read below {place}: {suffixes}")


def without_package_marks(files: list[File]) -> list[File]:
    """The files but for empty `.py` ones, which mark packages."""
    return [file for file in files if file.size != 0 or not file.id.endswith(".py")]


def find_files(path: str, known: tuple[str, ...]) -> list[File]:
    """The files of a file, folder or glob of this machine, sorted by id; `known` names would also have been a source.

    Empty `.py` files of a folder or glob are left out. Raises DataError where there is none.
    """
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return _described(expanded.parent, [expanded])
    if expanded.is_dir():
        files = files_below(expanded, FOLDER_SUFFIXES, set())
        if not files:
            raise nothing_to_read(str(expanded.absolute()))
    elif glob.has_magic(path):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), expanded.parts))
        files = _described(root, (Path(m) for m in glob.glob(str(expanded), recursive=True) if Path(m).is_file()))
        if not files:
            raise DataError(f"the glob {path!r} matches no file (tried {expanded.absolute()})")
    else:
        raise missing_path("data.path", path, known)
    return without_package_marks(files)


def files_below(root: Path, formats: tuple[str, ...], left_out: set[str]) -> list[File]:
    """The files of these formats below a folder; names that start with "." and folders `left_out` are not entered."""

    def refuse(error: OSError):
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name not in left_out and not name.startswith(".")]
        found += [Path(folder, name) for name in names if format_of(name) in formats and is_read(name)]
    return _described(root, found)


def _described(root: Path, paths: Iterable[Path]) -> list[File]:
    files = []
    for path in paths:
        stat = path.stat()
        files.append(File(path.relative_to(root).as_posix(), str(path), stat.st_size, str(stat.st_mtime_ns)))
    return sorted(files, key=lambda file: file.id)
