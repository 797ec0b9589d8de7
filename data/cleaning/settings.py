"""What a cleaning does: everything that decides its output, and how that is compared with what a folder holds."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from data.cleaning.rule import Rule
from data.config import SourceConfig
from data.errors import DataError

CONTAMINATED = ("drop", "cut")


@dataclass(frozen=True)
class CleanConfig:
    """Settings of `data.cleaning.pipeline.clean`. Raises ValueError with field, value and what is allowed."""

    rules: tuple[Rule, ...] = ()  # applied to each document, in this order: see `data.cleaning.rules.make_rules`
    exact_duplicates: bool = True  # of equal texts, the first stays
    near_duplicates: float = 0.0  # estimated Jaccard similarity from which a later document goes; 0: none goes
    ngram: int = 5  # words of a shingle
    permutations: int = 128  # numbers of a MinHash signature
    decontaminate: tuple[SourceConfig, ...] = ()  # evaluation texts that must not be in the output
    overlap: int = 13  # words in a row that count as contamination
    contaminated: str = "drop"  # "drop": the document goes; "cut": the shared words are taken out of it
    examples: int = 5  # documents of each kind (dropped, changed) that the report shows for each step
    seed: int = 0  # of the choice of these examples
    chunk_documents: int = 5_000  # bounds of the unit of work, which is lost when a process is killed
    chunk_bytes: int = 16_000_000

    def __post_init__(self):
        self._require("near_duplicates", 0 <= self.near_duplicates <= 1, "between 0 (off) and 1")
        self._require("permutations", self.permutations >= 2, "2 or more")
        self._require("examples", self.examples >= 0, "0 or more")
        self._require("contaminated", self.contaminated in CONTAMINATED, " or ".join(CONTAMINATED))
        for name in ("ngram", "overlap", "chunk_documents", "chunk_bytes"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rules: {', '.join(twice)} given twice; each counts under its name, so once")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        value = getattr(self, name)
        if not holds or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{name} = {value!r} is not allowed: it must be {allowed}")


def described(sources: Sequence[SourceConfig], settings: CleanConfig) -> dict[str, Any]:
    """Sources and settings as JSON values; rules with references, thresholds, and the state of what they lean on."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    fields["rules"] = {
        rule.name: {"reference": rule.source} | _thresholds(rule) | _state(rule) for rule in settings.rules
    }
    fields["rule_order"] = [rule.name for rule in settings.rules]
    fields["datasketch"] = metadata.version("datasketch") if settings.near_duplicates else None
    fields["decontaminate"] = [dataclasses.asdict(source) for source in settings.decontaminate]
    return {"sources": [dataclasses.asdict(source) for source in sources]} | fields


def require_same(asked: dict[str, Any], there: dict[str, Any], folder: str) -> None:
    """Raises DataError with every leaf in which a folder's cleaning differs from the one that is asked for."""
    new, old = _leaves(asked), _leaves(there)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name != "state_of_sources"]
    if names:
        head = f"{folder} holds another cleaning; use a new folder, or the same settings:"
        raise DataError("\n".join([head, *(f"  {n}: {old.get(n)!r} there, {new.get(n)!r} asked for" for n in names)]))
    for source, now, then in zip(
        [*asked["sources"], *asked["decontaminate"]], asked["state_of_sources"], there["state_of_sources"], strict=True
    ):
        if now != then:
            raise DataError(f"the source {source['path']} has changed since {folder} was begun: use a new folder")


def _state(rule: Rule) -> dict[str, Any]:
    """What the output of a rule depends on beside its fields."""
    state = getattr(rule, "state", None)
    return {"state": state()} if state else {}


def _thresholds(rule: Rule) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(rule)] if dataclasses.is_dataclass(rule) else []
    return {name: _plain(getattr(rule, name)) for name in fields}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return repr(value)


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {k: v for number, item in enumerate(value) for k, v in _leaves(item, f"{name}[{number}]").items()}
    return {name: value}
