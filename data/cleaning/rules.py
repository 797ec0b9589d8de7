"""The rules there are, by name, and how settings become rules."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data.cleaning.boilerplate import Boilerplate
from data.cleaning.c4 import C4
from data.cleaning.fineweb import FineWeb
from data.cleaning.gopher import GopherQuality, GopherRepetition
from data.cleaning.html import Html
from data.cleaning.language import Language
from data.cleaning.perplexity import Perplexity
from data.cleaning.personal import Personal
from data.cleaning.rule import Rule
from data.cleaning.unicode import Unicode
from data.errors import nearest

# In the best order to apply them: repairs, cheap filters, expensive filters, and last what masks personal data.
RULES: dict[str, type] = {
    rule.name: rule
    for rule in (
        Unicode, Html, Boilerplate, Language, GopherRepetition, GopherQuality, C4, FineWeb, Perplexity, Personal
    )
}  # fmt: skip


def make_rules(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The rules of `names`, in that order; `settings` has, for some of them, the fields that are not the default.

    Raises ValueError for a name that is unknown or comes twice, for settings of a rule that is not named, for an
    unknown field and for values that a rule does not allow; DataError where a package or file that a rule needs is
    missing.
    """
    names = list(names)
    for name in names:
        if name not in RULES:
            raise ValueError(f"there is no cleaning rule {name!r}: {nearest(name, RULES)}")
        if names.count(name) > 1:
            raise ValueError(f"the cleaning rule {name!r} is named {names.count(name)} times: name it once")
    for name in settings:
        if name not in names:
            raise ValueError(
                f"settings for {name!r}, which is not among the rules ({', '.join(names)}): add it to them"
            )
    return tuple(_make_rule(name, settings.get(name, {})) for name in names)


def _make_rule(name: str, settings: Mapping[str, Any]) -> Rule:
    fields = {field.name for field in dataclasses.fields(RULES[name])}
    for field in settings:
        if field not in fields:
            raise ValueError(f"the cleaning rule {name!r} has no field {field!r}: {nearest(field, fields)}")
    return RULES[name](**settings)
