"""Whole documents in chunks that are cleaned one by one, and the compressed files they are kept in."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import SourceConfig
from data.sources.broken import Broken
from data.sources.read import Document, read_documents

LINES = ".jsonl.zst"


@dataclass(frozen=True)
class Chunk:
    """Some documents in a row of one source."""

    source: int  # index of the source
    number: int  # of the chunk in its source: 0, 1, ...
    documents: tuple[Document, ...]

    @property
    def name(self) -> str:
        """Sorts as the documents were read."""
        return f"{self.source:05d}-{self.number:06d}"

    @staticmethod
    def source_of(name: str) -> int:
        return int(name.split("-")[0])

    @property
    def digest(self) -> str:
        """Of ids and texts: tells whether a source still says what it said."""
        hash = hashlib.blake2b(digest_size=16)
        for document in self.documents:
            for part in (document.id.encode(errors="surrogatepass"), document.text.encode()):
                hash.update(len(part).to_bytes(8, "little") + part)
        return hash.hexdigest()


def read_chunks(
    source: SourceConfig, index: int, *, max_documents: int, max_bytes: int, broken: Broken | None = None
) -> Iterator[Chunk]:
    """The documents of a source in its order. A chunk is closed by the document that reaches one of the bounds."""
    held: list[Document] = []
    number = size = 0
    for document in read_documents(source, broken=broken):
        held.append(document)
        size += len(document.text.encode())
        if len(held) >= max_documents or size >= max_bytes:
            yield Chunk(index, number, tuple(held))
            held, number, size = [], number + 1, 0
    if held:
        yield Chunk(index, number, tuple(held))


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, compressed by zstd; no file where there is no record, since none may be empty."""
    import zstandard

    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if lines:
        # A file name that is not UTF-8 may be part of an id: its odd bytes become escapes of JSON.
        path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode(errors="backslashreplace")))


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """What `write_records` wrote."""
    import zstandard

    if path.exists():
        with zstandard.open(path, "rb") as file:
            for line in io.TextIOWrapper(file, encoding="utf-8", newline="\n"):
                yield json.loads(line)
