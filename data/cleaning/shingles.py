"""Words of a text in any script, and a number for each n-gram of them: what duplicates and overlaps are found by."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from data.cleaning.unicode import stream_safe
from data.cleaning.words import UNSPACED

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication loses nothing modulo 2^64


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word of `text` begins and ends: runs of letters, digits and their marks; a character of a script
    without spaces; in a text with no word at all (emoji, rules of dashes), every character that is no space."""
    return [match.span() for match in _words().finditer(text)] or [m.span() for m in re.finditer(r"\S", text)]


def word_hashes(text: str) -> np.ndarray:
    """uint64 (words,): equal for words that differ in case or in the Unicode form (NFKC) only."""
    words = _words().findall(text) or re.findall(r"\S", text)
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def ngram_hashes(words_W: np.ndarray, n: int) -> np.ndarray:
    """uint64 (W - n + 1,): a number for each `n` words in a row; none where there are fewer than n."""
    count = max(len(words_W) - n + 1, 0)
    return combined([words_W[first : first + count] for first in range(n)])


def combined(columns: Sequence[np.ndarray]) -> np.ndarray:
    """uint64, of the shape of each column: one number for the values that stand beside each other, in their order."""
    hashes = np.zeros(columns[0].shape, np.uint64)
    for column in columns:
        hashes *= _MULTIPLIER
        hashes += column
    # The finaliser of MurmurHash3 (Appleby 2011): every bit of a polynomial's value comes to depend on every word.
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(33))


@functools.lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    plain = unicodedata.normalize("NFKC", stream_safe(word)).casefold()
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")


@functools.cache
def _words() -> re.Pattern:
    # `\w` has no combining marks, without which a word of Hindi or vocalised Arabic falls apart.
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
    letter = rf"[^\W{UNSPACED}]"
    return re.compile(rf"[{UNSPACED}]|{letter}+(?:[{marks}]+{letter}*)*")
