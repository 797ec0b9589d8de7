"""`tessera data inspect`: numbers and random examples of a token store, a source, or the data of an experiment."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.source_flags import READING, define_source, source_fields

USAGE = (
    "look into a token store, a source, or the data of a config: sizes, languages, repetitions, the use of the "
    "vocabulary, and examples as the model sees them",
    "tessera data inspect STORE|SOURCE|CONFIG.py [--tokenizer=…] [--objective=masked_lm] [--task=sst2] [--html=FILE]",
)
# Special ids that each form of a task's rows needs.
SPECIALS = {"encoder": ("pad", "cls", "sep"), "decoder": ("eos",), "text_to_text": ("pad", "eos", "extra_0")}
FORMS = tuple(SPECIALS)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("tokenizer", None, "byte, a folder or a .model file; a store knows its own", flag_values=values)
    flags.DEFINE_string("task", None, "read a supervised task: sst2, squad, … (data/tasks)", flag_values=values)
    flags.DEFINE_enum("form", "encoder", FORMS, "for what kind of model a task becomes rows", flag_values=values)
    flags.DEFINE_string("objective", "causal_lm", "what the examples ask of the model", flag_values=values)
    flags.DEFINE_integer("max_length", 256, "tokens of an example", flag_values=values)
    flags.DEFINE_integer("examples", 20, "random examples to show", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "other seeds draw other examples", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("max_documents", 0, "read no more than so many; 0: all", lower_bound=0, flag_values=values)
    flags.DEFINE_string("html", None, "write the report to this file too, with pictures", flag_values=values)
    define_source(values)


def run(values: Any, rest: Sequence[str]) -> int:
    """Prints the report. Raises ValueError for flags that would change nothing, DataError for bad data."""
    if len(rest) != 1:
        raise ValueError(f"one store, source or config is needed, {len(rest)} are given: {USAGE[1]}")
    drawn: dict[str, Any] = {"examples": values.examples, "seed": values.seed, "max_documents": values.max_documents}
    config = _config_file(rest[0])
    if values.task:
        notes, inspections = _of_task(rest[0], values, drawn)
    else:
        _refuse(values, ("form",), "what is no --task")
        notes, inspections = _of_config(config, values, drawn) if config else _of_data(rest[0], values, drawn)

    from rich.console import Console

    from data.inspection.text import print_inspection

    for note in filter(None, notes):
        print(f"{note}\n")
    console = Console()
    for inspection in inspections:
        if console.is_terminal:
            print_inspection(inspection, console)
        else:
            print(inspection.text())
    if values.html:
        _write(Path(values.html).expanduser(), rest[0], notes, inspections)
    return 0


def _of_data(what: str, values: Any, drawn: dict[str, Any]) -> tuple[list[str], list[Any]]:
    from data.config import SourceConfig
    from data.inspection.inspection import inspect_data
    from data.inspection.reading import is_store

    if is_store(what):
        _refuse(values, READING, "a store")
        source = what
    else:
        source = SourceConfig(what, **source_fields(values))
    settings = {"tokenizer": values.tokenizer, "objective": values.objective, "max_length": values.max_length}
    return [], [inspect_data(source, **settings, **drawn)]


def _of_task(path: str, values: Any, drawn: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """The rows of a supervised task, with the special ids that its form needs."""
    from collections import Counter

    from data.inspection.inspection import inspect_data, tokenizer_of
    from data.tasks.tasks import find_task, task_rows
    from data.tokenizers.special_tokens import WithSpecials

    _refuse(values, ("objective", *READING), "a task")
    task, repairs = find_task(values.task), Counter()
    tokenizer = WithSpecials(tokenizer_of(values.tokenizer or "byte"), SPECIALS[values.form])
    rows = task_rows(task, task.read(path, repairs), tokenizer, values.form, max_length=values.max_length)
    notes = [rows.report(), *(f"mended: {what} ({count} times)" for what, count in repairs.items())]
    return notes, [inspect_data(rows, tokenizer=tokenizer, title=f"{path} ({task.name}, {values.form})", **drawn)]


def _of_config(file: Path, values: Any, drawn: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """The training split of each source, as the rows that the run draws; and the table of a mixture."""
    import runpy
    import sys

    from data.corpus import prepare
    from data.errors import DataError
    from data.inspection.inspection import inspect_data
    from launch.experiment import read
    from launch.rows import described, objective_of, part_rows, train_rows

    _refuse(values, ("tokenizer", "objective", "max_length", *READING), "a config")
    experiment = read(runpy.run_path(str(file))["get_config"]())
    corpus = prepare(experiment.data, report=lambda line: print(line, file=sys.stderr))
    tokenizer, objective = objective_of(experiment, corpus.tokenizer)
    rows, packing = part_rows(experiment, objective, corpus), experiment.data.packing
    notes = [f"{file}: {experiment.objective.name}, {experiment.model.max_length} tokens, packing {packing}"]
    try:
        notes.append(described(train_rows(experiment, objective, corpus)))
    except DataError as error:
        notes.append(f"a run would be refused: {error}")
    inspections = [
        inspect_data(
            splits.train,
            tokenizer=tokenizer,
            objective=experiment.objective,
            rows=rows[name],
            title=f"{name or experiment.data.path} (training split)",
            **drawn,
        )
        for name, splits in corpus.parts.items()
    ]
    return notes, inspections


def _config_file(what: str) -> Path | None:
    """The file of an experiment, as given or among those that come with Tessera; None for anything else."""
    if not what.endswith(".py"):
        return None
    given = Path(what).expanduser()
    for file in (given, Path(__file__).resolve().parent.parent / "configs" / given.name):
        if file.is_file():
            defines = re.search(r"^def get_config\(", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            return file if defines else None
    return None


def _refuse(values: Any, names: Sequence[str], what: str) -> None:
    """Flags that would change nothing."""
    if given := [f"--{name}" for name in names if values[name].present]:
        raise ValueError(f"{', '.join(given)} would change nothing: {what} says that itself")


def _write(file: Path, title: str, notes: Sequence[str], inspections: Sequence[Any]) -> None:
    from data.atomic import write_file
    from data.inspection.html import page

    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, page(inspections, title, notes).encode("utf-8"))
    print(f"\n{file} written")
