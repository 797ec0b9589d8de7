"""How a file becomes documents: text, JSON lines, CSV and TSV, Parquet; as it is, or compressed by gzip or zstd.

Files are streamed: what sits in memory is about one document (of a Parquet file: 256, a page, and a mebibyte of each
column that is read).
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data.config import SourceConfig
from data.errors import DataError
from data.sources.broken import Broken
from data.sources.documents import Document, document_of_record, missing_field
from data.sources.files import File, format_of

_CHUNK = 2**16  # bytes read at once
_ZSTD_CHUNK = 2**10  # few, as zstd unpacks all it is given, and a byte can hold 30,000
_PARQUET_ROWS = 256  # read at once
_PARQUET_BYTES = 2**20  # of a column, read at once
_LONGEST_CELL = 2**31 - 1  # of CSV, in characters; Python's own limit is 131,072


def read_file(path: Path, file: File, source: SourceConfig, broken: Broken) -> Iterator[Document]:
    """The documents of one file, in its order; `path`: where its bytes are, `file`: what it is called.

    Raises DataError, where it is reached, for what is malformed: with the place, what is there, and what to do. A
    record that is malformed may be left out, as `broken` says; a header, or a file that cannot be read on, may not.
    """
    kind = format_of(path.name)
    if kind == ".parquet":
        return _parquet(path, file, source, broken)
    contents = _not_empty(_chunks(path, file.place), file.place)
    if kind in (".jsonl", ".ndjson"):
        return _jsonl(contents, file, source, broken)
    if kind in (".csv", ".tsv"):
        return _table(contents, file, source, broken, "\t" if kind == ".tsv" else ",")
    return _text(contents, file, source, broken)


def _text(contents: Iterator[bytes], file: File, source: SourceConfig, broken: Broken) -> Iterator[Document]:
    if source.score_field:
        raise DataError(
            f"{file.place} is text, which has no field {source.score_field!r}: set data.score_field='', or give "
            ".jsonl, .csv, .tsv or .parquet files"
        )
    if not source.document_separator:
        whole = b"".join(contents)
        with broken:
            yield Document(file.id, _decoded(whole, file.place, 0))
        return
    # Bytes are split, not characters: in UTF-8 no character's bytes are inside those of others.
    for number, (offset, part, ended) in enumerate(_split(contents, source.document_separator.encode("utf-8"))):
        if part:
            whole = not ended and number == 0  # a file without a separator keeps its name
            with broken:
                yield Document(file.id if whole else f"{file.id}#{number}", _decoded(part, file.place, offset))


def _jsonl(contents: Iterator[bytes], file: File, source: SourceConfig, broken: Broken) -> Iterator[Document]:
    faults: list[DataError] = []
    for number, line in enumerate(_lines(contents, file.place, faults), 1):
        place = f"{file.place}:{number}"
        with broken:
            _raise_first(faults)
            yield document_of_record(_object(line, place, source), place, f"{file.id}:{number}", source)


def _object(line: str, place: str, source: SourceConfig) -> dict[str, Any]:
    try:
        record = json.loads(line.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        why = why if line.strip() else "blank line"
        raise DataError(f"{place}: not JSON ({why}): {line.strip()[:60]!r}") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(f"{place}: a JSON {kind}, where an object with the field {source.text_field!r} is read")
    return record


def _table(
    contents: Iterator[bytes], file: File, source: SourceConfig, broken: Broken, delimiter: str
) -> Iterator[Document]:
    csv.field_size_limit(_LONGEST_CELL)  # for the whole process: Python has no other way
    faults: list[DataError] = []  # of the lines of a row, which the reader takes one by one
    rows = csv.reader(_lines(contents, file.place, faults), delimiter=delimiter, strict=True)
    header: list[str] = []
    first_line = 1  # of a row, which may go over many
    try:
        for row in rows:
            place, id = f"{file.place}:{first_line}", f"{file.id}:{first_line}"
            if header:
                with broken:
                    _raise_first(faults)
                    yield document_of_record(_row(row, header, place), place, id, source, typed=False)
            else:
                _raise_first(faults)
                header = _header(row, source, place)
            first_line = rows.line_num + 1
    except csv.Error as error:
        # Not one broken record: where a quote is missing, nobody knows where the next row begins.
        _raise_first(faults)
        raise DataError(
            f"{file.place}:{first_line}: this row cannot be read as {'TSV' if delimiter != ',' else 'CSV'} ({error}): "
            'a cell with quotes or line ends is written in quotes, and its own quotes twice ("")'
        ) from error


def _header(row: list[str], source: SourceConfig, place: str) -> list[str]:
    header = [row[0].removeprefix("\ufeff"), *row[1:]] if row else []  # spreadsheets write a byte order mark
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{place}: the header row has {', '.join(map(repr, twice))} more than once: rename all but one")
    _check_columns(header, source, place)
    return header


def _check_columns(columns: list[str], source: SourceConfig, place: str) -> None:
    for setting in ("text_field", "score_field"):
        name = getattr(source, setting)
        if name and name not in columns:
            raise missing_field(name, setting, columns, place)


def _row(row: list[str], header: list[str], place: str) -> dict[str, str]:
    if len(row) != len(header):
        there = f"{len(row)} cell(s)" if row else "a blank line"
        raise DataError(f"{place}: {there}, where the header row has {len(header)} ({', '.join(header)[:60]})")
    return dict(zip(header, row, strict=True))


def _parquet(path: Path, file: File, source: SourceConfig, broken: Broken) -> Iterator[Document]:
    import pyarrow.parquet

    with _opened(path, file.place) as raw:
        try:
            # By default all bytes of a row group are read at once, which may be the whole file.
            table = pyarrow.parquet.ParquetFile(raw, buffer_size=_PARQUET_BYTES, pre_buffer=False)
            columns = table.schema_arrow.names
            _check_columns(columns, source, file.place)
            kind = table.schema_arrow.field(source.text_field).type
            if str(getattr(kind, "value_type", kind)) not in ("string", "large_string", "string_view"):
                raise DataError(f"{file.place}: column {source.text_field!r} is of type {kind}, not string")
            wanted = {source.text_field, source.id_field, source.score_field}
            wanted = [name for name in columns if name in wanted]
            number = 0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=wanted):
                for row in zip(*batch.columns, strict=True):
                    number += 1
                    place = f"{file.place}:{number}"
                    with broken:
                        record = {name: _python(cell, name, place) for name, cell in zip(wanted, row, strict=True)}
                        yield document_of_record(record, place, f"{file.id}:{number}", source)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file.place} cannot be read as Parquet: {error}: copy or download it again") from error


def _python(cell, name: str, place: str):
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: column {name!r} is not UTF-8 at byte {error.start} ({error.reason})") from error


def _lines(contents: Iterator[bytes], place: str, faults: list[DataError]) -> Iterator[str]:
    """Lines with a line feed after each; only line feeds end them, so U+2028 and the like stay inside.

    Of a line that is not UTF-8 the error is added to `faults`: who reads on decides whether it is raised.
    """
    for number, (offset, line, _) in enumerate(_split(contents, b"\n"), 1):
        try:
            text = _decoded(line, f"{place}:{number}", offset)
        except DataError as error:
            faults.append(error)
            text = line.decode("utf-8", "surrogateescape")
        yield text + "\n"


def _raise_first(faults: list[DataError]) -> None:
    if faults:
        first = faults[0]
        faults.clear()
        raise first


def _split(contents: Iterator[bytes], separator: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Where each part starts, the part, and whether a separator ended it; nothing after a last one is no part."""
    rest, offset, searched = bytearray(), 0, 0
    for chunk in contents:
        rest += chunk
        start = 0
        while (end := rest.find(separator, max(start, searched))) >= 0:
            yield offset + start, bytes(rest[start:end]), True
            start = end + len(separator)
        del rest[:start]
        offset += start
        searched = max(0, len(rest) - len(separator) + 1)  # so that a long part is not searched again and again
    if rest:
        yield offset, bytes(rest), False


def _not_empty(contents: Iterator[bytes], place: str) -> Iterator[bytes]:
    empty = True
    for chunk in contents:
        empty = empty and not chunk
        yield chunk
    if empty:
        raise DataError(f"{place} is empty (0 bytes): remove it, or give it text")


def _chunks(path: Path, place: str) -> Iterator[bytes]:
    """The bytes of a file, unpacked. Raises DataError for one that is cut off or damaged."""
    read = {".gz": _gzip, ".zst": _zstd}.get(path.suffix.lower(), _plain)
    with _opened(path, place) as raw:
        try:
            yield from read(raw)
        except EOFError as error:
            raise DataError(f"{place} is cut off: it ends inside compressed data; copy or download it again") from error
        except (OSError, zlib.error) as error:
            raise DataError(f"{place} cannot be read ({error}): copy or download it again") from error


def _plain(raw: IO[bytes]) -> Iterator[bytes]:
    while chunk := raw.read(_CHUNK):
        yield chunk


def _gzip(raw: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(raw, "rb") as unpacked:
        while chunk := unpacked.read(_CHUNK):
            yield chunk


def _zstd(raw: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    # Windows of up to 2 GiB, as `zstd --long=31` writes them and published corpora come.
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    try:
        while chunk := raw.read(_ZSTD_CHUNK):
            while chunk:  # a file may be many frames, one after another
                if frame is None or frame.eof:
                    frame = unpacker.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error  # as gzip says it
    if frame is not None and not frame.eof:
        raise EOFError


def _opened(path: Path, place: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}") from error


def _decoded(content: bytes, place: str, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, content[error.start]
        raise DataError(f"{place} is not UTF-8: byte 0x{byte:02x} at offset {at} ({error.reason})") from error
