"""New texts from old ones: noise at the level of words, characters and sentences, and back-translation.

A transform is called as transform(text, rng) and is a function of these two alone. Words are those of `data.words`:
of Chinese and Japanese, characters. What stands between words, line ends among it, stays where it is.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from data.sources.documents import Document
from data.words import Span, replaced, sentence_spans, word_spans

Transform = Callable[[str, np.random.Generator], str]


@dataclass(frozen=True)
class TokenMasking:
    """Each word becomes `mask` with probability `rate` (the unigram blank of Xie et al. 2017, section 3.2)."""

    rate: float
    mask: str = "[MASK]"

    def __post_init__(self):
        _check_rate(self)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        spans = _drawn(word_spans(text), self.rate, rng)
        return replaced(text, spans, [self.mask] * len(spans))


@dataclass(frozen=True)
class TokenDeletion:
    """Each word goes with probability `rate`, and one space with it (Wei and Zou 2019, section 2). One word stays."""

    rate: float

    def __post_init__(self):
        _check_rate(self)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        spans = word_spans(text)
        gone = _drawn(spans, self.rate, rng)
        if spans and len(gone) == len(spans):
            del gone[rng.integers(len(gone))]
        cuts, end = [], 0
        for first, last in gone:
            after = text[last : last + 1] == " "
            before = not after and first > end and text[first - 1] == " "
            end = last + after
            cuts.append((first - before, end))
        return replaced(text, cuts, [""] * len(cuts))


@dataclass(frozen=True)
class Swap:
    """Neighbouring words change places; `rate` is the expected fraction of the words that move."""

    rate: float

    def __post_init__(self):
        _check_rate(self)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        spans = word_spans(text)
        new = [text[first:last] for first, last in spans]
        # From left to right a pair is swapped with probability p, else its first word stays: of 1 + p words 2 p move.
        swaps = (rng.random(len(spans)) < self.rate / (2 - self.rate)).tolist()
        at = 0
        while at + 1 < len(new):
            if swaps[at]:
                new[at], new[at + 1] = new[at + 1], new[at]
                at += 1
            at += 1
        return replaced(text, spans, new)


@dataclass(frozen=True)
class CharacterNoise:
    """Each character of a word is mistyped with probability `rate` (Belinkov and Bisk 2018, section 3.2).

    One of four, equally likely: replaced by another, left out, followed by one that is too many, or swapped with the
    next of its word (replaced where there is none to swap with). The other character is a neighbour on a QWERTY
    keyboard for a letter of English, in the same case; for any other, a random one of the words of the text.
    """

    rate: float

    def __post_init__(self):
        _check_rate(self)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        spans = word_spans(text)
        alphabet = sorted({char for first, last in spans for char in text[first:last]})
        places = [(at, last) for first, last in _joined(spans) for at in range(first, last)]
        chosen = _drawn(places, self.rate, rng)
        taken, new, spots = {at for at, _ in chosen}, [], []
        for at, last in chosen:
            here, after = text[at], text[at + 1 : last][:1]
            kind = ("replace", "delete", "insert", "swap")[rng.integers(4)]
            if kind == "swap" and (not after or after == here or at + 1 in taken):
                kind = "replace"
            other = _other(here, alphabet, rng) if kind in ("replace", "insert") else ""
            spots.append((at, at + 1 + (kind == "swap")))
            new.append({"replace": other, "delete": "", "insert": here + other, "swap": after + here}[kind])
        noisy = replaced(text, spots, new)
        return noisy if word_spans(noisy) else text  # a document is never noised away


@dataclass(frozen=True)
class SentenceShuffle:
    """Each sentence is taken with probability `rate`, and those taken are put back in random order.

    With rate 1 it is the sentence permutation of BART (Lewis et al. 2020, section 2.2).
    """

    rate: float

    def __post_init__(self):
        _check_rate(self)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        taken = _drawn(sentence_spans(text), self.rate, rng)
        order = [taken[index] for index in rng.permutation(len(taken))]
        return replaced(text, taken, [text[first:last] for first, last in order])


@dataclass(frozen=True)
class BackTranslation:
    """Each sentence to another language and back (Sennrich et al. 2016), by two functions of texts and a seed.

    Where the functions draw, they do so by the seed, a number from 0 to 2^31 - 1. A sentence for which one of them has
    a blank text stays as it is. Raises ValueError if they do not return a text for each one.
    """

    there: Callable[[list[str], int], list[str]]
    back: Callable[[list[str], int], list[str]]
    name: str = "back_translation"  # in the records

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        spans = sentence_spans(text)
        if not spans:
            return text
        sentences = dict(enumerate(text[first:last] for first, last in spans))
        translated = sentences
        for name in ("there", "back"):
            found = getattr(self, name)(list(translated.values()), int(rng.integers(2**31)))
            if len(found) != len(translated):
                raise ValueError(f"`{name}` returned {len(found)} texts for {len(translated)}: one each is needed")
            translated = {place: new for place, new in zip(translated, found, strict=True) if new.strip()}
        return replaced(text, spans, list((sentences | translated).values()))


TRANSFORMS: dict[str, type] = {
    "token_masking": TokenMasking,
    "token_deletion": TokenDeletion,
    "swap": Swap,
    "character_noise": CharacterNoise,
    "sentence_shuffle": SentenceShuffle,
}


def parse_transforms(text: str) -> tuple[Transform, ...]:
    """ "swap:0.1,character_noise:0.05" -> the transforms, in this order. Raises ValueError for anything else."""
    transforms = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+):([0-9.eE+-]+)\s*", part)
        if not found or found[1] not in TRANSFORMS:
            raise ValueError(f"transform {part.strip()!r} is not NAME:RATE with a NAME of {', '.join(TRANSFORMS)}")
        try:
            rate = float(found[2])
        except ValueError:
            raise ValueError(f"transform {part.strip()!r}: the rate {found[2]!r} is not a number") from None
        transforms.append(TRANSFORMS[found[1]](rate))
    return tuple(transforms)


def compose(*transforms: Transform) -> Transform:
    """One transform that applies all of them, the first one first."""

    def composed(text: str, rng: np.random.Generator) -> str:
        for transform in transforms:
            text = transform(text, rng)
        return text

    return composed


def augment(
    documents: Iterable[Document],
    transforms: Sequence[Transform],
    *,
    copies: int = 1,
    seed: int = 0,
    original: bool = True,
) -> Iterator[dict[str, Any]]:
    """Records for a JSONL file: each document as it is, unless `original` is False, then `copies` changed ones.

    A changed copy has "#aug1", "#aug2", … behind its id, and says its `transform` and `seed`. Its random numbers are
    a function of seed, id and copy: neither the order of the documents nor who computes them matters. So documents of
    one id, in two files say, get the same random numbers.
    Raises ValueError for no copies, and for no transforms.
    """
    if copies < 1 or not transforms:
        raise ValueError(f"{copies} copies by {len(transforms)} transforms: both must be 1 or more")
    transform, says = compose(*transforms), ",".join(map(_described, transforms))
    for document in documents:
        score = {} if document.score is None else {"score": document.score}
        if original:
            yield {"id": document.id, "text": document.text, **score}
        for copy in range(1, copies + 1):
            text = transform(document.text, _random_stream(seed, document.id, copy))
            yield {"id": f"{document.id}#aug{copy}", "text": text, **score, "transform": says, "seed": seed}


def _random_stream(seed: int, id: str, copy: int) -> np.random.Generator:
    digest = hashlib.blake2b(repr((seed, id, copy)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def _described(transform: Transform) -> str:
    names = {kind: name for name, kind in TRANSFORMS.items()}
    if type(transform) in names:
        fields = [getattr(transform, field.name) for field in dataclasses.fields(transform)]  # pyright: ignore
        return ":".join(map(str, [names[type(transform)], *fields]))
    return (
        transform.name
        if isinstance(transform, BackTranslation)
        else getattr(transform, "__name__", type(transform).__name__)
    )


def _check_rate(transform: Any) -> None:
    if not 0 <= transform.rate <= 1:
        raise ValueError(f"{type(transform).__name__}.rate is {transform.rate}: it must be from 0 to 1")


def _drawn(items: list[Span], rate: float, rng: np.random.Generator) -> list[Span]:
    """Each of the items with probability `rate`, in their order."""
    return [items[index] for index in np.flatnonzero(rng.random(len(items)) < rate).tolist()]


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans that touch as one: a run of Chinese characters, within which two can change places."""
    begin = end = -1
    for first, last in spans:
        if first != end:
            if end > begin:
                yield begin, end
            begin = first
        end = last
    if end > begin:
        yield begin, end


def _other(char: str, alphabet: Sequence[str], rng: np.random.Generator) -> str:
    """A character typed in the place of `char`; another one, if the text has another."""
    near = _keyboard().get(char.lower()) if char.isascii() else None
    if near:
        other = near[int(rng.integers(len(near)))]
        return other.upper() if char.isupper() else other
    others = [other for other in alphabet if other != char] or alphabet
    return others[int(rng.integers(len(others)))]


@cache
def _keyboard() -> dict[str, str]:
    """Letters that touch each letter of a QWERTY keyboard, whose rows lie a quarter and three quarters of a key in."""
    rows = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))
    place = {key: (x + shift, y) for y, (keys, shift) in enumerate(rows) for x, key in enumerate(keys)}
    return {
        key: "".join(k for k, (u, v) in place.items() if k != key and abs(u - x) <= 1 and abs(v - y) <= 1)
        for key, (x, y) in place.items()
    }
