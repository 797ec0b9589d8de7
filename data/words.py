"""Words and sentences of any script, as spans of a text: what counting and augmenting agree on."""

import re
from collections.abc import Sequence

from data.cleaning.words import UNSPACED

Span = tuple[int, int]

# What stands between words. Not \W: Python counts the vowel signs of Hindi among that. The joiners U+200C and
# U+200D stay inside words, as Persian and emoji need them.
_BETWEEN = (
    r"\s!-/:-@\[-^`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u2000-\u200b\u200e-\u206f"
    r"\u3000-\u3004\u3008-\u303f\ufe30-\ufe4f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTERS = f"[^{_BETWEEN}{UNSPACED}]+"
_WORD = re.compile(rf"[{UNSPACED}]|{_LETTERS}(?:['’\-]{_LETTERS})*")
# A sentence ends at its marks with what closes quotes and brackets, at an empty line, or at the end of the text.
# A run of marks is tried once, from its first: from each of them, the time would be quadratic.
_LATIN_END = r"(?<![.!?\u2026])[.!?\u2026]++[\"'”’)\]]*+(?=\s|\Z)"
_CHINESE_END = r"[。！？]++[”’」』）]*+"
_SENTENCE = re.compile(rf"(?=\S).*?(?:{_LATIN_END}|{_CHINESE_END}|(?=\n[ \t\r]*\n)|\Z)", re.DOTALL)


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits; in scripts without spaces, Chinese say, the characters."""
    return _WORD.findall(text)


def word_spans(text: str) -> list[Span]:
    """Where each word begins and ends."""
    return [match.span() for match in _WORD.finditer(text)]


def sentence_spans(text: str) -> list[Span]:
    """Where each sentence begins and ends, white space between them left out; an abbreviation's period ends one too."""
    return [match.span() for match in _SENTENCE.finditer(text, 0, len(text.rstrip()))]


def replaced(text: str, spans: Sequence[Span], new: Sequence[str]) -> str:
    """The text with new[i] in the place of spans[i]; all that lies between them stays as it is."""
    parts, end = [], 0
    for (first, last), word in zip(spans, new, strict=True):
        parts += [text[end:first], word]
        end = last
    return "".join([*parts, text[end:]])
