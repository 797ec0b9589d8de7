"""The rules of the Colossal Clean Crawled Corpus, by line and by page."""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.cleaning.rule import COUNT, FLAG, TEXT, Dropped, mended, one_of, require
from data.cleaning.words import UNSPACED, WORDS, split_words
from data.errors import missing_path

_LINE_ENDS = (".", "?", "!", '"', "'", "。", "？", "！", "”", "’", "」", "』")
_ELLIPSES = ("...", "…")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"""(?<![.?!])[.?!]++["'”’)\]]*+(?=\s|$)|[。？！]++["'”’」』）]*+""")


@dataclass(frozen=True)
class C4:
    """Keeps the lines that end like a sentence, and the pages where enough is left.

    Lines are stripped, and lose citation marks such as [3] and [edit]. A line goes that does not end in . ? ! or a
    quote (or ends in an ellipsis), has fewer than `min_words_per_line` words or one of more than `max_word_length`
    characters, speaks of Javascript or of a policy on privacy, cookies or use. A page goes that keeps fewer than
    `min_sentences` sentences, or where a line that would be kept has "lorem ipsum" or a curly bracket.

    One step of C4 is not here, since a rule sees a single page: of a span of three sentences that comes more than once
    in the corpus, all but one went. The near duplicates among pages are another stage, `data.cleaning.duplicates`.

    The list of bad words is not part of Tessera: `bad_words` is a file with one word or phrase a line. A page that has
    one, in either case and not within another word (in scripts without spaces: anywhere), goes.

    Raises DataError where `bad_words` is no file.
    """

    name: ClassVar[str] = "c4"
    source: ClassVar[str] = (
        "Raffel et al. 2020, T5, section 2.2; policy lines and long words: the code published with it"
    )

    sentence_lines: bool = True  # keep only lines that end in terminal punctuation
    min_words_per_line: int = 3
    max_word_length: int = 1000  # characters, between white space
    min_sentences: int = 5
    curly_brackets: bool = True  # drop pages with "{"
    bad_words: str = ""  # a file; "": none
    words: str = "auto"  # what a word is: see `data.cleaning.words.split_words`

    def __post_init__(self):
        require(self, FLAG, "sentence_lines", "curly_brackets")
        require(self, COUNT, "min_words_per_line", "max_word_length", "min_sentences")
        require(self, TEXT, "bad_words")
        require(self, one_of(*WORDS), "words")
        if self.bad_words:
            _bad_words(self.bad_words)

    def __call__(self, text: str) -> str | Dropped:
        sentences, kept = 0, []
        for line in self._lines(text):
            folded = line.lower()
            if "lorem ipsum" in folded:
                return Dropped("lorem_ipsum", f"in the line {line[:60]!r}")
            if "javascript" in folded:
                continue
            if self.curly_brackets and "{" in line:
                return Dropped("curly_bracket", f"in the line {line[:60]!r}")
            if any(phrase in folded for phrase in _POLICY):
                continue
            sentences += _count_sentences(line)
            kept.append(line)
        if sentences < self.min_sentences:
            return Dropped(
                "too_few_sentences", f"{sentences} in {len(kept)} kept lines, fewer than {self.min_sentences}"
            )
        if self.bad_words and (found := _find_bad_word(text, self.bad_words)):
            return Dropped("bad_word", f"{found!r} of {self.bad_words}")
        return mended(text, "\n".join(kept))

    def state(self) -> dict[str, str]:
        if not self.bad_words:
            return {}
        content = Path(self.bad_words).expanduser().read_bytes()
        return {"bad_words": hashlib.blake2b(content, digest_size=16).hexdigest()}

    def _lines(self, text: str) -> Iterator[str]:
        """The lines that pass as lines, stripped and without marks of citation."""
        for whole in map(str.strip, text.splitlines()):
            line = _CITATION.sub("", whole)
            if self.sentence_lines and (not line.endswith(_LINE_ENDS) or line.endswith(_ELLIPSES)):
                continue
            split = split_words(whole, self.words)
            too_long = max(map(len, split.words), default=0) > self.max_word_length
            if len(split.words) >= self.min_words_per_line and not too_long:
                yield line


def _count_sentences(line: str) -> int:
    """Sentences by their ends; what follows the last one is a sentence too, if there is a letter in it."""
    count = end = 0
    for match in _SENTENCE_END.finditer(line):
        count, end = count + 1, match.end()
    return count + bool(re.search(r"\w", line[end:]))


@functools.cache
def _bad_words(path: str) -> tuple[tuple[str, re.Pattern], ...]:
    """The words of a file, and what finds each: within other words only in scripts that have no spaces."""
    if not Path(path).expanduser().is_file():
        raise missing_path("the list of bad words", path)
    words = Path(path).expanduser().read_text(encoding="utf-8").lower().splitlines()
    unspaced = re.compile(f"[{UNSPACED}]")
    return tuple(
        (word, re.compile(re.escape(word) if unspaced.search(word) else rf"(?<!\w){re.escape(word)}(?!\w)"))
        for word in sorted({word.strip() for word in words} - {""})
    )


def _find_bad_word(text: str, path: str) -> str | None:
    folded = text.lower()
    return next((word for word, pattern in _bad_words(path) if word in folded and pattern.search(folded)), None)
