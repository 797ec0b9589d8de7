"""Lines, tables and JSON of a task's files, each with its place, "file:line", for errors."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError, missing_path

_LONGEST_CELL = 2**31 - 1  # of CSV, in characters; Python's own limit is 131,072
_PARTS = re.compile(r"(.*)\{([^{},]*),([^{},]*)\}(.*)", re.DOTALL)


def existing(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        raise missing_path("task data", str(path))
    return place


def text_of(file: Path) -> str:
    """The UTF-8 text of a file, less a byte order mark. Raises DataError with the line of what is not UTF-8."""
    content = existing(file).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}: {error.reason})") from error


def lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """(place, line) of each line, without its end; empty ones too."""
    file = existing(path)
    for number, line in enumerate(text_of(file).removesuffix("\n").split("\n"), 1):
        yield f"{file}:{number}", line.removesuffix("\r")


def cells(path: str | Path, counts: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of each line of a table with tabs; DataError if their number is not in `counts`."""
    for place, line in lines(path):
        row = line.split("\t")
        if len(row) not in counts:
            wanted = " or ".join(map(str, counts))
            raise DataError(f"{place}: {len(row)} column(s) between tabs, not {wanted}: {line[:60]!r}")
        yield place, row


def csv_rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of each row of a CSV file, the header too; the place is the row's last line."""
    csv.field_size_limit(_LONGEST_CELL)  # for the whole process: Python has no other way
    file = existing(path)
    reader = csv.reader(io.StringIO(text_of(file), newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield f"{file}:{reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not CSV: {error}") from error


def csv_records(path: str | Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, record) of each row below the header, which has `names` among its columns."""
    rows = csv_rows(path)
    return _records(path, rows, names)


def tab_records(path: str | Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """As `csv_records`, of a table with tabs and no quotes."""
    return _records(path, ((place, line.split("\t")) for place, line in lines(path)), names)


def _records(
    path: str | Path, rows: Iterator[tuple[str, list[str]]], names: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    _, header = next(rows, ("", []))
    if missing := [name for name in names if name not in header]:
        raise DataError(f"{path}:1: no column {missing[0]!r} in the header {header}")
    for place, row in rows:
        if len(row) != len(header):
            raise DataError(f"{place}: {len(row)} cells, where the header has {len(header)}: {header}")
        yield place, dict(zip(header, row, strict=True))


def json_file(path: str | Path) -> Any:
    file = existing(path)
    try:
        return json.loads(text_of(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise DataError(f"{file}: not JSON that can be read: {error}") from error


def json_records(path: str | Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of each line of a JSONL file."""
    for place, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            why = why if line.strip() else "blank line"
            raise DataError(f"{place}: not JSON ({why}): {line.strip()[:60]!r}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: a JSON {type(record).__name__}, not an object")
        yield place, record


def field(record: Any, name: str, kind: type, place: str) -> Any:
    """record[name], of type `kind`. Raises DataError with the place, and what is there instead."""
    if not isinstance(record, dict) or name not in record:
        there = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{place}: no field {name!r}; there: {there or 'none'}")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{place}: field {name!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def parallel(path: str | Path) -> Iterator[tuple[str, str, str]]:
    """(place, source, target) of two files, line by line; the path names both, as in "train.{en,de}".

    Raises DataError with both numbers where the files do not have equally many lines.
    """
    parts = _PARTS.fullmatch(str(path))
    if not parts:
        raise DataError(f"{str(path)!r} must name two files, as in 'train.{{en,de}}': the source, then the target")
    before, first, second, after = parts.groups()
    files = [f"{before}{name}{after}" for name in (first, second)]
    sides = [list(lines(file)) for file in files]
    if len(sides[0]) != len(sides[1]):
        raise DataError(f"{files[0]} has {len(sides[0])} lines, {files[1]} {len(sides[1])}: they must be parallel")
    for (place, source), (_, target) in zip(*sides, strict=True):
        yield place, source, target
