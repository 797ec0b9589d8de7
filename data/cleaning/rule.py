"""What a cleaning rule is: a function of one document's text, to the text that goes on or to why it goes no further."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Dropped:
    """Why a document goes: `reason` is short and can be counted, `detail` has the numbers of this text."""

    reason: str
    detail: str


class Rule(Protocol):
    """One thing that is done to, or asked of, a document.

    A rule is a frozen dataclass whose fields are its thresholds, with the published values as defaults; a threshold
    that makes no sense raises ValueError when the rule is made. It can be pickled: rules travel to worker processes.
    One that leans on a file or a package has a method `state() -> dict[str, str]` that tells its digest or version: a
    cleaning is not continued with another.
    """

    name: ClassVar[str]  # as settings call it: "gopher_quality"
    source: ClassVar[str]  # the paper or standard it comes from

    def __call__(self, text: str) -> str | Dropped:
        """The text, mended or as it was, or why the document goes. Pure: it depends on the text and the fields only."""
        ...


def mended(before: str, after: str) -> str | Dropped:
    """What a rule that takes things away returns: `after`, or, where nothing visible is left, why it goes."""
    if after and not after.isspace():
        return after
    return Dropped("empty", f"nothing is left of {len(before)} characters")


Allowed = tuple[Callable[[Any], bool], str]  # what a value must fulfil, and that in words


def require(rule: Rule, allowed: Allowed, *fields: str) -> None:
    """Raises ValueError that names the field, its value and what is allowed, for the first of `fields` that is not."""
    fits, words = allowed
    for field in fields:
        value = getattr(rule, field)
        if not fits(value):
            raise ValueError(f"{rule.name}.{field} = {value!r} is not allowed: it must be {words}")


def one_of(*values: str) -> Allowed:
    return lambda value: value in values, f"one of {', '.join(values)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # bool is an int to Python, not to a reader


COUNT: Allowed = (lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0, "a whole number, 0 or more")
FLAG: Allowed = (lambda v: isinstance(v, bool), "True or False")
FRACTION: Allowed = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
NUMBER: Allowed = (lambda v: _is_number(v) and v >= 0, "a number, 0 or more")
TEXT: Allowed = (lambda v: isinstance(v, str), "a text")


def all_of(allowed: Allowed, length: int | None = None) -> Allowed:
    """A tuple, of `length` where that is given and else not empty, of values that are each `allowed`."""
    fits, words = allowed
    count = f"{length} values" if length else "1 value or more"
    right = lambda v: isinstance(v, tuple) and (len(v) == length if length else bool(v)) and all(map(fits, v))  # noqa: E731
    return right, f"a tuple of {count}, each {words}"
