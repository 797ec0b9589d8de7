"""A document, and how a record of a table becomes one."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from data.config import SourceConfig
from data.errors import DataError


@dataclass(frozen=True)
class Document:
    id: str  # as the source calls it: several files may repeat one; else file and line, relative to the source's root
    text: str  # never empty
    score: float | None = None  # what a curriculum sorts by, where the source has a score_field


def document_of_record(
    record: Mapping[str, Any], place: str, default_id: str, source: SourceConfig, *, typed: bool = True
) -> Document:
    """The document of one JSON object or table row, found at `place`, as the fields of `source` say.

    Not `typed` is a table of strings only, in which a score is the number that a string spells. A record with no id, or
    with null or "" for one, is called `default_id`. Raises DataError for a text or score that is missing or of another
    type, for an empty text, and for what UTF-8 cannot hold.
    """
    text = _field(record, source.text_field, "text_field", place)
    if not isinstance(text, str):
        raise DataError(f"{place}: field {source.text_field!r} is {_described(text)}, not a string")
    if not text:
        raise DataError(f"{place}: field {source.text_field!r} is empty: remove the record, or give it text")
    _check_utf8(text, source.text_field, place)
    score = _score(record, source.score_field, place, typed) if source.score_field else None
    return Document(_id(record.get(source.id_field), default_id, place, source.id_field), text, score)


def missing_field(name: str, setting: str, there: Mapping[str, Any] | list[str], place: str) -> DataError:
    """The error for a field or column that is not there: names those that are."""
    names = ", ".join(map(repr, there)) or "none"
    return DataError(f"{place}: no field {name!r}; fields there: {names}; set data.{setting}")


def _field(record: Mapping[str, Any], name: str, setting: str, place: str) -> Any:
    if name not in record:
        raise missing_field(name, setting, record, place)
    return record[name]


def _score(record: Mapping[str, Any], name: str, place: str, typed: bool) -> float:
    value = _field(record, name, "score_field", place)
    if not typed:
        with suppress(ValueError):  # which is reported with all that is no number
            value = float(value)
    try:
        score = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        score = math.inf
    if not math.isfinite(score):
        raise DataError(f"{place}: field {name!r} is {_described(value)}: data.score_field needs a finite number")
    return score


def _id(value: Any, default_id: str, place: str, name: str) -> str:
    if value is None or value == "":
        return default_id
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = _described(value)
        raise DataError(f"{place}: field {name!r} is {kind}, not a string or a number: set data.id_field to another")
    _check_utf8(str(value), name, place)
    return str(value)


def _check_utf8(text: str, name: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{place}: field {name!r} has half a surrogate pair ({found}) at {error.start}") from error


def _described(value: Any) -> str:
    shown = repr(value) if not isinstance(value, dict | list | int) or abs(len(str(value))) < 40 else ""
    return "null" if value is None else f"a {type(value).__name__} ({shown[:40]})".replace(" ()", "")
