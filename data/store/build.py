"""From documents to the token stores of both sides of a split: streaming, on all cores, and able to go on after a kill.

The work happens in a hidden sibling of the final folder. After each batch a journal there records the progress: the
number of documents and their hash, the length of each file and a digest of it. After a kill, the same call continues
there: earlier documents are read and hashed again, but not tokenised. The stores do not depend on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import locked, publish, remove_leftovers, write_file
from data.json_text import parse_json
from data.sources.documents import Document
from data.split import HELD_OUT, TRAIN
from data.store.format import MANIFEST
from data.store.store import open_store, verify_changed
from data.store.survey import SourceChanged, SourceHash, Survey, text_bytes
from data.store.writer import StoreWriter
from data.tokenizers.tokenizer import Tokenizer

JOURNAL = "journal.json"
BATCH_CHARACTERS = 4_000_000  # characters of text that are tokenised at once: enough to keep all cores busy
_DOCUMENT = 250  # characters that a document costs beside its text: bounds the documents of a batch
_SECONDS = 10  # between two lines of progress

Split = Callable[[Iterable[Document]], Iterator[tuple[str, Document]]]
Report = Callable[[str], object]


@dataclass(frozen=True)
class _Batch:
    """Pieces of the split corpus; a piece is a document, or the part of one on one side."""

    pieces: list[tuple[str, Document]]
    end: int  # pieces of the corpus up to the end of this batch
    hashed: str  # digest of the documents read by then


def build_stores(
    folder: Path,
    documents: Callable[[], Iterable[Document]],
    split: Split,
    tokenizer: Tokenizer,
    survey: Survey,
    *,
    name: str,
    provenance: dict[str, Any],
    has_scores: bool,
    report: Report,
) -> None:
    """Makes folder/train and folder/held_out, whole and verified, unless they are there (`is_built`).

    `documents()` reads the source from its beginning, `split` says on which side each document is. One process builds,
    others wait for it; `report` gets a line of progress, with `name`, every few seconds. Memory stays at some batches
    of 4 million characters, or at the longest document.

    Raises SourceChanged where the documents are not those of `survey`, and DataError where one cannot be tokenised.
    """
    with locked(folder, report):
        remove_leftovers(folder.parent)
        if is_built(folder):
            return
        if folder.is_dir():
            report(f"data: {folder} is not whole: building it again")
            shutil.rmtree(folder)
        work = folder.with_name(f".{folder.name}.building")
        try:
            writers, done = _begin(work, tokenizer, has_scores, report)
            progress = _Progress(report, name, survey, writers, done)
            _tokenise(work, documents(), split, tokenizer, survey, writers, done, progress)
        except SourceChanged:
            shutil.rmtree(work, ignore_errors=True)  # of documents that are no more
            raise
        for side, writer in writers.items():
            writer.finish(source_fingerprint=survey.fingerprint, provenance=provenance)
            verify_changed(open_store(work / side))  # remembered: sizes and times go along to the new name
        publish(work, folder)
        (folder / JOURNAL).unlink(missing_ok=True)  # last: a kill before it loses nothing


def is_built(folder: Path) -> bool:
    """Whether both sides are there; who deletes one, as errors about a damaged store advise, has both built again."""
    return all((folder / side / MANIFEST).is_file() for side in (TRAIN, HELD_OUT))


def _begin(
    work: Path, tokenizer: Tokenizer, has_scores: bool, report: Report
) -> tuple[dict[str, StoreWriter], dict[str, Any]]:
    """The writers of both sides, and the journal that they continue: empty where they begin anew."""
    journal = {}
    if (work / JOURNAL).is_file():
        try:
            journal = parse_json((work / JOURNAL).read_bytes())
            if type(journal["pieces"]) is not int or type(journal["hashed"]) is not str:
                raise ValueError("its journal holds other things")
            writers = {
                side: StoreWriter(work / side, tokenizer, side, has_scores=has_scores, state=journal["sides"][side])
                for side in (TRAIN, HELD_OUT)
            }
            return writers, journal
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            report(f"data: {work} is damaged ({error}): starting over")
    shutil.rmtree(work, ignore_errors=True)
    return {side: StoreWriter(work / side, tokenizer, side, has_scores=has_scores) for side in (TRAIN, HELD_OUT)}, {}


def _tokenise(
    work: Path,
    documents: Iterable[Document],
    split: Split,
    tokenizer: Tokenizer,
    survey: Survey,
    writers: dict[str, StoreWriter],
    done: dict[str, Any],
    progress: "_Progress",
) -> None:
    """Reading the next batch, tokenising this one and writing the one before happen at the same time."""
    hasher = SourceHash()
    pieces = split(hasher.passing(documents))

    def write(batch: _Batch, encoded: list[np.ndarray]) -> None:
        for side, writer in writers.items():
            mine = [at for at, (of, _) in enumerate(batch.pieces) if of == side]
            texts = [batch.pieces[at][1] for at in mine]
            size, scores = sum(text_bytes(document.text) for document in texts), [d.score for d in texts]
            writer.append([encoded[at] for at in mine], [document.id for document in texts], size, scores)
        state = {side: writer.state() for side, writer in writers.items()}
        journal = {"pieces": batch.end, "hashed": batch.hashed, "sides": state}
        write_file(work / JOURNAL, json.dumps(journal).encode())
        progress.say(batch.end)

    with ThreadPoolExecutor(1) as disk:
        written: Future[None] | None = None
        for batch in _ahead(_batches(pieces, hasher, done, progress.name)):
            encoded = tokenizer.encode_batch([document.text for _, document in batch.pieces])
            if written:
                written.result()
            written = disk.submit(write, batch, encoded)
        if written:
            written.result()
    if hasher.hexdigest() != survey.fingerprint:
        raise SourceChanged(progress.name)


def _batches(
    pieces: Iterable[tuple[str, Document]], hasher: SourceHash, done: dict[str, Any], name: str
) -> Iterator[_Batch]:
    """Batches of the pieces after those `done`. Raises SourceChanged if the latter are not what they were."""
    skip, batch, size, count = done.get("pieces", 0), [], 0, 0
    for count, (side, document) in enumerate(pieces, 1):
        if count <= skip:
            if count == skip and hasher.hexdigest() != done["hashed"]:
                raise SourceChanged(name)
            continue
        batch.append((side, document))
        size += len(document.text) + _DOCUMENT
        if size >= BATCH_CHARACTERS:
            yield _Batch(batch, count, hasher.hexdigest())
            batch, size = [], 0
    if batch:
        yield _Batch(batch, count, hasher.hexdigest())


def _ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The same batches; a thread reads the next one while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


class _Progress:
    """A line every few seconds: how much is tokenised, how fast, and how long the rest takes."""

    def __init__(
        self, report: Report, name: str, survey: Survey, writers: dict[str, StoreWriter], done: dict[str, Any]
    ):
        self.name = name
        self._report, self._survey, self._writers = report, survey, writers
        self._bytes, self._tokens = self._written()
        self._began = self._said = time.monotonic()
        if done:
            report(f"data: {name}: going on after {done['pieces']:,} documents, {self._bytes / 1e6:,.0f} MB")

    def _written(self) -> tuple[int, int]:
        writers = self._writers.values()
        return sum(writer.num_bytes for writer in writers), sum(writer.num_tokens for writer in writers)

    def say(self, pieces: int) -> None:
        now = time.monotonic()
        if now - self._said < _SECONDS:
            return
        self._said, seconds, whole = now, now - self._began, self._survey.num_bytes
        num_bytes, tokens = self._written()
        left = (whole - num_bytes) / max(1, num_bytes - self._bytes) * seconds
        self._report(
            f"data: {self.name}: {pieces:,} of {self._survey.num_documents:,} documents, {num_bytes / 1e6:,.0f} of "
            f"{whole / 1e6:,.0f} MB, {(tokens - self._tokens) / seconds:,.0f} tokens/s, {left / 60:,.1f} min left"
        )
