"""The rules that FineWeb adds to those of Gopher and C4."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from data.cleaning.gopher import duplicates
from data.cleaning.rule import COUNT, FRACTION, NUMBER, Dropped, one_of, require
from data.cleaning.words import WORDS, split_words

# What ends a sentence: Latin, Chinese and Japanese, Arabic and Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese.
SENTENCE_ENDS = tuple(".?!。？！．｡؟۔।॥։።፧។၊။‼‽⁇⁈⁉")


@dataclass(frozen=True)
class FineWeb:
    """Drops lists, menus and templates. Lines are those with something on them.

    The paper drops what has 0.1 of its characters in repeated lines; the code published with it, datatrove, has 0.01
    as the default for that, and `max_newlines_per_word`, which the paper does not name.
    """

    name: ClassVar[str] = "fineweb"
    source: ClassVar[str] = "Penedo et al. 2024, The FineWeb Datasets, section 3.6"

    min_punctuated_lines: float = 0.12  # fraction of lines that end like a sentence
    max_short_lines: float = 0.67  # fraction of lines of at most `short_line` characters
    short_line: int = 30
    max_duplicate_line_characters: float = 0.1  # fraction of the characters, line ends left out
    max_newlines_per_word: float = 0.3
    words: str = "auto"  # what a word is: see `data.cleaning.words.split_words`

    def __post_init__(self):
        require(self, FRACTION, "min_punctuated_lines", "max_short_lines", "max_duplicate_line_characters")
        require(self, COUNT, "short_line")
        require(self, NUMBER, "max_newlines_per_word")
        require(self, one_of(*WORDS), "words")

    def __call__(self, text: str) -> str | Dropped:
        return next(self._complaints(text), text)

    def _complaints(self, text: str) -> Iterator[Dropped]:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            yield Dropped("empty", f"{len(text)} characters, none of them visible")
            return
        punctuated = sum(line.endswith(SENTENCE_ENDS) for line in lines) / len(lines)
        if punctuated < self.min_punctuated_lines:
            detail = f"{punctuated:.3f} of the lines end a sentence, fewer than {self.min_punctuated_lines:g}"
            yield Dropped("punctuated_lines", detail)
        short = sum(len(line) <= self.short_line for line in lines) / len(lines)
        if short > self.max_short_lines:
            detail = f"{short:.3f} of the lines have at most {self.short_line} characters, more than "
            yield Dropped("short_lines", f"{detail}{self.max_short_lines:g}")
        newlines = text.count("\n")
        repeated = duplicates(lines)[1] / (len(text) - newlines)
        if repeated > self.max_duplicate_line_characters:
            detail = f"{repeated:.3f} of the characters, more than {self.max_duplicate_line_characters:g}"
            yield Dropped("duplicate_line_characters", detail)
        rate = newlines / len(split_words(text, self.words).words)
        if rate > self.max_newlines_per_word:
            yield Dropped("newlines", f"{rate:.3f} a word, more than {self.max_newlines_per_word:g}")
