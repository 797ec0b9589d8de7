"""What one reading of a source tells: its fingerprint and sizes, remembered while its files stay as they are."""

import dataclasses
import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.atomic import write_file
from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.read import read_documents, stamp
from data.split import split_number, tail_start

_SECONDS = 10  # between two lines about a long reading


class SourceChanged(DataError):
    """A source that is not, or no longer, what its survey says."""

    def __init__(self, path: str):
        super().__init__(f"{path} changed while it was read: run again when nothing writes to it")


@dataclass(frozen=True)
class Survey:
    fingerprint: str  # changes with any byte, id, score or order of the documents
    num_documents: int
    num_characters: int
    num_bytes: int  # of the texts in UTF-8
    lowest: int  # of the documents' `split_number`
    highest: int

    def check_split(self, path: str, held_out: float, by: str) -> None:
        """Raises DataError where one side of the split would be empty; `path` is what it calls the source."""
        if by == "tail":
            start = tail_start(self.num_characters, held_out)
            if not 0 < start < self.num_characters:
                raise DataError(
                    f"a held_out of {held_out} leaves {start} of {self.num_characters} characters of {path} to train "
                    f"on and {self.num_characters - start} to hold out: both need 1 or more"
                )
            return
        if self.num_documents == 1:
            raise DataError(
                f"{path} is 1 document, which cannot be split by document: use held_out_by='tail', or set "
                "document_separator to the string between its documents"
            )
        none, all = self.lowest >= held_out * 2**64, self.highest < held_out * 2**64
        if none or all:
            raise DataError(
                f"with held_out {held_out}, {0 if none else self.num_documents} of {self.num_documents} documents of "
                f"{path} fall into the held-out split, and both splits need 1 or more: use held_out_by='tail', or "
                "another held_out"
            )


class SourceHash:
    """The fingerprint of documents, while they pass."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def passing(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Passes documents on. Lengths go in before ids and texts, so that no two corpora look the same."""
        update = self._hash.update
        for document in documents:
            id, text = document.id.encode("utf-8", "surrogatepass"), document.text.encode("utf-8")
            score = b"" if document.score is None else struct.pack("<d", document.score)
            update(struct.pack("<QQB", len(id), len(text), len(score)))
            update(id)
            update(text)
            update(score)
            yield document

    def hexdigest(self) -> str:
        """Of the documents that have passed so far."""
        return self._hash.hexdigest()


def survey_source(source: SourceConfig, cache_dir: Path, report: Callable[[str], object]) -> tuple[Survey, bool]:
    """The survey of a source, and whether it had to be read for it.

    It is kept in `cache_dir`/surveys under the `stamp` of the source: what has no stamp is read each time. Raises
    DataError for a source that cannot be read, and SourceChanged for one that changes meanwhile.
    """
    before = stamp(source)
    if before and (known := _remembered(_file(cache_dir, before))):
        return known, False
    survey = _read(source, cache_dir, report)
    if before:
        if stamp(source) != before:
            raise SourceChanged(source.path)
        (cache_dir / "surveys").mkdir(parents=True, exist_ok=True)
        content = json.dumps({"path": source.path, **dataclasses.asdict(survey)}, indent=2)
        write_file(_file(cache_dir, before), (content + "\n").encode())
    return survey, True


def forget(source: SourceConfig, cache_dir: Path) -> None:
    """So that the next survey reads the source, whatever its stamp."""
    if known := stamp(source):
        _file(cache_dir, known).unlink(missing_ok=True)


def _file(cache_dir: Path, stamp: str) -> Path:
    return cache_dir / "surveys" / f"{stamp}.json"


def _remembered(file: Path) -> Survey | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or no survey: read the source
        kept = json.loads(file.read_bytes())
        fields = {name: kept[name] for name in Survey.__annotations__}
        if all(type(value) is Survey.__annotations__[name] for name, value in fields.items()):
            return Survey(**fields)
    return None


def _read(source: SourceConfig, cache_dir: Path, report: Callable[[str], object]) -> Survey:
    hasher, said = SourceHash(), time.monotonic()
    documents = characters = num_bytes = highest = 0
    lowest = 2**64
    for document in hasher.passing(read_documents(source, cache_dir=str(cache_dir), report=report)):
        documents += 1
        characters += len(document.text)
        num_bytes += text_bytes(document.text)
        number = split_number(document.text)
        lowest, highest = min(lowest, number), max(highest, number)
        if time.monotonic() - said > _SECONDS:
            said = time.monotonic()
            report(f"data: reading {source.path}: {documents:,} documents, {num_bytes / 1e6:,.0f} MB so far")
    return Survey(hasher.hexdigest(), documents, characters, num_bytes, lowest, highest)


def text_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
