"""What one reading of a source tells: its fingerprint and sizes, remembered while its files stay as they are."""

import dataclasses
import hashlib
import json
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.atomic import write_file
from data.config import SourceConfig
from data.errors import DataError
from data.json_text import parse_json
from data.sources.broken import Broken
from data.sources.documents import Document
from data.sources.files import left_out_of
from data.sources.read import State, check_settings, is_remote, look, read_documents, settings_read
from data.sources.remote import Unreachable
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
    origin: dict  # files, bytes and revision, see `data.sources.read.State`; broken records that were left out

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


def find_survey(source: SourceConfig, cache_dir: Path, report: Callable[[str], object]) -> Survey | State:
    """The survey of a source that is as it was when it was last read, else its state; no text is read.

    Surveys are kept in `cache_dir`/surveys under the stamp of their source; that of a remote source is also kept under
    its settings, and is used (and `report` told) if the network is unreachable. Raises DataError for a source that
    does not exist, or whose settings do not fit it.
    """
    try:
        state = look(source)
    except Unreachable as error:
        if not (last := _remembered(_last(source, cache_dir))):
            raise
        report(f"data: {error}; going on with what was read of it before, {last.num_documents:,} documents")
        return last
    check_settings(source, state.files)
    survey = _remembered(_file(cache_dir, state.stamp))
    if survey:
        _keep_last(source, survey, cache_dir)
    return survey or state


def survey_source(source: SourceConfig, state: State, cache_dir: Path, report: Callable[[str], object]) -> Survey:
    """Reads a source of this state to its end, and keeps the survey. Raises DataError for what cannot be read, also
    before it begins for a folder that cannot be written, and SourceChanged for a source that changes meanwhile.
    """
    check_cache(cache_dir)
    if left_out := left_out_of(source.path):
        counts = ", ".join(f"{number:,} {suffix}" for suffix, number in left_out.most_common(8))
        report(f"data: {source.path}: {len(state.files):,} files are read; not read, by suffix: {counts}")
    survey = _read(source, state.origin, cache_dir, report)
    if look(source).stamp != state.stamp:
        raise SourceChanged(source.path)
    _write(_file(cache_dir, state.stamp), source, survey)
    _keep_last(source, survey, cache_dir)
    return survey


def check_cache(cache_dir: Path) -> None:
    """Raises DataError for a folder that cannot be made or written."""
    try:
        (cache_dir / "surveys").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir / "surveys"):
            pass
    except OSError as error:
        raise DataError(f"data.cache_dir {str(cache_dir)!r} cannot be written ({error}): set it to another") from error


def forget(source: SourceConfig, cache_dir: Path) -> None:
    """So that the next survey reads the source, whatever its stamp."""
    _last(source, cache_dir).unlink(missing_ok=True)
    _file(cache_dir, look(source).stamp).unlink(missing_ok=True)


def _file(cache_dir: Path, stamp: str) -> Path:
    return cache_dir / "surveys" / f"{stamp}.json"


def _last(source: SourceConfig, cache_dir: Path) -> Path:
    key = hashlib.blake2b(repr(settings_read(source)).encode(), digest_size=16).hexdigest()
    return cache_dir / "surveys" / f"last-{key}.json"


def _keep_last(source: SourceConfig, survey: Survey, cache_dir: Path) -> None:
    if is_remote(source) and _remembered(_last(source, cache_dir)) != survey:
        with suppress(OSError):  # a cache that others own
            _write(_last(source, cache_dir), source, survey)


def _write(file: Path, source: SourceConfig, survey: Survey) -> None:
    content = json.dumps({"path": source.path, **dataclasses.asdict(survey)}, indent=2)
    write_file(file, (content + "\n").encode())


def _remembered(file: Path) -> Survey | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or no survey: read the source
        kept = parse_json(file.read_bytes())
        fields = {name: kept[name] for name in Survey.__annotations__}
        if all(type(value) is Survey.__annotations__[name] for name, value in fields.items()):
            return Survey(**fields)
    return None


def _read(source: SourceConfig, origin: dict, cache_dir: Path, report: Callable[[str], object]) -> Survey:
    hasher, said, broken = SourceHash(), time.monotonic(), Broken(source.skip_broken)
    documents = characters = num_bytes = highest = 0
    lowest = 2**64
    documents_read = read_documents(source, cache_dir=str(cache_dir), report=report, broken=broken)
    for document in hasher.passing(documents_read):
        documents += 1
        characters += len(document.text)
        num_bytes += text_bytes(document.text)
        number = split_number(document.text)
        lowest, highest = min(lowest, number), max(highest, number)
        if time.monotonic() - said > _SECONDS:
            said = time.monotonic()
            report(f"data: reading {source.path}: {documents:,} documents, {num_bytes / 1e6:,.0f} MB so far")
    return Survey(hasher.hexdigest(), documents, characters, num_bytes, lowest, highest, origin | broken.recorded())


def text_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
