"""Conversations: turns of a user and of an assistant, whose replies are learned."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from data.tasks.examples import Dialogue
from data.tasks.records import existing, field, json_records, lines
from data.tasks.task import Task, repair

Repairs = Counter[str] | None
_TURN = re.compile(r"(- -|  -|-) (.+)")


def read_jsonl(path: str | Path, _: Repairs) -> Iterator[Dialogue]:
    """{"turns": [{"role": "user", "text": …}, …]} a line."""
    for place, record in json_records(path):
        turns = field(record, "turns", list, place)
        roles, texts = ([field(turn, name, str, place) for turn in turns] for name in ("role", "text"))
        yield Dialogue(place, tuple(zip(roles, texts, strict=True)))


def read_chatterbot(path: str | Path, repairs: Repairs) -> Iterator[Dialogue]:
    """A `.yml` file of chatterbot-corpus, or a folder of them: `conversations:` is a list of lists of turns.

    The first turn is the user's, the next the assistant's, and so on. Of YAML, only what these files use is read:
    plain and quoted texts, also over several lines. Anything else is a DataError.
    """
    place = existing(path)
    files = sorted(place.glob("*.yml")) if place.is_dir() else [place]
    if not files:
        raise DataError(f"{place} has no .yml file")
    for file in files:
        yield from _conversations(file, repairs)


def _conversations(file: Path, repairs: Repairs) -> Iterator[Dialogue]:
    start, turns = "", []
    for place, first, text in _turns(file, repairs):
        if first and turns:
            yield _alternating(start, turns)
        start, turns = (place, [text]) if first else (start, [*turns, text])
    if turns:
        yield _alternating(start, turns)


def _alternating(place: str, texts: list[str]) -> Dialogue:
    return Dialogue(place, tuple((("user", "assistant")[at % 2], text) for at, text in enumerate(texts)))


def _turns(file: Path, repairs: Repairs) -> Iterator[tuple[str, bool, str]]:
    """(place, whether it opens a conversation, text) of each turn below `conversations:`."""
    numbered = iter(lines(file))
    if not any(line.rstrip() == "conversations:" for _, line in numbered):  # reads up to that line
        raise DataError(f"{file}: no line 'conversations:'")
    place, first, parts = "", True, []
    for here, line in numbered:
        turn = _TURN.fullmatch(line)
        if turn:
            if parts:
                yield place, first, _scalar(place, parts)
            elif turn[1] == "  -":
                raise DataError(f"{here}: a turn outside a conversation: {line[:60]!r}")
            if turn[1] == "-":
                repair(repairs, here, f"{line[:60]!r} is no list of turns", "'- text' is read as '- - text'")
            place, first, parts = here, turn[1] != "  -", [turn[2]]
        elif parts and (line.startswith("   ") or not line.strip()):
            parts.append(line)
        else:
            raise DataError(f"{here}: neither '- - text' nor '  - text' nor the rest of a text: {line[:60]!r}")
    if parts:
        yield place, first, _scalar(place, parts)


def _scalar(place: str, parts: list[str]) -> str:
    """The text of a YAML scalar: a line end within it is a space, but n empty lines are n line ends."""
    text = parts[0].strip(" \t")
    gap = 0
    for part in (part.strip(" \t") for part in parts[1:]):
        if not part:
            gap += 1
            continue
        text, gap = text + ("\n" * gap or " ") + part, 0
    if text[0] == "'" == text[-1] and len(text) > 1 and re.fullmatch("([^']|'')*", text[1:-1]):
        return text[1:-1].replace("''", "'")
    if text[0] == '"':
        try:
            return json.loads(text, strict=False)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not a quoted text: {text[:60]!r} ({error.msg})") from error
    if text[0] in "'&*!|>%@`{}[],#?" or re.search(r": | #|:$", text):
        raise DataError(f"{place}: not a plain text of YAML: {text[:60]!r}: put it in quotes")
    return text


DIALOGUE = (
    Task("dialogue", "dialogue", read_jsonl, "bleu", "", "{role}:\n"),
    Task("chatterbot", "dialogue", read_chatterbot, "bleu", "", "{role}:\n"),
)
