"""The text a tokenizer is trained on: symbols cut out, in chunks of whole lines, sampled where there is much of it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from data.errors import DataError
from data.tokenizers.checks import utf8

MAX_CHARACTERS = 32_000_000  # of text to train on: 4 s and 0.2 GB for source code (measured, sentencepiece's BPE)
CHUNK = 1000  # characters: sentencepiece drops sentences above its max_sentence_length without an error
MAX_SENTINELS = 100  # special_ids are called extra_0 to extra_99, as in T5
USUAL_COVERAGE = 0.9999  # part of the text made of characters that get a piece of their own
_LINES = re.compile("[^\n]*\n|[^\n]+")
Model = TypeVar("Model")


def training_chunks(texts: Iterable[str], symbols: Sequence[str], seed: int, max_characters: int) -> list[str]:
    """`texts` without `symbols`, in chunks; above `max_characters`, a sample in which each chunk has equal chance.

    No chunk crosses a text or a symbol. Raises DataError where nothing is left to train on.
    """
    if max_characters < 10 * CHUNK:
        raise DataError(f"max_characters is {max_characters}: less than {10 * CHUNK} teach a tokenizer nothing")
    kept = _sample(_chunks(_without_symbols(texts, symbols)), seed, max_characters)
    if not kept:
        raise DataError("there is no text to train a tokenizer on")
    return kept


def rare_characters(chunks: Iterable[str], coverage: float | None, most: int, reserved: str = "") -> set[str]:
    """The characters of `chunks` that get no piece, and `reserved`, which never do.

    `coverage`: part of the text (in characters) that those with a piece make up, the most frequent first. None is
    99.99 %, and at most `most` characters. Raises DataError for a coverage that needs more characters than `most`.
    """
    if coverage is not None and not 0 < coverage <= 1:
        raise DataError(f"coverage is {coverage}: it must be above 0, and at most 1")
    counts = Counter()
    for chunk in chunks:
        counts.update(chunk)
    for char in reserved:
        counts.pop(char, None)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in ranked]) / max(1, counts.total())
    enough = int(np.searchsorted(covered, USUAL_COVERAGE if coverage is None else coverage)) + 1
    needed = min(enough, len(ranked))
    if coverage is not None and needed > most:
        raise DataError(
            f"a coverage of {coverage} takes {needed:,} of the {len(ranked):,} characters of this text, and the "
            f"vocabulary has room for {most:,}: make it {needed - most:,} ids larger, or ask for a lower coverage"
        )
    return {*reserved, *ranked[min(enough, most) :]}


def without(rare: set[str], chunks: Iterable[str]) -> Iterator[str]:
    """The runs of text between rare characters: no piece is learned across one."""
    as_nul = str.maketrans(dict.fromkeys(rare, "\0"))
    for chunk in chunks:
        yield from filter(None, chunk.translate(as_nul).split("\0") if rare else [chunk])


def sentinel_names(count: int) -> list[str]:
    """The texts of T5's sentinels (Raffel et al. 2020). Raises DataError for a number that is not 0 to 100."""
    if not 0 <= count <= MAX_SENTINELS:
        raise DataError(f"sentinels is {count}: 0 to {MAX_SENTINELS} are allowed")
    return [f"<extra_id_{number}>" for number in range(count)]


def check_symbols(symbols: Sequence[str], taken: Callable[[str], bool]) -> None:
    """Raises DataError for a symbol that is empty, given twice, has white space, or that `taken` says is in use."""
    for at, symbol in enumerate(symbols):
        utf8(symbol)
        wrong = (
            (not symbol, "is empty"),
            (symbol in symbols[:at], "is given twice"),
            (re.search("[\\s\0\u2581\u2585]", symbol), "has white space, NUL, U+2581 or U+2585, which pieces cannot"),
            (taken(symbol), "is the name of another id"),
        )
        if why := next((why for is_so, why in wrong if is_so), None):
            raise DataError(f"symbol {at + 1} of {len(symbols)}, {symbol!r}, {why}")


def fitted(attempt: Callable[[int], tuple[Model | None, int]], vocab_size: int, smallest: int) -> Model:
    """The model of `attempt(vocab_size)`, which gives a model and its size, or None and how many ids the text fills.

    Raises DataError, with the largest size seen to work, where the text holds too few pieces.
    """
    model, largest = attempt(vocab_size)
    if model is not None:
        return model
    # A smaller vocabulary also has fewer characters to merge: go down until a size is seen to work.
    while largest >= smallest and (smaller := attempt(largest)[1]) < largest:
        largest = smaller
    way_out = f"use {largest} or less" if largest >= smallest else "use tokenizer='byte'"
    raise DataError(f"a vocabulary of {vocab_size} ids is more than this text has pieces for: {way_out}")


def _without_symbols(texts: Iterable[str], symbols: Sequence[str]) -> Iterator[str]:
    if not symbols:
        yield from texts
        return
    # The longest first, as the tokenizers match them.
    any_symbol = re.compile("|".join(map(re.escape, sorted(symbols, key=len, reverse=True))))
    for text in texts:
        yield from any_symbol.split(text)


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Runs of whole lines of up to CHUNK characters; longer lines are cut."""
    for text in texts:
        held = ""
        for line in _LINES.findall(text):
            for start in range(0, len(line), CHUNK):
                part = line[start : start + CHUNK]
                if len(held) + len(part) > CHUNK:
                    yield held
                    held = ""
                held += part
        if held:
            yield held


def _sample(chunks: Iterable[str], seed: int, max_characters: int) -> list[str]:
    """All chunks, or an even random share of them: each time the store is full, half of it goes."""
    rng = np.random.default_rng(seed)
    kept, size, share = [], 0, 1.0
    for chunk in chunks:
        if share < 1 and rng.random() >= share:
            continue
        kept.append(chunk)
        size += len(chunk)
        if size > max_characters:
            kept = [chunk for chunk in kept if rng.random() < 0.5]
            size, share = sum(map(len, kept)), share / 2
    return kept
