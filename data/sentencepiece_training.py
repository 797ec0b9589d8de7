"""Training a sentencepiece model so that it loses nothing: what it is fed, and what its errors mean."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from data.errors import DataError

TRAINING_VERSION = 1  # to be raised with any change here that changes what is learned: cached tokenizers carry it

_FIXED_IDS = 256 + 2  # the bytes, unknown, end of document
_SMALLEST = _FIXED_IDS + 4
_MAX_CHARACTERS = 32_000_000  # of text to train on: 4 s and 0.2 GB for source code (measured)
_CHUNK = 1000  # characters; sentencepiece drops sentences above max_sentence_length bytes without an error
# sentencepiece skips any sentence with U+2585, its mark for unknown, takes U+2581 for a space, and refuses NUL.
_RESERVED = "\0\u2581\u2585"
_LINES = re.compile("[^\n]*\n|[^\n]+")


def train_model(texts: Iterable[str], vocab_size: int, seed: int) -> bytes:
    """A BPE model of `vocab_size` ids, as the bytes of a `.model` file; equal inputs, equal bytes.

    Texts are cut into chunks of whole lines. Above 32 million characters a sample of chunks is drawn by `seed`, each
    chunk with equal chance. Characters too rare for a piece (beyond 99.99 % of the text, or beyond half of the
    pieces) are left to the bytes. Pieces do not cross from letters to punctuation, digits stand alone, a run of
    spaces is a piece of its own, line ends and tabs go with punctuation.

    Raises DataError where `vocab_size` is too small for the bytes, or larger than the texts can fill.
    """
    if vocab_size < _SMALLEST:
        raise DataError(
            f"tokenizer_vocab {vocab_size} is too small for sentencepiece: 256 bytes, unknown, end of document and "
            f"4 pieces need {_SMALLEST} or more; or use tokenizer='byte'"
        )
    chunks = _sample(_chunks(texts), seed)
    if not chunks:
        raise DataError("there is no text to train a sentencepiece tokenizer on")
    model, largest = _attempt(chunks, vocab_size)
    if model is not None:
        return model
    # A smaller vocabulary also has fewer characters to merge: go down until a size is seen to work.
    while largest >= _SMALLEST and (smaller := _attempt(chunks, largest)[1]) < largest:
        largest = smaller
    way_out = f"use {largest} or less" if largest >= _SMALLEST else "use tokenizer='byte'"
    raise DataError(f"tokenizer_vocab {vocab_size} is more than this text has pieces for: {way_out}")


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Runs of whole lines of up to _CHUNK characters; longer lines are cut."""
    for text in texts:
        held = ""
        for line in _LINES.findall(text):
            for start in range(0, len(line), _CHUNK):
                part = line[start : start + _CHUNK]
                if len(held) + len(part) > _CHUNK:
                    yield held
                    held = ""
                held += part
        if held:
            yield held


def _sample(chunks: Iterable[str], seed: int) -> list[str]:
    """All chunks, or an even random share of them: each time the store is full, half of it goes."""
    rng = np.random.default_rng(seed)
    kept, size, share = [], 0, 1.0
    for chunk in chunks:
        if share < 1 and rng.random() >= share:
            continue
        kept.append(chunk)
        size += len(chunk)
        if size > _MAX_CHARACTERS:
            kept = [chunk for chunk in kept if rng.random() < 0.5]
            size, share = sum(map(len, kept)), share / 2
    return kept


def _rare_characters(chunks: list[str], most: int) -> set[str]:
    counts = Counter()
    for chunk in chunks:
        counts.update(chunk)
    for char in _RESERVED:
        counts.pop(char, None)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in ranked]) / max(1, counts.total())
    enough = int(np.searchsorted(covered, 0.9999)) + 1
    return {*_RESERVED, *ranked[min(enough, most) :]}


def _without(rare: set[str], chunks: list[str]) -> Iterator[str]:
    """The runs of text between rare characters: no piece is learned across one."""
    as_nul = str.maketrans(dict.fromkeys(rare, "\0"))
    for chunk in chunks:
        yield from filter(None, chunk.translate(as_nul).split("\0"))


def _attempt(chunks: list[str], vocab_size: int) -> tuple[bytes | None, int]:
    """A model and its size; or, where the chunks do not hold so many pieces, None and the number they hold."""
    rare = _rare_characters(chunks, (vocab_size - _FIXED_IDS) // 2)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_without(rare, chunks),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentence_length=4 * _CHUNK,  # bytes: 4 for each character at most
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,  # stored in the model: a number of cores here would change the fingerprint
            minloglevel=2,
        )
    except RuntimeError as error:
        held = re.search(r"too high .*<= (\d+)", str(error))
        if held:
            return None, int(held[1])
        raise DataError(f"sentencepiece could not be trained with vocab_size {vocab_size}: {error}") from error
    return model.getvalue(), vocab_size
