"""A text in, another out: summaries and translations."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from data.tasks.examples import TextPair
from data.tasks.records import cells, csv_records, field, json_file, json_records, parallel
from data.tasks.task import Reader, Task, repair

Repairs = Counter[str] | None


def read_jsonl(path: str | Path, _: Repairs) -> Iterator[TextPair]:
    """{"source": …, "target": …} a line."""
    for place, record in json_records(path):
        yield TextPair(place, field(record, "source", str, place), field(record, "target", str, place))


def read_dialogsum(path: str | Path, _: Repairs) -> Iterator[TextPair]:
    """{"dialogue": …, "summary": …} a line (Chen et al. 2021)."""
    for place, record in json_records(path):
        yield TextPair(place, field(record, "dialogue", str, place), field(record, "summary", str, place))


def read_cnn_dailymail(path: str | Path, _: Repairs) -> Iterator[TextPair]:
    """CSV with the columns article and highlights (See et al. 2017)."""
    for place, record in csv_records(path, ("article", "highlights")):
        yield TextPair(place, record["article"], record["highlights"])


def read_legal(path: str | Path, _: Repairs) -> Iterator[TextPair]:
    """A JSON object of records with original_text and reference_summary (Manor and Li 2019)."""
    records = json_file(path)
    if not isinstance(records, dict):
        raise DataError(f"{path}: a JSON {type(records).__name__}, not an object of records")
    for name, record in records.items():
        place = f"{path}:{name}"
        yield TextPair(
            place, field(record, "original_text", str, place), field(record, "reference_summary", str, place)
        )


def read_csl_titles(path: str | Path, _: Repairs) -> Iterator[TextPair]:
    """The name of the task, an abstract and its title between tabs (CSL, Li et al. 2022)."""
    for place, (_prefix, abstract, title) in cells(path, (3,)):
        yield TextPair(place, abstract, title)


def read_tabs(path: str | Path, repairs: Repairs) -> Iterator[TextPair]:
    """Source and target between tabs, and whom they are owed to in newer exports of Tatoeba."""
    for place, (source, target, *_) in cells(path, (2, 3)):
        yield from _pair(place, source, target, repairs)


def read_parallel(path: str | Path, repairs: Repairs) -> Iterator[TextPair]:
    """Two files, line by line: "train.{en,de}" (Multi30k, Elliott et al. 2016), "{src,tgt}-train.txt" (OpenNMT)."""
    for place, source, target in parallel(path):
        yield from _pair(place, source, target, repairs)


def _pair(place: str, source: str, target: str, repairs: Repairs) -> Iterator[TextPair]:
    if source.strip() and target.strip():
        yield TextPair(place, source, target)
    else:
        which = "source" if not source.strip() else "target"
        repair(repairs, place, f"the {which} is empty", "pair with an empty side is left out")


def _task(name: str, reader: Reader, metric: str, source: str) -> Task:
    """The decoder's prompt says the same as the encoder's source."""
    return Task(name, "text_to_text", reader, metric, source, f"{source}\n")


_SUMMARIZE, _TRANSLATE = "summarize: {source}", "translate English to "

WRITING = (
    _task("text_to_text", read_jsonl, "rouge", "{source}"),
    _task("legal_sum", read_legal, "rouge", _SUMMARIZE),
    _task("csl_titles", read_csl_titles, "rouge", "to title: {source}"),
    _task("dialogsum", read_dialogsum, "rouge", _SUMMARIZE),
    _task("cnn_dailymail", read_cnn_dailymail, "rouge", _SUMMARIZE),
    _task("tatoeba_cmn", read_tabs, "bleu", f"{_TRANSLATE}Chinese: {{source}}"),
    _task("opennmt_ende", read_parallel, "bleu", f"{_TRANSLATE}German: {{source}}"),
    _task("multi30k", read_parallel, "bleu", f"{_TRANSLATE}German: {{source}}"),
    _task("parallel", read_parallel, "bleu", "translate: {source}"),
)
