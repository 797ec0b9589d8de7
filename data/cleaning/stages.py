"""The stages of a cleaning that work chunk by chunk, resumable and the same whoever runs them: a pool or a cluster.

FOLDER/.work/overlap/            n-grams of the evaluation texts
FOLDER/.work/rules/CHUNK/        the documents of a chunk that passed the rules, those that did not, hashes, counts
FOLDER/.work/rules/SOURCE.json   how many chunks a source has: it has been read to its end
FOLDER/.work/repeats/CHUNK.json  which documents of a chunk repeat an earlier one: see `data.cleaning.repeats`
FOLDER/.work/final/CHUNK/        what is left of a chunk, in the form of the output
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.atomic import new_folder, write_file
from data.cleaning import decontaminate, duplicates
from data.cleaning.chunks import LINES, Chunk, read_chunks, read_records, write_records
from data.cleaning.language import Language
from data.cleaning.report import Recorder, Tally, count_lengths, tally_of
from data.cleaning.rule import Dropped, Rule
from data.cleaning.settings import CleanConfig
from data.config import SourceConfig
from data.errors import DataError
from data.sources.broken import Broken

HEAD = 200  # characters of a dropped document that are kept
EXACT, NEAR = "exact_duplicates", "near_duplicates"
_REFERENCES = {
    EXACT: "equal after NFC and white space made single: BLAKE2b, 128 bits",
    NEAR: "MinHash and LSH: Broder 1997; Lee et al. 2022, section 4.2",
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

    def source_file(self, index: int) -> Path:
        return self.work / "rules" / f"{index:05d}.json"

    def ruled(self, chunk: str) -> Path:
        return self.work / "rules" / chunk

    def final(self, chunk: str) -> Path:
        return self.work / "final" / chunk

    @property
    def repeats(self) -> Path:
        return self.work / "repeats"

    @property
    def overlap(self) -> Path:
        return self.work / "overlap"


def chunk_names(job: Job) -> list[str]:
    """The names of all chunks in source order, once every source has been read."""
    counts = [json.loads(job.source_file(index).read_bytes())["chunks"] for index in range(len(job.sources))]
    return [Chunk(index, number, ()).name for index, count in enumerate(counts) for number in range(count)]


def unread_chunks(job: Job, index: int) -> Iterator[Chunk]:
    """The chunks of one source that the rules have not seen; its end is noted when they have been given out.

    Raises DataError where the source says something else than when an earlier chunk of it was cleaned.
    """
    if job.source_file(index).exists():
        count = json.loads(job.source_file(index).read_bytes())["chunks"]
        if all(job.ruled(Chunk(index, number, ()).name).exists() for number in range(count)):
            return
    source, settings = job.sources[index], job.settings
    hash, count, broken = hashlib.blake2b(digest_size=16), 0, Broken(source.skip_broken)
    bounds = {"max_documents": settings.chunk_documents, "max_bytes": settings.chunk_bytes}
    for chunk in read_chunks(source, index, broken=broken, **bounds):
        digest = chunk.digest
        hash.update(digest.encode())
        count += 1
        done = job.ruled(chunk.name)
        if not done.exists():
            yield chunk
        elif json.loads((done / "read.json").read_bytes())["digest"] != digest:
            raise DataError(f"{source.path} has changed since {job.folder} was begun: use a new folder")
    known = {"chunks": count, "fingerprint": hash.hexdigest(), "broken": broken.recorded()}
    write_file(job.source_file(index), json.dumps(known).encode())


def apply_rules(job: Job, chunk: Chunk) -> Tally:
    """Stage 1, of one chunk: every rule on every document, evaluation texts, and the hashes of what is left."""
    settings, source, rules = job.settings, job.sources[chunk.source], _rules(job)
    options = {"examples": settings.examples, "seed": settings.seed}
    recorders = [Recorder(rule.name, rule.source, **options) for rule in rules]
    tally, kept, dropped = Tally(steps=[recorder.step for recorder in recorders]), [], []
    for document in chunk.documents:
        # Two sources may each have a part.jsonl:1.
        id = f"{chunk.source}/{document.id}" if len(job.sources) > 1 else document.id
        text, language = document.text, source.language
        size = len(text.encode())
        tally.documents_in += 1
        tally.bytes_in += size
        count_lengths(tally.lengths_in, size)
        for rule, recorder in zip(rules, recorders, strict=True):
            start = time.perf_counter()
            result = applied(rule, text, document.id, source.path)
            recorder.step.seconds += time.perf_counter() - start
            size = recorder.add(id, source.path, text, size, result)
            if isinstance(result, Dropped):
                dropped.append(_gone(id, source.path, rule.name, result, text))
                break
            if isinstance(rule, Language):
                language = rule.detected(text) or language
            text = result
        else:
            score = {} if document.score is None else {"score": document.score}
            known = {"language": language, "licence": source.licence}
            known = {name: value for name, value in known.items() if value}
            kept.append({"id": id, "text": text, "source": source.path} | score | known)
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


def finish_chunk(job: Job, chunk: str) -> Tally:
    """Stage 3, of one chunk: without duplicates, as it is put out, and all its counts."""
    settings = job.settings
    options = {"examples": settings.examples, "seed": settings.seed}
    asked = {EXACT: settings.exact_duplicates, NEAR: settings.near_duplicates}
    recorders = {name: Recorder(name, _REFERENCES[name], **options) for name in asked if asked[name]}
    repeats = _repeats(job.repeats / f"{chunk}.json")
    kept, dropped = [], [*read_records(job.ruled(chunk) / f"dropped{LINES}")]
    tally = read_tally(job.ruled(chunk))
    tally.steps += [recorder.step for recorder in recorders.values()]
    tally.documents_out = tally.bytes_out = 0
    for name, seconds in json.loads((job.ruled(chunk) / "read.json").read_bytes())["hash_seconds"].items():
        recorders[name].step.seconds = seconds
    for row, record in enumerate(read_records(job.ruled(chunk) / f"documents{LINES}")):
        text, (kind, why) = record["text"], repeats.get(row, ("", None))
        size = len(text.encode())
        for name, recorder in recorders.items():
            result = why if why and kind == name else text
            recorder.add(record["id"], record["source"], text, size, result)
            if isinstance(result, Dropped):
                dropped.append(_gone(record["id"], record["source"], name, result, text))
                break
        else:
            kept.append(record)
            tally.documents_out += 1
            tally.bytes_out += size
            count_lengths(tally.lengths_out, size)
            if language := record.get("language"):
                tally.languages[language] = tally.languages.get(language, 0) + 1
    with new_folder(job.final(chunk)) as folder:
        write_records(folder / f"documents{LINES}", kept)
        write_records(folder / f"dropped{LINES}", dropped)
        _write_tally(folder, tally)
    return tally


def read_tally(folder: Path) -> Tally:
    return tally_of(json.loads((folder / "tally.json").read_bytes()))


def evaluation_sets(job: Job) -> tuple[decontaminate.EvaluationSet, ...]:
    """What was read of the evaluation sources, before the first document."""
    return _overlap(job.overlap).sets if job.settings.decontaminate else ()


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


def _rules(job: Job) -> tuple[Rule, ...]:
    settings = job.settings
    if not settings.decontaminate:
        return settings.rules
    return (*settings.rules, decontaminate.Decontamination(_overlap(job.overlap), settings.contaminated))


def _repeats(path: Path) -> dict[int, tuple[str, Dropped]]:
    """Row in the chunk -> the step that drops it, and why."""
    found = json.loads(path.read_bytes()) if path.exists() else {}
    return {int(row): (step, Dropped(reason, detail)) for row, (step, reason, detail) in found.items()}


def _gone(id: str, source: str, step: str, why: Dropped, text: str) -> dict[str, str]:
    return {"id": id, "source": source, "reason": why.reason, "rule": step, "detail": why.detail, "head": text[:HEAD]}


def _overlap(folder: Path) -> decontaminate.Overlap:
    return _loaded(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(folder: Path, written: int) -> decontaminate.Overlap:
    return decontaminate.load_overlap(folder)
