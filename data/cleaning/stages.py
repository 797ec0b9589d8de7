"""The stages of a cleaning, each resumable and the same whoever runs it: a pool of processes or a cluster.

FOLDER/.work/rules/CHUNK/     the documents of a chunk that passed the rules, those that did not, hashes, counts
FOLDER/.work/rules/SOURCE.json   how many chunks a source has: it has been read to its end
FOLDER/.work/duplicates.npz   which documents repeat an earlier one
FOLDER/.work/overlap/         n-grams of the evaluation texts
FOLDER/.work/final/CHUNK/     what is left of a chunk, in the form of the output
"""

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data.atomic import new_folder, write_file
from data.cleaning import decontaminate, duplicates
from data.cleaning.chunks import LINES, Chunk, read_chunks, read_records, write_records
from data.cleaning.report import Recorder, Tally, count_lengths, tally_of
from data.cleaning.rule import Dropped, Rule
from data.cleaning.settings import CleanConfig
from data.config import SourceConfig
from data.errors import DataError

HEAD = 200  # characters of a dropped document that are kept
EXACT, NEAR, OVERLAP = "exact_duplicates", "near_duplicates", "decontamination"
_REFERENCES = {
    EXACT: "equal after NFC and white space made single: BLAKE2b, 128 bits",
    NEAR: "MinHash and LSH: Broder 1997; Lee et al. 2022, section 4.2",
    OVERLAP: "shared n-grams: Brown et al. 2020, appendix C",
}


@dataclass(frozen=True)
class Job:
    """One cleaning: what is read, how it is cleaned, and the folder it is done in."""

    sources: tuple[SourceConfig, ...]
    folder: Path
    settings: CleanConfig

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    @cached_property
    def chunks(self) -> list[str]:
        """The names of all chunks in source order, once every source has been read."""
        counts = [json.loads(self.source_file(index).read_bytes())["chunks"] for index in range(len(self.sources))]
        return [Chunk(index, number, ()).name for index, count in enumerate(counts) for number in range(count)]

    def source_file(self, index: int) -> Path:
        return self.work / "rules" / f"{index:05d}.json"

    def ruled(self, chunk: str) -> Path:
        return self.work / "rules" / chunk

    def final(self, chunk: str) -> Path:
        return self.work / "final" / chunk


def unread_chunks(job: Job, index: int) -> Iterator[Chunk]:
    """The chunks of one source that the rules have not seen; its end is noted when they have been given out.

    Raises DataError where the source says something else than when an earlier chunk of it was cleaned.
    """
    if job.source_file(index).exists():
        count = json.loads(job.source_file(index).read_bytes())["chunks"]
        if all(job.ruled(Chunk(index, number, ()).name).exists() for number in range(count)):
            return
    source, settings = job.sources[index], job.settings
    hash, count = hashlib.blake2b(digest_size=16), 0
    bounds = {"max_documents": settings.chunk_documents, "max_bytes": settings.chunk_bytes}
    for chunk in read_chunks(source, index, **bounds):
        digest = chunk.digest
        hash.update(digest.encode())
        count += 1
        done = job.ruled(chunk.name)
        if not done.exists():
            yield chunk
        elif json.loads((done / "read.json").read_bytes())["digest"] != digest:
            raise DataError(f"{source.path} has changed since {job.folder} was begun: use a new folder")
    known = {"chunks": count, "fingerprint": hash.hexdigest()}
    write_file(job.source_file(index), json.dumps(known).encode())


def apply_rules(job: Job, chunk: Chunk) -> Tally:
    """Stage 1, of one chunk: every rule on every document, and the hashes that duplicates are found by."""
    settings, source = job.settings, job.sources[chunk.source].path
    options = {"examples": settings.examples, "seed": settings.seed}
    recorders = [Recorder(rule.name, rule.source, **options) for rule in settings.rules]
    tally, kept, dropped = Tally(steps=[recorder.step for recorder in recorders]), [], []
    for document in chunk.documents:
        text = document.text
        size = len(text.encode())
        tally.documents_in += 1
        tally.bytes_in += size
        count_lengths(tally.lengths_in, size)
        for rule, recorder in zip(settings.rules, recorders, strict=True):
            start = time.perf_counter()
            result = applied(rule, text, document.id, source)
            recorder.step.seconds += time.perf_counter() - start
            size = recorder.add(document.id, source, text, size, result)
            if isinstance(result, Dropped):
                dropped.append(_gone(document.id, source, rule.name, result, text))
                break
            text = result
        else:
            score = {} if document.score is None else {"score": document.score}
            kept.append({"id": document.id, "text": text, "source": source} | score)
            tally.documents_out += 1
            tally.bytes_out += size
    with new_folder(job.ruled(chunk.name)) as folder:
        write_records(folder / f"documents{LINES}", kept)
        write_records(folder / f"dropped{LINES}", dropped)
        seconds = _write_hashes(folder, [record["text"] for record in kept], settings)
        (folder / "read.json").write_text(json.dumps({"digest": chunk.digest, "hash_seconds": seconds}))
        _write_tally(folder, tally)
        (folder / "ids.json").write_text(json.dumps([record["id"] for record in kept]))
    return tally


def applied(rule: Rule, text: str, id: str, source: str) -> str | Dropped:
    """rule(text). Raises DataError that names the document where the rule fails, or makes what is not UTF-8."""
    try:
        result = rule(text) or Dropped("empty", "no text is left")
        if isinstance(result, str):
            result.encode()
        return result
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"rule {rule.name} failed on document {id!r} of {source}: {what}") from error


def find_duplicates(job: Job) -> None:
    """Stage 2, of all chunks at once: the table of what repeats an earlier document, where it is not there yet."""
    settings, path = job.settings, job.work / "duplicates.npz"
    if path.exists() or not (settings.exact_duplicates or settings.near_duplicates):
        return
    folders = [job.ruled(chunk) for chunk in job.chunks]
    counts = [json.loads((folder / "tally.json").read_bytes())["documents_out"] for folder in folders]
    total = sum(counts)
    of_N, jaccard_N = np.full(total, -1, np.int64), np.full(total, np.nan, np.float32)
    if settings.exact_duplicates and total:
        of_N = duplicates.equal_texts(np.concatenate([np.load(folder / "keys.npy") for folder in folders]))
    if settings.near_duplicates and total:
        keys = np.concatenate([np.load(folder / "bands.npy") for folder in folders])
        buckets = duplicates.candidates(keys, of_N >= 0)
        rows = np.flatnonzero((buckets >= 0).any(axis=1))
        signatures = _gathered(job.work / "candidates.bin", folders, counts, rows, settings.permutations)
        near = duplicates.near_duplicates(buckets[rows], signatures, settings.near_duplicates)
        gone = near.of_N >= 0
        of_N[rows[gone]], jaccard_N[rows[gone]] = rows[near.of_N[gone]], near.jaccard_N[gone]
        # An earlier document that an equal one named may itself have gone since: name the one that stays.
        again = np.flatnonzero((of_N >= 0) & np.isnan(jaccard_N))
        moved = of_N[of_N[again]] >= 0
        again = again[moved]
        jaccard_N[again], of_N[again] = jaccard_N[of_N[again]], of_N[of_N[again]]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    content = io.BytesIO()
    np.savez(content, of=of_N, jaccard=jaccard_N, starts=starts)
    write_file(path, content.getvalue())


def read_evaluation_sets(job: Job) -> None:
    """Stage 3, before its chunks: the n-grams of the evaluation texts, where they are not there yet."""
    folder = job.work / "overlap"
    if job.settings.decontaminate and not folder.exists():
        overlap = decontaminate.read_evaluation_sets(job.settings.decontaminate, job.settings.overlap)
        with new_folder(folder) as temporary:
            decontaminate.save_overlap(overlap, temporary)


def finish_chunk(job: Job, index: int) -> Tally:
    """Stage 3, of one of the chunks: without duplicates and evaluation texts, as it is put out, and all its counts."""
    settings, chunk = job.settings, job.chunks[index]
    options = {"examples": settings.examples, "seed": settings.seed}
    asked = {EXACT: settings.exact_duplicates, NEAR: settings.near_duplicates, OVERLAP: settings.decontaminate}
    recorders = {name: Recorder(name, _REFERENCES[name], **options) for name in asked if asked[name]}
    repeats = _repeats(job, index) if EXACT in recorders or NEAR in recorders else {}
    overlap = _overlap(job) if OVERLAP in recorders else None
    source, kept = job.sources[Chunk.source_of(chunk)], []
    dropped = [*read_records(job.ruled(chunk) / f"dropped{LINES}")]
    tally = read_tally(job.ruled(chunk))
    tally.steps += [recorder.step for recorder in recorders.values()]
    tally.documents_out = tally.bytes_out = 0
    for name, seconds in json.loads((job.ruled(chunk) / "read.json").read_bytes())["hash_seconds"].items():
        recorders[name].step.seconds = seconds
    for row, record in enumerate(read_records(job.ruled(chunk) / f"documents{LINES}")):
        text = record["text"]
        size = len(text.encode())
        for name, recorder in recorders.items():
            start = time.perf_counter()
            if overlap is not None and name == OVERLAP:
                result = _decontaminated(text, overlap, settings.contaminated)
            else:
                kind, result = repeats.get(row, ("", text))
                result = result if kind == name else text
            recorder.step.seconds += time.perf_counter() - start
            size = recorder.add(record["id"], record["source"], text, size, result)
            if isinstance(result, Dropped):
                dropped.append(_gone(record["id"], record["source"], name, result, text))
                break
            text = result
        else:
            known = {"language": source.language, "licence": source.licence}
            kept.append(record | {"text": text} | {name: value for name, value in known.items() if value})
            tally.documents_out += 1
            tally.bytes_out += size
            count_lengths(tally.lengths_out, size)
    with new_folder(job.final(chunk)) as folder:
        write_records(folder / f"documents{LINES}", kept)
        write_records(folder / f"dropped{LINES}", dropped)
        _write_tally(folder, tally)
    return tally


def read_tally(folder: Path) -> Tally:
    return tally_of(json.loads((folder / "tally.json").read_bytes()))


def evaluation_sets(job: Job) -> tuple[decontaminate.EvaluationSet, ...]:
    return _overlap(job).sets if job.settings.decontaminate else ()


def _write_tally(folder: Path, tally: Tally) -> None:
    (folder / "tally.json").write_text(json.dumps(dataclasses.asdict(tally)))


def _write_hashes(folder: Path, texts: list[str], settings: CleanConfig) -> dict[str, float]:
    """Seconds by the step that will look for duplicates with these hashes."""
    seconds, start = {}, time.perf_counter()
    if settings.exact_duplicates:
        np.save(folder / "keys.npy", np.array([duplicates.text_key(text) for text in texts], np.uint64).reshape(-1, 2))
        seconds[EXACT] = time.perf_counter() - start
    if settings.near_duplicates:
        shape = (len(texts), settings.permutations)
        signatures = [duplicates.signature(text, settings.ngram, settings.permutations) for text in texts]
        signatures = np.array(signatures, np.uint32).reshape(shape)
        np.save(folder / "signatures.npy", signatures)
        np.save(folder / "bands.npy", duplicates.band_keys(signatures, settings.near_duplicates))
        seconds[NEAR] = time.perf_counter() - start - seconds.get(EXACT, 0.0)
    return seconds


def _gathered(path: Path, folders: list[Path], counts: list[int], rows: np.ndarray, permutations: int) -> np.ndarray:
    """uint32 (rows, permutations): the signatures of some documents, in a file, so that memory does not have to do."""
    if not len(rows):
        return np.empty((0, permutations), np.uint32)
    signatures = np.memmap(path, np.uint32, "w+", shape=(len(rows), permutations))
    start = 0
    for folder, count in zip(folders, counts, strict=True):
        first, last = np.searchsorted(rows, [start, start + count])
        if last > first:
            signatures[first:last] = np.load(folder / "signatures.npy", mmap_mode="r")[rows[first:last] - start]
        start += count
    return signatures


def _repeats(job: Job, index: int) -> dict[int, tuple[str, Dropped]]:
    """Row in the chunk -> the step that drops it, and why."""
    path = job.work / "duplicates.npz"
    of_N, jaccard_N, starts = _table(path, path.stat().st_mtime_ns)
    of, jaccard = (column[starts[index] : starts[index + 1]] for column in (of_N, jaccard_N))
    rows = np.flatnonzero(of >= 0)
    chunks = np.searchsorted(starts, of[rows], "right") - 1
    found = {}
    for chunk in np.unique(chunks).tolist():  # the ids of one chunk at a time: those of all may not fit the memory
        name = job.chunks[chunk]
        ids, source = json.loads((job.ruled(name) / "ids.json").read_bytes()), job.sources[Chunk.source_of(name)].path
        for row in rows[chunks == chunk].tolist():
            named = f"{ids[of[row] - starts[chunk]]!r} of {source}"
            if np.isnan(jaccard[row]):
                found[row] = (EXACT, Dropped("equal", f"the text of {named}"))
            else:
                found[row] = (NEAR, Dropped("similar", f"to {named}: estimated Jaccard {jaccard[row]:.3f}"))
    return found


def _decontaminated(text: str, overlap: decontaminate.Overlap, contaminated: str) -> str | Dropped:
    words = overlap.find(text)
    if not len(words):
        return text
    rest = overlap.cut(text, words) if contaminated == "cut" else ""
    return rest or Dropped("evaluation_text", overlap.explain(text, int(words[0])))


def _gone(id: str, source: str, step: str, why: Dropped, text: str) -> dict[str, str]:
    return {"id": id, "source": source, "reason": why.reason, "rule": step, "detail": why.detail, "head": text[:HEAD]}


@lru_cache(maxsize=1)
def _table(path: Path, written: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path) as table:
        return table["of"], table["jaccard"], table["starts"]


def _overlap(job: Job) -> decontaminate.Overlap:
    folder = job.work / "overlap"
    return _loaded(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(folder: Path, written: int) -> decontaminate.Overlap:
    return decontaminate.load_overlap(folder)
