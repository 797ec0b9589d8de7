"""The same cleaning on many machines, by datatrove; and the rules as a step of anyone's datatrove pipeline.

    datatrove_executor("slurm", sources, "/shared/clean", settings, tasks=100, time="10:00:00", partition="cpu").run()

The work is divided by chunks of documents, so the output is that of `clean`, byte for byte:
- rules, evaluation texts, and the hashes of documents: `tasks` tasks. With as many sources as tasks or more, each
  reads its own sources; with fewer, every task reads all of them and cleans its share, so name many files rather than
  one glob of them;
- duplicates: one task, which reads hashes only (150 bytes a document, and 0.5 kB on disk);
- what is left: `tasks` tasks; then one that names the files and writes the report.

All tasks need the folder, on a file system they share. What is done is not done again when it is run again.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.cleaning import repeats, stages
from data.cleaning.pipeline import alone, begin, is_finished, publish
from data.cleaning.report import Tally
from data.cleaning.rule import Dropped, Rule
from data.cleaning.settings import CleanConfig
from data.cleaning.stages import Job
from data.config import SourceConfig
from data.errors import DataError

EXECUTORS = {
    "local": ("datatrove.executor.local", "LocalPipelineExecutor"),
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}


def datatrove_executor(
    kind: str,
    sources: Sequence[SourceConfig],
    out: str | Path,
    settings: CleanConfig,
    *,
    tasks: int,
    logging_dir: str | Path | None = None,
    **options: Any,
) -> Any:
    """The last of four executors, each of which waits for the one before it; `.run()` starts them all.

    Args:
        kind: "local", "slurm" or "ray".
        out: the folder of the output, which `clean` would take; made here.
        logging_dir: of datatrove; None: beside `out`, with ".logs" to its name.
        options: of the executor: workers, or the time, partition and memory of a Slurm job.

    Raises DataError as `clean` does, for an unknown kind, and where datatrove is not installed.
    """
    if kind not in EXECUTORS:
        raise DataError(f"no executor {kind!r}: use one of {', '.join(EXECUTORS)}")
    if tasks < 1:
        raise DataError(f"tasks {tasks} must be 1 or more")
    make, step = _imported(*EXECUTORS[kind]), _stage_step()
    job = begin(sources, out, settings)
    logs = Path(logging_dir) if logging_dir else job.folder.with_name(job.folder.name + ".logs")
    executor = None
    for number, (name, width) in enumerate((("rules", tasks), ("duplicates", 1), ("final", tasks), ("publish", 1)), 1):
        # Completed chunks say what is done. datatrove's own marks would outlive a folder that was deleted.
        own = {"logging_dir": str(logs / f"{number}_{name}"), "depends": executor, "skip_completed": False}
        executor = make(pipeline=[step(name, job)], tasks=width, **own, **options)
    return executor


def rules_step(rules: Sequence[Rule], exclusion_writer: Any = None) -> Any:
    """A filter for a datatrove pipeline that applies `rules` to its documents, as `clean` does.

    Its statistics count "dropped_RULE/REASON" and "changed_RULE"; `exclusion_writer`, one of datatrove's, is given the
    documents that go, with RULE/REASON as `filter_reason` and the numbers as `filter_detail` in their metadata.
    """
    return _rules_step()(rules, exclusion_writer)


@functools.cache
def _rules_step() -> Any:
    filters = _imported("datatrove.pipeline.filters.base_filter", "BaseFilter")

    class Rules(filters):
        name = "Tessera rules"

        def __init__(self, rules: Sequence[Rule], exclusion_writer: Any):
            super().__init__(exclusion_writer)
            self.rules = tuple(rules)

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            for rule in self.rules:
                result = stages.applied(rule, doc.text, doc.id, "datatrove")
                if isinstance(result, Dropped):
                    doc.metadata["filter_detail"] = result.detail
                    return False, f"{rule.name}/{result.reason}"
                if result != doc.text:
                    self.stat_update(f"changed_{rule.name}")
                doc.text = result
            return True

    return Rules


@functools.cache
def _stage_step() -> Any:
    steps = _imported("datatrove.pipeline.base", "PipelineStep")

    class Stage(steps):
        type = "Tessera"

        def __init__(self, name: str, job: Job):
            self.name = name
            super().__init__()
            self.job = job

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            for tally in _work(self.name, self.job, rank, world_size):
                self.stat_update("documents_in", value=tally.documents_in)
                self.stat_update("documents_out", value=tally.documents_out)
                for step in tally.steps:
                    for reason, count in step.reasons.items():
                        self.stat_update(f"dropped_{step.name}/{reason}", value=count)
            yield from data or ()

    return Stage


def _work(stage: str, job: Job, rank: int, world_size: int) -> Iterator[Tally]:
    """The part of a stage that is the task `rank`'s; the counts of each of its chunks."""
    if is_finished(job):
        return
    with alone(job, shared=world_size > 1):
        yield from _done(stage, job, rank, world_size)


def _done(stage: str, job: Job, rank: int, world_size: int) -> Iterator[Tally]:
    if stage == "rules":
        by_source = len(job.sources) >= world_size
        for index in range(len(job.sources)):
            if by_source and index % world_size != rank:
                continue
            for chunk in stages.unread_chunks(job, index):
                if by_source or chunk.number % world_size == rank:
                    yield stages.apply_rules(job, chunk)
    elif stage == "duplicates":
        repeats.find_duplicates(job, lambda done, kept, all: None)
    elif stage == "final":
        for chunk in stages.chunk_names(job)[rank::world_size]:
            if not job.final(chunk).exists():
                yield stages.finish_chunk(job, chunk)
    else:
        publish(job, lambda stage: None)


def _imported(module: str, name: str) -> Any:
    import importlib

    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DataError(f"{module} needs datatrove ({error}): pip install 'tessera-lm[cluster]'") from error
