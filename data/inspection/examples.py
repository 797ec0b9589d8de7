"""One example as a model sees it: its tokens in order, each with what the arrays say about it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.objectives.examples import Example
from data.tokenizers.tokenizer import Tokenizer

TEXT, SPECIAL, MASK, SENTINEL, CORRUPTED = "text", "special", "mask", "sentinel", "corrupted"
_MOST_JOINED = 8  # ids over which a tokenizer may spread one character
_SHOWN = {"\n": "↵\n", "\r": "␍", "\t": "⇥\t"}
_MOST_TOLD = 8  # numbers of an array that are written out


@dataclass(frozen=True)
class Token:
    """A token; several, where the tokenizer spreads one character over them and they are alike in all else."""

    text: str
    ids: tuple[int, ...]
    segment: int = 1  # tokens of one segment see each other; 1 where the example does not say
    prefix: bool = False  # seen by all of its segment
    weight: float | None = None  # in the loss; None: nothing is predicted here
    kind: str = TEXT  # TEXT, SPECIAL, MASK, SENTINEL, or CORRUPTED: another token stood here
    target: str = ""  # what the model is to say here, where that is something else than `text`


@dataclass(frozen=True)
class Side:
    name: str  # "inputs", "source" or "targets"
    tokens: list[Token]
    padding: int  # slots at the end that nothing is in


@dataclass(frozen=True)
class Shown:
    """An example: the inputs alone, or source and targets. `other`: arrays that are no tokens, and what they hold."""

    name: str
    sides: list[Side]
    other: dict[str, str]


def show(name: str, example: Example, tokenizer: Tokenizer, labels: Sequence[str] | None = None) -> Shown:
    """The arrays of one row as tokens; `data.objectives.examples.Objective` tells what each array is.

    With `source`, there are two sides, that and the targets. Else there are the inputs. Where targets follow them by
    one place, each token has the weight with which it is predicted from those before it, and the last target ends its
    segment. Where targets stand in the places of the inputs, as in masked language modelling, each input has the
    target that is asked of it. With `labels`, targets are indices of these names. What is left is told in `other`.
    """
    pieces = _Pieces(tokenizer)
    of_tokens = labels is None and _of_inputs("targets", example) and _of_inputs("weights", example)
    of_labels = labels is not None and _of_inputs("targets", example) and _of_inputs("weights", example)
    if "source" in example:
        used = {"source", "source_segments", "inputs", "targets", "weights", "segments"}
        sides = [_source(example, pieces), _targets(example, pieces)]
    elif of_tokens:
        used = {"inputs", "targets", "weights", "segments", "prefix"}
        sides = [_following(example, pieces) or _in_place(example, pieces, None)]
    else:
        used = {"inputs", "segments", "prefix"} | ({"targets", "weights"} if of_labels else set())
        sides = [_in_place(example, pieces, labels if of_labels else None)]
    return Shown(name, sides, {key: _told(key, array, labels) for key, array in example.items() if key not in used})


def visible(text: str) -> str:
    """Text of any origin, safe to show: what would steer a terminal or turn a line around is named, line ends marked.

    "\\r\\n" -> "␍↵\\n", a tab -> "⇥\\t", ESC -> "⟨U+001B⟩".
    """
    return text if text.isprintable() else "".join(map(_visible_char, text))


def _visible_char(char: str) -> str:
    if char in _SHOWN:
        return _SHOWN[char]
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"
    return f"⟨U+{ord(char):04X}⟩" if hidden else char


class _Pieces:
    """Ids as tokens: special ones are named by their role, the text of others is what they add to those before."""

    def __init__(self, tokenizer: Tokenizer):
        self.pad_id = tokenizer.special_ids.get("pad", 0)
        self._decode = tokenizer.decode
        self._roles = {id: role for role, id in tokenizer.special_ids.items()}
        self._is_text_V = np.asarray(tokenizer.token_bytes_V) > 0

    def token(self, id: int, **fields: Any) -> Token:
        """A token whose text, if it has any, `spelled` fills in."""
        if self._is_special(id):
            role = self._roles.get(id, str(id))
            fields["kind"] = MASK if role == "mask" else SENTINEL if role.startswith("extra_") else SPECIAL
            return Token(f"⟨{role}⟩", (id,), **fields)
        return Token("", (id,), **fields)

    def name(self, id: int) -> str:
        return self.token(id).text or self._decode([id]) or f"⟨{id}⟩"

    def spelled(self, tokens: Sequence[Token]) -> list[Token]:
        out, before, at = [], [], 0
        while at < len(tokens):
            token = tokens[at]
            if not token.text:
                token = self._joined(tokens[at : at + _MOST_JOINED], before)
            if not self._is_special(token.ids[0]):  # across a mask, the text before it stays the context
                before = [] if token.text.endswith("\ufffd") else list(token.ids)
            out.append(token)
            at += len(token.ids)
        return out

    def _joined(self, tokens: Sequence[Token], before: list[int]) -> Token:
        """The first token, with as many after it as it takes to complete a character; alone where none do."""
        first, weight, ids = tokens[0], tokens[0].weight, []
        for token in tokens:
            alike = replace(token, ids=(), weight=None) == replace(first, ids=(), weight=None) and not token.target
            if not alike or (weight is not None and token.weight != weight):
                break
            weight = token.weight  # the first of a segment, which nothing predicts, has none: it goes with the rest
            ids += token.ids
            text = self._added(before, ids)
            if "\ufffd" not in text:
                return replace(first, text=text or f"⟨{first.ids[0]}⟩", ids=tuple(ids), weight=weight)
        return replace(first, text=self._added(before, first.ids) or f"⟨{first.ids[0]}⟩")

    def _added(self, before: list[int], ids: Sequence[int]) -> str:
        """Text that ids add to what stands before: tokenizers write the spaces between words only there."""
        context, both = self._decode(before), self._decode([*before, *ids])
        return both[len(context) :] if before and both.startswith(context) else self._decode(list(ids))

    def _is_special(self, id: int) -> bool:
        return id in self._roles or not 0 <= id < len(self._is_text_V) or not self._is_text_V[id]


def _source(example: Example, pieces: _Pieces) -> Side:
    ids = example["source"].tolist()
    segments = _segments(example, "source", "source_segments", pieces)
    tokens = [pieces.token(id, segment=segment) for id, segment in zip(ids, segments, strict=True) if segment]
    return Side("source", pieces.spelled(tokens), len(ids) - len(tokens))


def _targets(example: Example, pieces: _Pieces) -> Side:
    ids, weights = example["targets"].tolist(), example["weights"].tolist()
    segments = _segments(example, "targets", "segments", pieces)
    tokens = [
        pieces.token(id, segment=segment, weight=weight)
        for id, segment, weight in zip(ids, segments, weights, strict=True)
        if segment
    ]
    return Side("targets", pieces.spelled(tokens), len(ids) - len(tokens))


def _following(example: Example, pieces: _Pieces) -> Side | None:
    """Inputs whose targets are the next inputs; None where they are not."""
    ids, targets, weights = (example[name].tolist() for name in ("inputs", "targets", "weights"))
    segments, prefix = _segments(example, "inputs", "segments", pieces), _prefix(example)
    tokens: list[Token] = []
    for at, (id, segment) in enumerate(zip(ids, segments, strict=True)):
        if not segment:
            continue
        if at == 0 or segments[at - 1] != segment:
            tokens.append(pieces.token(id, segment=segment, prefix=prefix[at]))
        elif targets[at - 1] != id:
            return None
        is_input = at + 1 < len(ids) and segments[at + 1] == segment
        is_prefix = is_input and prefix[at + 1]
        tokens.append(pieces.token(targets[at], segment=segment, prefix=is_prefix, weight=weights[at]))
    return Side("inputs", pieces.spelled(tokens), segments.count(0))


def _in_place(example: Example, pieces: _Pieces, labels: Sequence[str] | None) -> Side:
    """Inputs, each with what is asked in its place, if anything is."""
    ids, tokens = example["inputs"].tolist(), []
    segments, prefix = _segments(example, "inputs", "segments", pieces), _prefix(example)
    asked = labels is not None or (_of_inputs("targets", example) and _of_inputs("weights", example))
    for at, (id, segment) in enumerate(zip(ids, segments, strict=True)):
        if not segment:
            continue
        token = pieces.token(id, segment=segment, prefix=prefix[at])
        if asked:
            target, weight = int(example["targets"][at]), float(example["weights"][at])
            differs = labels is not None or target != id
            named = labels[target] if labels is not None else pieces.name(target)
            corrupted = labels is None and differs and weight > 0 and token.kind == TEXT
            token = replace(
                token,
                weight=weight,
                target=named if differs and weight > 0 else "",
                kind=CORRUPTED if corrupted else token.kind,
            )
        tokens.append(token)
    return Side("inputs", pieces.spelled(tokens), segments.count(0))


def _of_inputs(name: str, example: Example) -> bool:
    return name in example and example[name].shape == example["inputs"].shape


def _prefix(example: Example) -> list[bool]:
    return example["prefix"].astype(bool).tolist() if "prefix" in example else [False] * len(example["inputs"])


def _segments(example: Example, side: str, name: str, pieces: _Pieces) -> list[int]:
    """The segment of each slot; without such a feature 1, and 0 for padding at the end: pad ids of no weight."""
    if name in example:
        return example[name].tolist()
    end = example[side][-1]
    empty = (example[side] == end) & (end in (0, pieces.pad_id))  # objectives that need no pad id use 0
    if side != "source" and "weights" in example and example["weights"].shape == empty.shape:
        empty &= example["weights"] == 0
    last = int(np.flatnonzero(~empty)[-1]) + 1 if not empty.all() else 0
    return [1] * last + [0] * (len(empty) - last)


def _told(name: str, array: np.ndarray, labels: Sequence[str] | None) -> str:
    if name == "targets" and labels is not None and array.ndim == 0:
        return f"{labels[int(array)]} ({int(array)})"
    if array.size <= _MOST_TOLD:
        return str(array.tolist())
    return f"{array.dtype} {array.shape}, {array.min()} to {array.max()}"
