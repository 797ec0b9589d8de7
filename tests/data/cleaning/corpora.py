"""Rules and texts for the tests of the pipeline, and what they compare of its output."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.cleaning.chunks import read_records
from data.cleaning.gopher import GopherQuality
from data.cleaning.pipeline import read_report
from data.cleaning.report import report_values
from data.cleaning.rule import Dropped
from data.cleaning.settings import CleanConfig
from data.config import SourceConfig

applied: list[str] = []  # texts that `Least` has seen


@dataclass(frozen=True)
class Least:
    """Strips a text, and drops what is shorter than `length`."""

    name: ClassVar[str] = "least"
    source: ClassVar[str] = "here"
    length: int = 10

    def __call__(self, text: str) -> str | Dropped:
        applied.append(text)
        return text.strip() if len(text) >= self.length else Dropped("short", f"{len(text)} characters")


@dataclass(frozen=True)
class Without:
    """Takes a letter out."""

    name: ClassVar[str] = "without"
    source: ClassVar[str] = "there"
    letter: str = "x"

    def __call__(self, text: str) -> str | Dropped:
        return text.replace(self.letter, "")


def source(path: Path, texts: list[str], **fields) -> SourceConfig:
    lines = [json.dumps({"id": f"{path.stem}-{number}", "text": text}) + "\n" for number, text in enumerate(texts)]
    path.write_text("".join(lines))
    return SourceConfig(str(path), **fields)


def records(folder: Path, kind: str) -> list[dict]:
    return [record for path in sorted((folder / kind).iterdir()) for record in read_records(path)]


def tree(folder: Path) -> dict[str, bytes]:
    """All files of an output but the reports, which hold times."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("report."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def numbers(folder: Path) -> dict:
    """The report of a folder without the times."""
    values = report_values(read_report(folder))
    for step in values["total"]["steps"]:
        step["seconds"] = 0
    return values


def write_corpus(folder: Path) -> None:
    """Two sources with texts of every fate, and evaluation texts."""
    drawn = random.Random(0)
    vocabulary = [f"word{number}" for number in range(500)]
    texts = [" ".join(drawn.choices(vocabulary, k=drawn.randrange(3, 60))) for _ in range(120)]
    texts += [text if number % 2 else f"{text} end" for number, text in enumerate(texts[:40])]
    for name, part in (("a", texts[:70]), ("b", texts[70:]), ("exam", [texts[7], "and " + texts[12]])):
        source(folder / f"{name}.jsonl", part)


def corpus(folder: Path) -> tuple[list[SourceConfig], CleanConfig]:
    """What is asked of it, with a rule that worker processes can import."""
    a, b, exam = (SourceConfig(str(folder / f"{name}.jsonl")) for name in ("a", "b", "exam"))
    rules = (GopherQuality(min_words=8, min_stop_words=0, max_mean_word_length=12),)
    options = {"near_duplicates": 0.7, "permutations": 16, "decontaminate": (exam,), "chunk_documents": 20}
    return [a, b], CleanConfig(rules=rules, **options)
