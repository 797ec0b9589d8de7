"""What a cleaning did, in numbers and examples: counted chunk by chunk, added up, written as JSON and as Markdown."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.cleaning.decontaminate import EvaluationSet
from data.cleaning.rule import Dropped

HEAD = 300  # characters of a document that the report shows
BUCKETS = 41  # of document lengths: bucket b counts the documents of 2^b to 2^(b + 1) - 1 bytes


@dataclass
class Example:
    """One document that a step dropped or changed."""

    key: str  # examples with the smallest keys are shown: a choice that does not depend on how work was divided
    id: str
    source: str
    reason: str  # "" where it was changed
    detail: str
    before: str
    after: str


@dataclass
class Step:
    """What one rule or search did to the documents that reached it."""

    name: str
    reference: str
    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    changed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # why documents were dropped -> how many
    seconds: float = 0.0  # on the documents, summed over workers
    dropped_examples: list[Example] = field(default_factory=list)
    changed_examples: list[Example] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


@dataclass
class Tally:
    """The counts of some documents: of a chunk, of a source, of everything."""

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    lengths_in: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    lengths_out: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    languages: dict[str, int] = field(default_factory=dict)  # of what stays, where detected or declared
    steps: list[Step] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(step.dropped for step in self.steps)


@dataclass(frozen=True)
class Report:
    """The result of `clean`. Bytes are those of the texts in UTF-8."""

    total: Tally
    sources: dict[str, Tally]  # of each source, by path; without steps
    evaluation: tuple[EvaluationSet, ...]  # what the output was compared with
    settings: dict[str, Any]  # see `data.cleaning.settings.described`
    crowded: int = 0  # see `data.cleaning.duplicates.Duplicates`


class Recorder:
    """Counts what one step does, and keeps a seeded draw of examples."""

    def __init__(self, name: str, reference: str, *, examples: int, seed: int):
        self.step = Step(name, reference)
        self._examples = examples
        self._seed = seed

    def add(self, id: str, source: str, before: str, size: int, result: str | Dropped) -> int:
        """Counts one document of `size` bytes; the bytes of the result."""
        step = self.step
        step.documents_in += 1
        step.bytes_in += size
        if isinstance(result, Dropped):
            step.reasons[result.reason] = step.reasons.get(result.reason, 0) + 1
            self._keep(step.dropped_examples, id, source, before, result)
            return 0
        if result != before:
            size = len(result.encode())
            step.changed += 1
            self._keep(step.changed_examples, id, source, before, result)
        step.documents_out += 1
        step.bytes_out += size
        return size

    def _keep(self, kept: list[Example], id: str, source: str, before: str, result: str | Dropped) -> None:
        drawn = f"{self._seed}\n{self.step.name}\n{source}\n{id}"
        key = hashlib.blake2b(drawn.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        if len(kept) == self._examples and (not kept or key > kept[-1].key):
            return
        if isinstance(result, Dropped):
            shown = (result.reason, result.detail, before[:HEAD], "")
        else:
            first = max(_common_prefix(before, result) - HEAD // 3, 0)
            shown = ("", f"from character {first}", before[first : first + HEAD], result[first : first + HEAD])
        kept.append(Example(key, id, source, *shown))
        kept.sort(key=lambda example: example.key)
        del kept[self._examples :]


def count_lengths(lengths: list[int], size: int) -> None:
    """Adds a document of `size` bytes to the histogram."""
    lengths[min(max(size.bit_length() - 1, 0), BUCKETS - 1)] += 1


def add_tally(total: Tally, part: Tally, examples: int) -> None:
    """Adds `part` to `total`, which has the same steps, or none yet."""
    for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    for name in ("lengths_in", "lengths_out"):
        setattr(total, name, [a + b for a, b in zip(getattr(total, name), getattr(part, name), strict=True)])
    for language, count in part.languages.items():
        total.languages[language] = total.languages.get(language, 0) + count
    if not total.steps:
        total.steps = [Step(step.name, step.reference) for step in part.steps]
    for step, added in zip(total.steps, part.steps, strict=True):
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out", "changed", "seconds"):
            setattr(step, name, getattr(step, name) + getattr(added, name))
        for reason, count in added.reasons.items():
            step.reasons[reason] = step.reasons.get(reason, 0) + count
        for name in ("dropped_examples", "changed_examples"):
            both = sorted(getattr(step, name) + getattr(added, name), key=lambda example: example.key)
            setattr(step, name, both[:examples])


def tally_of(values: dict[str, Any]) -> Tally:
    """The inverse of `dataclasses.asdict` for a Tally."""
    steps = []
    for step in values["steps"]:
        examples = {name: [Example(**e) for e in step[name]] for name in ("dropped_examples", "changed_examples")}
        steps.append(Step(**(step | examples)))
    return dataclasses.replace(Tally(**values), steps=steps)


def report_values(report: Report) -> dict[str, Any]:
    """The report as JSON values; `seconds` of the steps are the only ones that differ from run to run."""
    values = dataclasses.asdict(report)
    for step in values["total"]["steps"]:
        step["reasons"] = dict(sorted(step["reasons"].items(), key=lambda item: (-item[1], item[0])))
    return values


def report_of(values: dict[str, Any]) -> Report:
    """The inverse of `report_values`."""
    return Report(
        total=tally_of(values["total"]),
        sources={path: tally_of(tally) for path, tally in values["sources"].items()},
        evaluation=tuple(EvaluationSet(**known) for known in values["evaluation"]),
        settings=values["settings"],
        crowded=values["crowded"],
    )


STEP_COLUMNS = ("step", "documents in", "out", "dropped", "changed", "bytes in", "bytes out", "worker seconds")
SOURCE_COLUMNS = ("source", "documents in", "out", "bytes in", "bytes out")
LANGUAGE_COLUMNS = ("language", "documents", "of all")


def step_rows(report: Report) -> list[list[str]]:
    """The cells of the table of steps, in order of STEP_COLUMNS."""
    counts = ("documents_in", "documents_out", "dropped", "changed", "bytes_in", "bytes_out")
    return [
        [step.name, *(f"{getattr(step, name):,}" for name in counts), f"{step.seconds:.1f}"]
        for step in report.total.steps
    ]


def source_rows(report: Report) -> list[list[str]]:
    """The cells of the table of sources, the last row their sum, in order of SOURCE_COLUMNS."""
    counts = ("documents_in", "documents_out", "bytes_in", "bytes_out")
    rows = [*report.sources.items(), ("all", report.total)]
    return [[path, *(f"{getattr(tally, name):,}" for name in counts)] for path, tally in rows]


def reason_rows(report: Report) -> list[list[str]]:
    """Step, reason, documents and their part of all that were read, most frequent first within a step."""
    read = max(report.total.documents_in, 1)
    return [
        [step.name, reason, f"{count:,}", f"{count / read:.2%}"]
        for step in report.total.steps
        for reason, count in sorted(step.reasons.items(), key=lambda item: (-item[1], item[0]))
    ]


def language_rows(report: Report) -> list[list[str]]:
    """Language, documents that stay in it and their part of all that stay, most frequent first."""
    kept = max(report.total.documents_out, 1)
    languages = sorted(report.total.languages.items(), key=lambda item: (-item[1], item[0]))
    return [[language, f"{count:,}", f"{count / kept:.2%}"] for language, count in languages]


def notes(report: Report) -> list[str]:
    """What a reader of the numbers has to know beside them."""
    total = report.total
    kept = f"{total.documents_out:,} of {total.documents_in:,} documents stay"
    part = total.bytes_out / max(total.bytes_in, 1)
    lines = [f"{kept}, {total.bytes_out:,} of {total.bytes_in:,} bytes ({part:.1%}); {total.dropped:,} are dropped."]
    for known in report.evaluation:
        line = f"{known.path}: {known.texts - known.too_short:,} evaluation texts were looked for"
        if known.too_short:
            line += f"; {known.too_short:,} more cannot be found, having fewer words than the overlap"
        lines.append(line)
    for step in total.steps:
        foreign = step.reasons.get("stop_words", 0)
        if foreign > step.documents_in / 2:
            lines.append(
                f"{step.name} dropped {foreign:,} of {step.documents_in:,} documents for want of English stop words: "
                f"if they are in another language, clean them with {step.name}.min_stop_words=0."
            )
    if report.crowded:
        lines.append(
            f"{report.crowded:,} documents that stay are alike, though less than asked, to so many others that later "
            "ones were not compared with them everywhere: near duplicates among them may be left."
        )
    return lines


def markdown(report: Report) -> str:
    """The report for reading in a terminal or a repository: the numbers of the JSON, without the examples."""
    tables = {
        "Steps": (STEP_COLUMNS, step_rows(report)),
        "Why documents were dropped": (("step", "reason", "documents", "of all"), reason_rows(report)),
        "Languages of what stays": (LANGUAGE_COLUMNS, language_rows(report)),
        "Sources": (SOURCE_COLUMNS, source_rows(report)),
        "References": (("step", "after"), [[step.name, step.reference] for step in report.total.steps]),
    }
    parts = [f"## {title}\n\n{_table(columns, rows)}" for title, (columns, rows) in tables.items() if rows]
    return "\n\n".join(["# Cleaning", *notes(report), *parts]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _common_prefix(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:  # comparing slices is fast, and their halves add up to one pass
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
