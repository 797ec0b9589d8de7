"""From sources of text to a folder of clean documents, with the reason for each that is missing.

    clean([SourceConfig("raw/*.jsonl")], "clean", CleanConfig(rules=make_rules(["unicode", "gopher_quality"], {})))

FOLDER/documents/00000.jsonl.zst   {id, text, source, score?, language?, licence?}: a source for `tessera data build`;
                                   with several sources, the id is NUMBER/ID: the number of the source, from 0, first
FOLDER/dropped/00000.jsonl.zst     {id, source, reason, rule, detail, head}: every other document
FOLDER/report.{json,md,html}       what each step did
FOLDER/manifest.json               sources, settings, fingerprints; written last

A killed run goes on where it was when the same call comes again, and puts out the same bytes.
"""

import contextlib
import dataclasses
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.atomic import new_folder, write_file
from data.cleaning import decontaminate, duplicates, repeats, report_html, stages
from data.cleaning.chunks import LINES, Chunk
from data.cleaning.processes import each
from data.cleaning.report import Report, Tally, add_tally, markdown, report_of, report_values
from data.cleaning.settings import CleanConfig, described, require_same
from data.cleaning.stages import Job
from data.config import SourceConfig
from data.errors import DataError
from data.sources.files import find_files
from data.sources.read import provenance, stamp

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_OUTPUTS = ("documents/00000.jsonl.zst", "dropped/00000.jsonl.zst", MANIFEST, "report.json", "report.md", "report.html")


@dataclass(frozen=True)
class Progress:
    """How far a run is; `documents`, `bytes` and `kept` count the documents that the stage has finished."""

    stage: str  # "rules", "duplicates", "final", "publish"
    documents: int
    bytes: int  # 0 of "duplicates", which compares numbers
    kept: int
    total_documents: int | None  # of the stage, where known
    total_bytes: int | None  # of the texts of the stage, about, where known: compressed files do not tell


def clean(
    sources: Sequence[SourceConfig],
    out: str | Path,
    settings: CleanConfig | None = None,
    report: Callable[[Progress], object] | None = None,
    *,
    workers: int = 1,
) -> Report:
    """Cleans the documents of `sources` into the folder `out`; where that is done already, reads its report.

    Args:
        sources: in order; of duplicates, the first document in this order stays.
        settings: None: only exact duplicates are dropped.
        report: is told of progress, after each chunk and at each stage.
        workers: processes; 1: only this one. The output does not depend on it.

    Raises DataError for a folder that holds something else, for sources that changed on the way, and, with the
    source and the document, for a rule that fails.
    """
    tell = report or (lambda progress: None)
    job = begin(sources, out, settings or CleanConfig())
    if is_finished(job):
        return read_report(job.folder)
    with alone(job):
        so_far = _Counter("rules", None, _text_bytes(job.sources), tell)
        unread = (chunk for index in range(len(job.sources)) for chunk in stages.unread_chunks(job, index))
        so_far.add(_ruled_already(job))
        for tally in each(stages.apply_rules, job, unread, workers):
            so_far.add(tally)
        tell(Progress("duplicates", 0, 0, 0, None, None))
        repeats.find_duplicates(job, lambda done, kept, all: tell(Progress("duplicates", done, 0, kept, all, None)))
        so_far = _Counter("final", so_far.tally.documents_in, None, tell)
        chunks = stages.chunk_names(job)
        left = [chunk for chunk in chunks if not job.final(chunk).exists()]
        so_far.add(_sum(stages.read_tally(job.final(chunk)) for chunk in sorted(set(chunks) - set(left))))
        for tally in each(stages.finish_chunk, job, left, workers):
            so_far.add(tally)
        so_far.stage("publish")
        return publish(job, so_far.stage)


def begin(sources: Sequence[SourceConfig], out: str | Path, settings: CleanConfig) -> Job:
    """The folder of a cleaning, new or begun, with the n-grams of its evaluation texts.

    Raises DataError where it holds another one, or other things, and for evaluation texts that cannot be read.
    """
    if not sources:
        raise DataError("no source is given: there is nothing to clean")
    if settings.near_duplicates:
        duplicates.check_installed()
    job = Job(tuple(sources), _absolute(out), settings)
    for source in job.sources:
        if _reads(source, job.folder):
            raise DataError(f"{job.folder} is inside {source.path}, which is read: use a folder beside it")
    asked = described(job.sources, settings)
    # A source that changes on the way would give output that no one call explains.
    asked["state_of_sources"] = [stamp(source) for source in (*job.sources, *settings.decontaminate)]
    asked["format_version"] = FORMAT_VERSION
    asked = json.loads(json.dumps(asked))
    if is_finished(job):
        require_same(asked, _finished_settings(job), str(job.folder))
        shutil.rmtree(job.work, ignore_errors=True)
        return job
    begun = job.work / "settings.json"
    if begun.exists():
        require_same(asked, json.loads(begun.read_bytes()), str(job.folder))
        return job
    if job.folder.is_dir() and [entry for entry in job.folder.iterdir() if entry != job.work]:
        raise DataError(f"{job.folder} is not empty and holds no cleaning: use a new folder")
    overlap = None
    if settings.decontaminate:  # before anything is written: a wrong name of a field can still be mended
        overlap = decontaminate.read_evaluation_sets(settings.decontaminate, settings.overlap)
    (job.work / "rules").mkdir(parents=True, exist_ok=True)
    (job.work / "final").mkdir(exist_ok=True)
    if overlap:
        shutil.rmtree(job.overlap, ignore_errors=True)  # of a process that was killed here
        with new_folder(job.overlap) as folder:
            decontaminate.save_overlap(overlap, folder)
    write_file(begun, json.dumps(asked, indent=1).encode())
    return job


def is_finished(job: Job) -> bool:
    return (job.folder / MANIFEST).exists()


def read_report(folder: str | Path) -> Report:
    """The report of a finished cleaning."""
    path = Path(folder) / "report.json"
    if not path.exists():
        raise DataError(f"{path.parent} holds no finished cleaning: there is no {path.name}")
    return report_of(json.loads(path.read_bytes()))


@contextlib.contextmanager
def alone(job: Job, *, shared: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which the system gives back when the process dies; `shared`: with others that share it.

    Raises DataError where another process has it.
    """
    with open(job.work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is cleaning into {job.folder}: wait for it, or use a new folder"
            ) from error
        except OSError as error:
            # File systems of clusters may know no locks; there, two runs do the same work and write the same bytes.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        yield


def publish(job: Job, tell: Callable[[str], object]) -> Report:
    """Last stage: gives the finished chunks their names, writes the report, then the manifest, and tidies up."""
    report, counts = _report(job)
    (job.work / "report.json").write_bytes(_json(report_values(report)))
    (job.work / "report.md").write_bytes(_utf8(markdown(report)))
    (job.work / "report.html").write_bytes(_utf8(report_html.page(report)))
    files = _move_output(job, counts, tell)
    for name in ("report.json", "report.md", "report.html"):
        os.replace(job.work / name, job.folder / name)
    read = [json.loads(job.source_file(index).read_bytes()) for index in range(len(job.sources))]
    kept = {name: getattr(report.total, name) for name in ("documents_in", "documents_out", "bytes_in", "bytes_out")}
    read = [
        provenance(source) | {"fingerprint": s["fingerprint"]} | s["broken"]
        for source, s in zip(job.sources, read, strict=True)
    ]
    settings = json.loads((job.work / "settings.json").read_bytes())
    (job.work / MANIFEST).write_bytes(_json({"sources": read, **kept, "files": files, "settings": settings}))
    os.replace(job.work / MANIFEST, job.folder / MANIFEST)
    shutil.rmtree(job.work, ignore_errors=True)
    return report


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


def _reads(source: SourceConfig, folder: Path) -> bool:
    """Whether `source` is a folder or glob that takes in what a cleaning writes into `folder`."""
    read = _absolute(source.path)
    if read.is_dir():
        return folder.is_relative_to(read)
    outputs = [folder / name for name in _OUTPUTS]
    if "**" not in read.parts:
        return glob.has_magic(str(read)) and any(output.match(str(read)) for output in outputs)
    place = read.parts.index("**")
    root, below = str(Path(*read.parts[:place])), str(Path(*read.parts[place + 1 :] or "*"))
    return any(parent.match(root) for parent in (folder, *folder.parents)) and any(o.match(below) for o in outputs)


def _finished_settings(job: Job) -> dict[str, Any]:
    """Of the manifest. Raises DataError for that of something else, such as a token store."""
    try:
        manifest = json.loads((job.folder / MANIFEST).read_bytes())
        if manifest.keys() >= {"documents_in", "documents_out"}:
            return manifest["settings"]
    except (ValueError, AttributeError, KeyError):
        pass
    raise DataError(f"{job.folder} is not empty and holds no cleaning: use a new folder")


def _report(job: Job) -> tuple[Report, list[tuple[str, int, int]]]:
    """The report; and of each chunk its name, the documents that stay and those that are dropped."""
    total, counts = Tally(), []
    by_source: dict[str, Tally] = {source.path: Tally() for source in job.sources}
    for chunk in stages.chunk_names(job):
        tally = stages.read_tally(job.final(chunk))
        add_tally(total, tally, job.settings.examples)
        add_tally(by_source[job.sources[Chunk.source_of(chunk)].path], dataclasses.replace(tally, steps=[]), 0)
        counts.append((chunk, tally.documents_out, tally.documents_in - tally.documents_out))
    for step in total.steps:
        if step.documents_in != step.documents_out + step.dropped:
            raise RuntimeError(f"{step.name} lost documents: {step.documents_in} in, {step.documents_out} out")
    if total.documents_in != total.documents_out + total.dropped:
        raise RuntimeError(f"documents were lost: {total.documents_in} in, {total.documents_out} out")
    settings = described(job.sources, job.settings)
    return Report(total, by_source, stages.evaluation_sets(job), settings, repeats.crowded_documents(job)), counts


def _move_output(job: Job, counts: list[tuple[str, int, int]], tell: Callable[[str], object]) -> list[dict[str, Any]]:
    """Numbers the files of the chunks that have some. Where a run was killed in here, some lie in place already."""
    files = []
    for place, kind in enumerate(("documents", "dropped"), 1):
        (job.folder / kind).mkdir(exist_ok=True)
        filled = [(chunk[0], chunk[place]) for chunk in counts if chunk[place]]
        for number, (chunk, count) in enumerate(filled):
            target, made = job.folder / kind / f"{number:05d}{LINES}", job.final(chunk) / f"{kind}{LINES}"
            if made.exists():
                os.replace(made, target)
            digest = hashlib.blake2b(target.read_bytes(), digest_size=16).hexdigest()
            files.append({"path": f"{kind}/{target.name}", "documents": count, "blake2b": digest})
            tell("publish")
    return files


def _text_bytes(sources: Sequence[SourceConfig]) -> int | None:
    try:
        files = [file for source in sources for file in find_files(source.path, known=())]
    except DataError:  # no local files
        return None
    if any(file.size is None or file.id.endswith((".gz", ".zst", ".parquet")) for file in files):
        return None
    return sum(file.size or 0 for file in files)


class _Counter:
    """Adds up the chunks of a stage, and tells of it."""

    def __init__(self, stage: str, documents: int | None, size: int | None, tell: Callable[[Progress], object]):
        self.tally = Tally()
        self._stage, self._documents, self._bytes, self._tell = stage, documents, size, tell

    def add(self, tally: Tally) -> None:
        add_tally(self.tally, dataclasses.replace(tally, steps=[]), 0)
        self.stage(self._stage)

    def stage(self, name: str) -> None:
        t = self.tally
        self._tell(Progress(name, t.documents_in, t.bytes_in, t.documents_out, self._documents, self._bytes))


def _ruled_already(job: Job) -> Tally:
    done = sorted(path for path in (job.work / "rules").iterdir() if path.is_dir() and not path.name.startswith("."))
    return _sum(stages.read_tally(path) for path in done)


def _sum(tallies: Iterable[Tally]) -> Tally:
    """Their counts, without the steps."""
    total = Tally()
    for tally in tallies:
        add_tally(total, dataclasses.replace(tally, steps=[]), 0)
    return total


def _json(value: Any) -> bytes:
    return _utf8(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _utf8(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # names of files may hold bytes that are not UTF-8
