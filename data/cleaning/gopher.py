"""The quality and repetition rules of Gopher (Rae et al. 2021, "Scaling Language Models", appendix A.1.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.cleaning.rule import COUNT, FRACTION, NUMBER, TEXT, Dropped, all_of, one_of, require
from data.cleaning.words import WORDS, Words, split_words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]")
_VISIBLE = re.compile(r"\w")


@dataclass(frozen=True)
class GopherQuality:
    """Drops what does not look like prose. Where words are characters, the checks on the length of words and on
    (English) stop words are left out: they mean nothing there.

    Words of nothing but punctuation and symbols count for neither `min_words`, `max_words` nor the mean length.
    """

    name: ClassVar[str] = "gopher_quality"
    source: ClassVar[str] = "Rae et al. 2021, Scaling Language Models (Gopher), appendix A.1.1, quality filtering"

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0  # characters
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = 0.1  # of "#", and of "..." with "…"
    max_bullet_lines: float = 0.9  # fraction of lines that start with "•" or "-"
    max_ellipsis_lines: float = 0.3  # fraction of lines that end with "..." or "…"
    min_alphabetic_words: float = 0.8  # fraction of words with a letter in them
    min_stop_words: int = 2  # how many different ones the text must have; 0 for texts that are not English
    stop_words: tuple[str, ...] = STOP_WORDS
    words: str = "auto"  # what a word is: see `data.cleaning.words.split_words`

    def __post_init__(self):
        require(self, COUNT, "min_words", "max_words", "min_stop_words")
        require(self, NUMBER, "min_mean_word_length", "max_mean_word_length", "max_symbols_per_word")
        require(self, FRACTION, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words")
        require(self, (lambda top: top >= self.min_words, f"min_words ({self.min_words}) or more"), "max_words")
        low = self.min_mean_word_length
        require(self, (lambda top: top >= low, f"min_mean_word_length ({low}) or more"), "max_mean_word_length")
        require(self, all_of(TEXT), "stop_words")
        known = len(set(self.stop_words))
        require(self, (lambda n: n <= known, f"at most {known}, as many as there are stop words"), "min_stop_words")
        require(self, one_of(*WORDS), "words")

    def __call__(self, text: str) -> str | Dropped:
        return next(self._complaints(text), text)

    def _complaints(self, text: str) -> Iterator[Dropped]:
        split = split_words(text, self.words)
        words = split.words
        lengths = [len(word) for word in words if _VISIBLE.search(word)]
        if len(lengths) < self.min_words:
            yield Dropped("too_few_words", f"{len(lengths)} words, fewer than {self.min_words}")
        if len(lengths) > self.max_words:
            yield Dropped("too_many_words", f"{len(lengths)} words, more than {self.max_words}")
        if not words:
            return  # fractions of nothing
        if split.spaced and lengths:
            mean = sum(lengths) / len(lengths)
            if not self.min_mean_word_length <= mean <= self.max_mean_word_length:
                allowed = f"{self.min_mean_word_length:g} to {self.max_mean_word_length:g}"
                yield Dropped("mean_word_length", f"{mean:.2f} characters, not {allowed}")
        for reason, symbols in (("hash_symbols", ("#",)), ("ellipsis_symbols", _ELLIPSES)):
            rate = sum(text.count(symbol) for symbol in symbols) / len(words)
            yield from _above(self.max_symbols_per_word, reason, rate, "a word")
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines)
        yield from _above(self.max_bullet_lines, "bullet_lines", bullets, "of the lines")
        ellipses = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines)
        yield from _above(self.max_ellipsis_lines, "ellipsis_lines", ellipses, "of the lines")
        alphabetic = sum(_LETTER.search(word) is not None for word in words) / len(words)
        if alphabetic < self.min_alphabetic_words:
            detail = f"{alphabetic:.3f} of the words have a letter, fewer than {self.min_alphabetic_words:g}"
            yield Dropped("alphabetic_words", detail)
        if split.spaced and self.min_stop_words:
            found = sorted(set(self.stop_words).intersection(words))
            if len(found) < self.min_stop_words:
                named = f" ({', '.join(found)})" if found else ""
                yield Dropped("stop_words", f"{len(found)} stop words{named}, fewer than {self.min_stop_words}")


@dataclass(frozen=True)
class GopherRepetition:
    """Drops what repeats itself: lines, paragraphs, n-grams of words. Fractions of characters are of the whole text.

    Repeats are counted, the first of its kind is not; those of 5 to 10 words are taken from left to right, so that no
    character counts twice. The most frequent n-gram of 2 to 4 words counts where there are at least two of it.
    """

    name: ClassVar[str] = "gopher_repetition"
    source: ClassVar[str] = "Rae et al. 2021, Scaling Language Models (Gopher), appendix A.1.1, table A1"

    max_duplicate_paragraphs: float = 0.30  # fraction of paragraphs, which blank lines part
    max_duplicate_paragraph_characters: float = 0.20
    max_duplicate_lines: float = 0.30  # fraction of lines that are not empty
    max_duplicate_line_characters: float = 0.20
    max_top_ngram_characters: tuple[float, ...] = (0.20, 0.18, 0.16)  # the most frequent of 2, 3, 4 words
    max_duplicate_ngram_characters: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # of 5, 6, ... 10 words
    words: str = "auto"  # what a word is: see `data.cleaning.words.split_words`

    def __post_init__(self):
        require(self, FRACTION, "max_duplicate_paragraphs", "max_duplicate_paragraph_characters")
        require(self, FRACTION, "max_duplicate_lines", "max_duplicate_line_characters")
        require(self, all_of(FRACTION, 3), "max_top_ngram_characters")
        require(self, all_of(FRACTION, 6), "max_duplicate_ngram_characters")
        require(self, one_of(*WORDS), "words")

    def __call__(self, text: str) -> str | Dropped:
        return next(self._complaints(text), text) if text.strip() else text

    def _complaints(self, text: str) -> Iterator[Dropped]:
        for kind, parts in (("paragraph", _BLANK.split(text.strip())), ("line", _LINE_END.split(text))):
            count, characters = duplicates(parts)
            limit = getattr(self, f"max_duplicate_{kind}s")
            yield from _above(limit, f"duplicate_{kind}s", count / len(parts), f"of the {kind}s")
            limit = getattr(self, f"max_duplicate_{kind}_characters")
            yield from _above(limit, f"duplicate_{kind}_characters", characters / len(text), "of the characters")
        grams = _NGrams(split_words(text, self.words))
        for limit in self.max_top_ngram_characters:
            grams.longer()
            found = grams.top_characters() / len(text)
            yield from _above(limit, f"top_{grams.n}_gram", found, "of the characters")
        for limit in self.max_duplicate_ngram_characters:
            grams.longer()
            found = grams.duplicate_characters() / len(text)
            yield from _above(limit, f"duplicate_{grams.n}_grams", found, "of the characters")


_BLANK = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")


def duplicates(parts: list[str]) -> tuple[int, int]:
    """Of `parts`, how many are equal to an earlier one, and how many characters those have."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


class _NGrams:
    """The n-grams of a list of words, n = 1 and growing: whole numbers that are equal where the n-grams are."""

    def __init__(self, split: Words):
        words, numbers = split.words, dict[str, int]()
        self._space = 1 if split.spaced else 0  # characters between two words
        self.n = 1
        self._words = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
        self._grams = self._words
        self._ends = np.cumsum([0, *map(len, words)])  # characters of the words before each

    def longer(self) -> None:
        """From n-grams to those of one word more: pairs of a gram and the next word, numbered anew."""
        self.n += 1
        pairs = self._grams[:-1] * (len(self._words) + 1) + self._words[self.n - 1 :]
        self._grams = np.unique(pairs, return_inverse=True)[1]

    def top_characters(self) -> int:
        """Characters of all occurrences of the most frequent n-gram, spaces within included; 0 where all differ."""
        if not len(self._grams):
            return 0
        counts = np.bincount(self._grams)
        first = int(np.argmax(counts[self._grams]))
        times = int(counts.max())
        length = int(self._ends[first + self.n] - self._ends[first]) + (self.n - 1) * self._space
        return times * length if times > 1 else 0

    def duplicate_characters(self) -> int:
        """Characters, without spaces, of the n-grams that occurred before: left to right, none overlaps another."""
        grams, characters, at = self._grams.tolist(), 0, 0
        seen: set[int] = set()
        while at < len(grams):
            if grams[at] in seen:
                characters += int(self._ends[at + self.n] - self._ends[at])
                at += self.n
            else:
                seen.add(grams[at])
                at += 1
        return characters


def _above(limit: float, reason: str, value: float, unit: str) -> Iterator[Dropped]:
    if value > limit:
        yield Dropped(reason, f"{value:.3f} {unit}, more than {limit:g}")
