"""Which files a path, a folder or a glob names."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from data.errors import DataError, missing_path
from data.json_text import parse_json

TEXT_SUFFIXES = (".md", ".py", ".txt")
RECORD_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet", ".tsv")
FOLDER_SUFFIXES = (*RECORD_SUFFIXES, *TEXT_SUFFIXES)  # what is read of a folder
COMPRESSED_SUFFIXES = (".gz", ".zst")  # may follow any of them but .parquet, which is compressed inside
# Named one by one, a file of any other name is text; but nobody means the bytes of these.
NOT_TEXT = (
    ".7z",
    ".arrow",
    ".bin",
    ".bz2",
    ".doc",
    ".docx",
    ".epub",
    ".feather",
    ".json",
    ".lz4",
    ".npy",
    ".npz",
    ".pdf",
    ".pkl",
)
NOT_TEXT += (".pickle", ".rar", ".safetensors", ".sqlite", ".tar", ".tgz", ".xls", ".xlsx", ".xz", ".zip")


_IS_READ = f"{', '.join(FOLDER_SUFFIXES)} are read, also with {' or '.join(COMPRESSED_SUFFIXES)} after it"


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
    return DataError(f"no file to read below {place}: {_IS_READ}")


def to_read(files: list[File]) -> list[File]:
    """The files but for empty `.py` ones, which mark packages. Raises DataError for one that is `NOT_TEXT`."""
    for file in files:
        # By the names of files: a URL may have a query after the suffix.
        if format_of(file.id) in NOT_TEXT:
            raise DataError(
                f"{file.place} is not read, as it is {format_of(file.id)}: unpack or convert it; {_IS_READ}"
            )
    return [file for file in files if file.size != 0 or not file.id.endswith(".py")]


def is_text(file: File) -> bool:
    """Whether a file is read as text, and not as records."""
    return format_of(file.id) not in RECORD_SUFFIXES


def find_files(path: str, known: tuple[str, ...]) -> list[File]:
    """The files of a file, folder or glob of this machine, sorted by id; `known` names would also have been a source.

    Empty `.py` files of a folder or glob are left out. Raises DataError where there is none, and for those `NOT_TEXT`
    that are named by the path or glob.
    """
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return to_read(_described(expanded.parent, [expanded]))
    if expanded.is_dir():
        _check_not_cleaned(expanded)
        files = files_below(expanded, FOLDER_SUFFIXES, set())
        if not files:
            raise nothing_to_read(str(expanded.absolute()))
    elif glob.has_magic(path):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), expanded.parts))
        files = _described(root, (Path(m) for m in glob.glob(str(expanded), recursive=True) if not Path(m).is_dir()))
        if not files:
            raise DataError(f"the glob {path!r} matches no file (tried {expanded.absolute()})")
    else:
        raise missing_path("data.path", path, known)
    return to_read(files)


def files_below(root: Path, formats: tuple[str, ...], left_out: set[str]) -> list[File]:
    """The files of these formats below a folder; names that start with "." and folders `left_out` are not entered.

    Links are followed, but not to a folder that they are in. Raises DataError for one that leads nowhere, where it
    could be of a folder or of a file to read.
    """
    paths = _below(root, left_out)
    wanted = (path for path in paths if format_of(path.name) in formats or (not path.suffix and _is_broken(path)))
    return _described(root, wanted)


def left_out_of(path: str) -> Counter[str]:
    """How many files of each format a folder has that are not read; empty for all that is no folder of this machine."""
    folder = Path(path).expanduser()
    below = _below(folder, set()) if folder.is_dir() else ()
    return Counter(format_of(path.name) or path.name for path in below if format_of(path.name) not in FOLDER_SUFFIXES)


def _below(root: Path, left_out: set[str]) -> Iterator[Path]:
    """All files below a folder but those that start with ".", in no order."""

    def refuse(error: OSError):
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in left_out and not name.startswith(".") and not _is_loop(root, Path(folder, name))
        ]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _is_loop(root: Path, path: Path) -> bool:
    """Whether a path below `root` is a link to a folder that it is in: what is there has been seen."""
    above = list(path.parents)[: len(path.relative_to(root).parts)]  # the last is the root
    return path.is_symlink() and path.resolve() in {folder.resolve() for folder in above}


def _is_broken(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _check_not_cleaned(folder: Path) -> None:
    """Raises DataError for what `tessera data clean` wrote: only one folder in it is the documents."""
    try:
        manifest = parse_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(manifest, dict) and "settings" in manifest and (folder / "documents").is_dir():
        raise DataError(f"{folder} also holds the report of a cleaning: give its documents, {folder / 'documents'}")


def _described(root: Path, paths: Iterable[Path]) -> list[File]:
    files = []
    for path in paths:
        if _is_broken(path):
            raise DataError(f"{path} is a link to {os.readlink(path)}, which is not there: mend it or remove it")
        stat = path.stat()
        files.append(File(path.relative_to(root).as_posix(), str(path), stat.st_size, str(stat.st_mtime_ns)))
    return sorted(files, key=lambda file: file.id)
