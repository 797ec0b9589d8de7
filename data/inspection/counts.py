"""Counts over any number of documents in bounded memory: exact, or with the error that they may have."""

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from data.cleaning.words import UNSPACED
from data.words import words

RARE = 5  # an id that is used less often is rare
LANGUAGE_SAMPLE = 1000  # documents, drawn at random
_LANGUAGE_CHARACTERS = 1000  # of the beginning of each
_UNSPACED_PAIR = re.compile(f"[{UNSPACED}]{{2}}")
_SLICE = 2**16  # characters whose words are counted at once
_BETWEEN = re.compile(rf"[\s,.;:{UNSPACED}]")  # after one of these, a word begins anew
_SHOWN = 80  # characters of a text that is named
_LONGEST_WORD = 64  # characters; of a longer one, the beginning is counted


class PrunedCounter:
    """How often each item came, for the most frequent ones; `error`: a count may be so much too low, never too high.

    Whenever it holds more than twice its capacity, all that came no more often than the item at the capacity's rank
    are dropped, and what each of them lost is added to `error` (lossy counting, Manku and Motwani 2002, with drops by
    size). So an item that came more often than `error` is always here.
    """

    def __init__(self, capacity: int = 100_000):
        self.counts: Counter = Counter()
        self.error = 0
        self._capacity = capacity

    def update(self, items: Iterable) -> None:
        self.counts.update(items)
        if len(self.counts) > 2 * self._capacity:
            counts = np.fromiter(self.counts.values(), np.int64, len(self.counts))
            limit = int(np.partition(counts, -self._capacity)[-self._capacity])
            self.counts = Counter({item: count for item, count in self.counts.items() if count > limit})
            self.error += limit


class Reservoir:
    """A uniform sample of `size` of a stream of any length (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, rng: np.random.Generator):
        self.items: list = []
        self._size, self._rng, self._seen = size, rng, 0

    def add(self, item: object) -> None:
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (at := int(self._rng.integers(self._seen))) < self._size:
            self.items[at] = item


@dataclass(frozen=True)
class Duplicates:
    """Exact copies, by 8-byte hashes: that a million different texts hold two equal ones is 1 in 37 million."""

    copies: int  # documents whose text came before
    most_frequent: list[tuple[str, int]]  # beginning of the text, how often it is there


class TextCounts:
    """Counts of a stream of documents, see `Inspection` for what each means."""

    def __init__(self, rng: np.random.Generator):
        self.documents = self.num_bytes = self.characters = 0
        self.ngrams = {n: PrunedCounter() for n in (1, 2, 3)}
        self._hashes = array("Q")
        self._beginnings = PrunedCounter()
        self._sample = Reservoir(LANGUAGE_SAMPLE, rng)

    def add(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self.documents += 1
        self.num_bytes += len(encoded)
        self.characters += len(text)
        hashed = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
        self._hashes.append(hashed)
        self._beginnings.update([(hashed, text[:_SHOWN])])
        self._sample.add(text[:_LANGUAGE_CHARACTERS])
        before: list[str] = []  # words with which an n-gram of the next slice may begin
        for part in _slices(text):
            found = [word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…" for word in words(part)]
            for n, counter in self.ngrams.items():
                reached = before[max(0, len(before) - n + 1) :] + found
                counter.update(zip(*(reached[start:] for start in range(n)), strict=False))
            before = (before + found)[-max(self.ngrams) + 1 :]

    def top_ngrams(self, n: int, how_many: int) -> list[tuple[str, int]]:
        return [(joined(gram), count) for gram, count in self.ngrams[n].counts.most_common(how_many)]

    def duplicates(self, how_many: int) -> Duplicates:
        hashes, counts = np.unique(np.frombuffer(self._hashes, np.uint64), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:how_many]
        beginnings = dict(self._beginnings.counts.keys())
        frequent = [
            (beginnings.get(int(hashes[at]), "(a text too rare to be kept)"), int(counts[at]))
            for at in order
            if counts[at] > 1
        ]
        return Duplicates(self.documents - len(hashes), frequent)

    def languages(self) -> tuple[dict[str, int], str]:
        """Documents of a random sample by language, or by script where lingua is missing; and how they were found."""
        of = f"first {_LANGUAGE_CHARACTERS} characters of {len(self._sample.items):,} of {self.documents:,} documents"
        try:
            found, by = Counter(map(_language, self._sample.items)), f"languages by lingua: {of}"
        except ImportError:
            found = Counter(map(script, self._sample.items))
            by = f"scripts, as lingua is not installed (pip install 'tessera-lm[cleaning]'): {of}"
        return dict(found.most_common()), by


class TokenCounts:
    """How often each id came, and how long the documents are: counts (V,), and log bins of lengths."""

    def __init__(self, vocab_size: int):
        self.counts_V = np.zeros(vocab_size, np.int64)
        self._bins = np.zeros(64, np.int64)

    def add(self, ids: np.ndarray) -> None:
        # bincount of a short text would still touch the whole vocabulary
        if len(ids) < len(self.counts_V) // 8:
            np.add.at(self.counts_V, ids, 1)
        else:
            self.counts_V += np.bincount(ids, minlength=len(self.counts_V))
        self._bins[len(ids).bit_length()] += 1

    def lengths(self) -> list[tuple[int, int, int]]:
        """Fewest tokens, most tokens, documents: bins 0, 1, 2-3, 4-7, … from the first to the last that is used."""
        used = np.flatnonzero(self._bins)
        bins = range(used[0], used[-1] + 1) if used.size else ()
        return [(2 ** (b - 1) if b else 0, 2**b - 1, int(self._bins[b])) for b in bins]


def _slices(text: str) -> Iterator[str]:
    """A text in parts that end between words: a line of millions of characters is counted, and pruned, in slices."""
    start = 0
    while start < len(text):
        between = _BETWEEN.search(text, start + _SLICE)
        end = between.end() if between else len(text)
        yield text[start:end]
        start = end


def joined(gram: Sequence[str]) -> str:
    """An n-gram as it is written: no space between two characters of a script that has none."""
    text = gram[0]
    for word in gram[1:]:
        text += word if _UNSPACED_PAIR.fullmatch(text[-1] + word[0]) else f" {word}"
    return text


def script(text: str) -> str:
    """The script of most letters of a text, as their Unicode names call it: LATIN, CJK, CYRILLIC, …; "none"."""
    found = Counter(_script_of(char) for char in text if char.isalpha())
    return found.most_common(1)[0][0] if found else "none"


@cache
def _script_of(char: str) -> str:
    return unicodedata.name(char, "UNNAMED").split(" ")[0]


def _language(text: str) -> str:
    found = _detector().detect_language_of(text)
    return "unknown" if found is None else found.name.capitalize()


@cache
def _detector():
    from lingua import LanguageDetectorBuilder

    # Models of up to three letters: a tenth of the memory, and enough for texts of more than a line.
    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
