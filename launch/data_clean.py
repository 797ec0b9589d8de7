"""`tessera data clean`: sources of text, through rules and searches for repetition, into a folder of documents."""

import ast
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.source_flags import FIELDS, define_source, source_fields

if TYPE_CHECKING:
    from data.cleaning.pipeline import Progress
    from data.cleaning.report import Report

DEFAULT_RULES = ("unicode", "html", "boilerplate", "gopher_repetition", "gopher_quality", "personal")
USAGE = (
    "clean text: rules for each document, duplicates, evaluation texts; with a report of all that was dropped. "
    "The same command goes on where it was stopped",
    "tessera data clean SOURCE [SOURCE …] --out=FOLDER [--rules=unicode,gopher_quality] "
    "[--set=gopher_quality.min_words=20] [--near_duplicates=0.8] [--decontaminate=PATH]",
)
_SECONDS = 5  # between lines of progress, where no terminal shows a bar


def define(values: flags.FlagValues) -> None:
    def text(name: str, default: str, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def number(name: str, default: int, what: str) -> None:
        flags.DEFINE_integer(name, default, what, flag_values=values)

    text("out", "", "the folder to write")
    flags.DEFINE_list(
        "rules", ",".join(DEFAULT_RULES), "applied in this order; empty: none, and texts stay as they are", values
    )
    flags.DEFINE_multi_string(
        "set",
        [],
        "a threshold of a rule, RULE.FIELD=VALUE (language.keep=en,zh); may be given several times. Gopher's stop "
        "words are English: with another --language, their number is 0 where it is not set",
        flag_values=values,
    )
    define_source(values, tuple(FIELDS))
    flags.DEFINE_bool("exact_duplicates", True, "of equal texts, keep the first", flag_values=values)
    flags.DEFINE_float(
        "near_duplicates", 0.0, "drop what is so similar to an earlier document (0.8); 0: none", flag_values=values
    )
    number("ngram", 5, "of near duplicates: words that are compared together")
    number("permutations", 128, "of near duplicates: numbers in a signature; more are more exact")
    flags.DEFINE_multi_string(
        "decontaminate", [], "evaluation texts to keep out; may be given several times", flag_values=values
    )
    text("decontaminate_field", "text", "field of their records that holds the text")
    number("overlap", 13, "words in a row, shared with an evaluation text, that are too many")
    flags.DEFINE_enum(
        "contaminated", "drop", ["drop", "cut"], "drop the document, or cut the shared words out", flag_values=values
    )
    text("perplexity_run", "", "a trained run, or published model, that scores each document")
    flags.DEFINE_float("max_bits_per_byte", None, "drop what that model predicts worse", flag_values=values)
    flags.DEFINE_float("min_bits_per_byte", 0.0, "drop what that model predicts better", flag_values=values)
    number("workers", 0, "processes; 0: one for each core")
    number("examples", 5, "dropped and changed documents that the report shows for each step")
    number("seed", 0, "of the choice of examples")


def run(values: Any, rest: Sequence[str]) -> int:
    """Cleans. Raises ValueError for flags that say too little or contradict, DataError for bad data."""
    from data.cleaning.pipeline import MANIFEST, clean
    from data.cleaning.report import STEP_COLUMNS, notes, step_rows
    from data.cleaning.settings import CleanConfig
    from data.config import SourceConfig
    from data.sources.broken import told

    if not rest or not values.out:
        raise ValueError(f"sources and --out are needed: {USAGE[1]}")
    evaluation = [SourceConfig(path, text_field=values.decontaminate_field) for path in values.decontaminate]
    own = ("exact_duplicates", "near_duplicates", "ngram", "permutations")
    own += ("overlap", "contaminated", "examples", "seed")
    chosen = {name: values[name].value for name in own}
    settings, remark = _thresholds(values)
    settings = CleanConfig(rules=_rules(values, settings), decontaminate=tuple(evaluation), **chosen)
    if values.workers < 0:
        raise ValueError(f"--workers={values.workers} is negative: use 0 for one for each core")
    sources = [SourceConfig(path, **source_fields(values)) for path in rest]
    finished = os.path.exists(os.path.join(os.path.expanduser(values.out), MANIFEST))
    with _Shown() as show:
        report = clean(sources, values.out, settings, show, workers=values.workers or _cores())
    read = json.loads(Path(values.out).expanduser().joinpath(MANIFEST).read_bytes())["sources"]
    skipped = [line for source in read for line in told(source["path"], source)]
    _say_report(report, STEP_COLUMNS, step_rows(report), [*notes(report), *remark, *skipped])
    print(f"{values.out} {'was finished before' if finished else 'is finished'}: see {values.out}/report.html")
    return 0


@dataclass(frozen=True)
class RunScorer:
    """Loads a model in the process that scores with it; as a value, it travels to worker processes."""

    run: str
    step: int | None  # of a run, the checkpoint: training may write newer ones meanwhile; None: it has none to choose
    state: str  # digest of the model, its tokeniser and data, and of the sizes and times of its weights

    def __call__(self) -> Callable[[str], float]:
        # Workers may share one accelerator: none may take its whole memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        from launch.load import load

        model = load(self.run, step=self.step)
        bits_per_byte = getattr(model, "bits_per_byte", None)
        if bits_per_byte is None:
            raise ValueError(f"{self.run} predicts no text token by token: --perplexity_run needs a causal model")
        return bits_per_byte


def scorer_of(run: str) -> RunScorer:
    """With the newest finished checkpoint that a run has now. Raises RunError where there is no such folder."""
    from launch.published import find
    from train import restore

    folder = find(run)
    while True:
        step = max(restore.finished_steps(folder / "checkpoints"), default=None)
        with contextlib.suppress(FileNotFoundError):
            scorer = RunScorer(run, step, _state(folder, step))
            if step is None or step in restore.finished_steps(folder / "checkpoints"):
                return scorer
        # The run trains meanwhile, and deleted this step while its files were looked at: there is a newer one.


def _state(folder: Path, step: int | None) -> str:
    from launch.count import TABLE
    from launch.published import is_published
    from launch.saved import read_run

    if is_published(folder):
        known, read = None, folder.glob("*")
    else:
        record = read_run(folder)
        known = json.dumps([record["model"], record["fingerprints"]], sort_keys=True)
        read = folder.glob(TABLE) if step is None else (folder / "checkpoints" / str(step)).glob("**/*")
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(read) if path.is_file()]
    return hashlib.blake2b(repr((known, files)).encode(), digest_size=16).hexdigest()


def _names(values: Any) -> list[str]:
    return [name.strip() for name in values.rules if name.strip()]


def _thresholds(values: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The fields of rules that are not the default, by rule; and what there is to say of them."""
    from data.cleaning.rules import RULES

    settings: dict[str, dict[str, Any]] = {}
    for given in values.set:
        place, equals, value = given.partition("=")
        rule, dot, field = place.partition(".")
        if not equals or not dot:
            raise ValueError(f"--set={given}: say RULE.FIELD=VALUE, as in gopher_quality.min_words=20")
        if field in settings.get(rule, {}):
            raise ValueError(f"--set={place} is given twice")
        settings.setdefault(rule, {})[field] = _value(RULES.get(rule), field, value)
    quality, language = "gopher_quality", values.language.lower().partition("-")[0]
    own = {"min_stop_words", "stop_words"} & settings.get(quality, {}).keys()
    if language in ("", "en") or quality not in _names(values) or own:
        return settings, []
    settings.setdefault(quality, {})["min_stop_words"] = 0
    return settings, [
        f"Of texts in {values.language!r}, {quality} asked for no stop words: those it knows are English."
    ]


def _rules(values: Any, settings: dict[str, dict[str, Any]]) -> tuple[Any, ...]:
    from data.cleaning.rules import make_rules

    names = _names(values)
    scored = values.max_bits_per_byte is not None or values.min_bits_per_byte
    if bool(values.perplexity_run) != bool(scored):
        raise ValueError("--perplexity_run and --max_bits_per_byte (or --min_bits_per_byte) go together")
    if scored:
        limits = {"minimum": values.min_bits_per_byte}
        if values.max_bits_per_byte is not None:
            limits["maximum"] = values.max_bits_per_byte
        if "perplexity" not in names:  # of the text as it was written: before anything personal is hidden
            names.insert(names.index("personal") if "personal" in names else len(names), "perplexity")
        scorer = {"scorer": scorer_of(values.perplexity_run)}
        settings = settings | {"perplexity": settings.get("perplexity", {}) | limits | scorer}
    return make_rules(names, settings)


def _value(rule: type | None, field: str, text: str) -> Any:
    """The text of a flag as the type that the field's default has; of unknown fields, the text."""
    known = {f.name: f.default for f in dataclasses.fields(rule)} if rule and dataclasses.is_dataclass(rule) else {}
    default = known.get(field)
    if isinstance(default, tuple):
        item = default[0] if default else ""
        return tuple(_literal(part, item) for part in text.split(",") if part)
    return _literal(text, default)


def _literal(text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # the rule says what it must be


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say_report(report: "Report", columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="what each step did", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    if rows:
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    for line in lines:
        print(line)


class _Shown:
    """Shows progress on stderr: a line that is renewed in a terminal, else a new line every few seconds."""

    def __enter__(self) -> "_Shown":
        self._stage, self._terminal = "", sys.stderr.isatty()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stage and self._terminal:
            print(file=sys.stderr)

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        if progress.stage != self._stage:
            # What an earlier run had done comes with the first call: it says nothing of the speed of this one.
            self._stage, self._begun = progress.stage, now
            self._before = (progress.documents, progress.bytes)
        elif now - self._said < (0.1 if self._terminal else _SECONDS):
            return
        self._said = now
        line = describe(progress, self._before, now - self._begun)
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def describe(progress: "Progress", before: tuple[int, int], seconds: float) -> str:
    """One line; `before` are the documents and bytes that were done when the clock started."""
    documents, size = progress.documents - before[0], progress.bytes - before[1]
    line = f"{progress.stage}: {progress.documents:,} documents"
    if progress.bytes:
        line += f", {progress.bytes / 1e6:,.1f} MB"
    if progress.documents:
        line += f", {progress.kept / progress.documents:.1%} kept"
    if not documents or not seconds:
        return line
    line += f", {documents / seconds:,.0f} documents/s"
    if size:
        line += f", {size / 1e6 / seconds:.2f} MB/s"
    if progress.total_documents:
        left = (progress.total_documents - progress.documents) / documents
    elif progress.total_bytes and progress.total_bytes >= progress.bytes:
        left = (progress.total_bytes - progress.bytes) / size
    else:
        return line
    minutes, rest = divmod(round(left * seconds), 60)
    return f"{line}, {minutes}:{rest:02} left"
