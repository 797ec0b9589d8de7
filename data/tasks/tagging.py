"""A tag for each token of a text: named entities and the like, in columns or JSON."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.tasks.examples import Tagged
from data.tasks.records import field, json_records, lines
from data.tasks.task import Reader, Task, repair

Repairs = Counter[str] | None
_INDEXED = re.compile(r"(.+?)\d+")


def read_columns(path: str | Path, repairs: Repairs) -> Iterator[Tagged]:
    """A token a line with columns between white space, its tag the last; sentences end at blank lines.

    CoNLL-2003 (its -DOCSTART- lines are no token), WNUT-17. Tokens are joined by spaces.
    """
    for place, rows in _sentences(path):
        yield joined(place, [row[0] for row in rows], [row[-1] for row in rows], " ", repairs)


def read_indexed_characters(path: str | Path, repairs: Repairs) -> Iterator[Tagged]:
    """As `read_columns`, each token a character and its number in its word: Weibo NER (Peng and Dredze 2015)."""
    for place, rows in _sentences(path):
        found = [_INDEXED.fullmatch(row[0]) for row in rows]
        tokens = [match[1] for match in found if match]
        if len(tokens) != len(rows):
            wrong = rows[found.index(None)][0]
            raise DataError(f"{place}: the sentence has {wrong!r}, not a character and its number in its word")
        yield joined(place, tokens, [row[-1] for row in rows], "", repairs)


def read_jsonl(path: str | Path, repairs: Repairs) -> Iterator[Tagged]:
    """{"tokens": […], "tags": […]} a line, and "joint" for what stands between tokens, where it is no space."""
    for place, record in json_records(path):
        tokens, tags = (field(record, name, list, place) for name in ("tokens", "tags"))
        joint = field(record, "joint", str, place) if "joint" in record else " "
        if wrong := [item for item in (*tokens, *tags) if not isinstance(item, str)]:
            raise DataError(f"{place}: {wrong[0]!r} among tokens and tags is a {type(wrong[0]).__name__}, not a string")
        yield joined(place, tokens, tags, joint, repairs)


def read_cluener(path: str | Path, _: Repairs) -> Iterator[Tagged]:
    """{"text": …, "label": {type: {entity: [[first, last]]}}} a line, in characters, the last one too (Xu et al. 2020).

    Raises DataError for an entity that is not at its place, and for two that overlap.
    """
    for place, record in json_records(path):
        text = field(record, "text", str, place)
        tags = ["O"] * len(text)
        labels = field(record, "label", dict, place)
        for kind in labels:
            entities = field(labels, kind, dict, place)
            for entity in entities:
                for first, last in (_span(span, entity, place) for span in field(entities, entity, list, place)):
                    there = text[first : last + 1]
                    if there != entity:
                        raise DataError(f"{place}: {kind} {entity!r} is not at {first}-{last}, where {there!r} is")
                    if tags[first : last + 1] != ["O"] * len(entity):
                        raise DataError(f"{place}: {kind} {entity!r} overlaps with another entity at {first}-{last}")
                    tags[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
        yield joined(place, list(text), tags, "", None)


def _span(span: Any, entity: str, place: str) -> tuple[int, int]:
    if not (isinstance(span, list) and [type(at) for at in span] == [int, int] and 0 <= span[0] <= span[1]):
        raise DataError(f"{place}: {entity!r} is at {span!r}, not at [first, last] character, counted from 0")
    return span[0], span[1]


def joined(place: str, tokens: Sequence[str], tags: Sequence[str], joint: str, repairs: Repairs) -> Tagged:
    """The text of tokens with `joint` between them, and their tags, checked."""
    if len(tokens) != len(tags):
        raise DataError(f"{place}: {len(tokens)} tokens and {len(tags)} tags: give each token a tag")
    if "" in tokens or "" in tags:
        raise DataError(f"{place}: a token or a tag of {len(tokens)} is empty")
    spans, end = [], -len(joint)
    for token in tokens:
        start = end + len(joint)
        end = start + len(token)
        spans.append((start, end))
    return Tagged(place, joint.join(tokens), tuple(spans), tuple(_checked(tags, place, repairs)))


def _checked(tags: Sequence[str], place: str, repairs: Repairs) -> Iterable[str]:
    """The tags where each I- continues an entity of its type (IOB2); others, such as NOUN, are as they are.

    The repair also turns IOB1, in which CoNLL-2003 was published, into IOB2.
    """
    fixed = list(tags)
    for at, (before, tag) in enumerate(pairwise(["O", *tags])):
        if (tag.startswith("I-") and before[:2] not in ("B-", "I-")) or (tag[:2] == "I-" and before[2:] != tag[2:]):
            wrong = f"token {at + 1} has the tag {tag!r} after {before!r}, which opens no such entity"
            repair(repairs, place, wrong, "I- that opens an entity becomes B-")
            fixed[at] = f"B-{tag[2:]}"
    return fixed


def _sentences(path: str | Path) -> Iterator[tuple[str, list[list[str]]]]:
    """(place of the first token, columns of each token) of each sentence; a -DOCSTART- line ends one, too."""
    numbered = ((place, line.split()) for place, line in lines(path))
    for filled, group in groupby(numbered, key=lambda item: item[1][:1] not in ([], ["-DOCSTART-"])):
        if not filled:
            continue
        rows = list(group)
        for place, row in rows:
            if len(row) != len(rows[0][1]) or len(row) < 2:
                raise DataError(f"{place}: {len(row)} column(s), not {max(2, len(rows[0][1]))}: {' '.join(row)[:60]!r}")
        yield rows[0][0], [row for _, row in rows]


def _task(name: str, reader: Reader, *types: str) -> Task:
    """A task whose tags are O and the two of each type of entity."""
    labels = ("O", *(f"{tag}-{kind}" for kind in types for tag in "BI")) if types else ()
    return Task(name, "tagging", reader, "span_f1", f"{name}: {{text}}", "{text}\nThe tags of these tokens:\n", labels)


_WNUT = ("corporation", "creative-work", "group", "location", "person", "product")
_WEIBO = [f"{kind}.{named}" for kind in ("GPE", "LOC", "ORG", "PER") for named in ("NAM", "NOM")]
_CLUENER = (
    *("address", "book", "company", "game", "government"),
    *("movie", "name", "organization", "position", "scene"),
)


TAGGING = (
    _task("tagging", read_jsonl),
    _task("conll2003", read_columns, "LOC", "MISC", "ORG", "PER"),
    _task("wnut17", read_columns, *_WNUT),
    _task("weibo_ner", read_indexed_characters, *_WEIBO),
    _task("cluener", read_cluener, *_CLUENER),
)
