"""Examples as an encoder with a head reads them: a class of a text, a tag of each token, a span of a context."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from data.errors import DataError
from data.tasks.compact import Row, Window
from data.tasks.examples import Labelled, Question, Tagged
from data.tasks.offsets import encode_with_offsets
from data.tasks.rows import Frame, Limits
from data.tokenizers.tokenizer import Tokenizer

IdOf = dict[str, int]
Example = TypeVar("Example")
_BATCH = 512  # examples encoded at once


def label_rows(examples: Sequence[Labelled], tokenizer: Tokenizer, limits: Limits, id_of: IdOf) -> Iterator[Row]:
    """`targets` () is the class. Of a pair that is too long, the longer text loses its end, token by token."""
    frames = {pair: Frame.of(tokenizer, pair) for pair in (False, True)}

    def encoded() -> Iterator[tuple[Labelled, np.ndarray, np.ndarray]]:
        for batch in _batches(examples):
            first = tokenizer.encode_batch([example.text for example in batch])
            yield from zip(batch, first, tokenizer.encode_batch([example.pair for example in batch]), strict=True)

    for number, (example, a, b) in enumerate(encoded()):
        frame = frames[bool(example.pair)]
        cut = limits.check(example.place, len(a) + len(b) + frame.extra, limits.max_length)
        room = max(limits.max_length - frame.extra, 0)
        keep = min(len(a), max(room - len(b), (room + 1) // 2)) if cut else len(a)
        kept, rest = a[:keep].tolist(), b[: room - keep].tolist()
        ids = tokenizer.wrap(kept, rest) if example.pair else tokenizer.wrap(kept)
        arrays = {"inputs": np.array(ids, np.int32), "targets": np.array(id_of[example.label])}
        arrays["weights"] = np.array(1.0)
        if limits.token_types:
            types = np.arange(len(ids)) >= frame.types + len(kept) if example.pair else np.zeros(len(ids))
            arrays["token_types"] = types.astype(np.int32)
        yield Row(number, arrays, len(a) + len(b) + frame.extra, cut)


def tag_rows(examples: Sequence[Tagged], tokenizer: Tokenizer, limits: Limits, id_of: IdOf) -> Iterator[Row]:
    """`targets` (T,) have the tag of a token at its first piece, with weight 1; other pieces have weight 0.

    Each token is encoded for itself, with the space before it: no piece then holds parts of two.
    """
    frame = Frame.of(tokenizer, pair=False)
    room = limits.max_length - frame.extra
    for number, example in enumerate(examples):
        ends = [0, *(end for _, end in example.spans)]
        parts = [example.text[before:end] for before, end in pairwise(ends)]
        encoded = encode_with_offsets(tokenizer, [*parts, example.text[ends[-1] :]])
        ids_N = np.concatenate([ids for ids, _ in encoded])
        targets_N, weights_N = np.zeros(len(ids_N), np.int32), np.zeros(len(ids_N), np.float32)
        at = 0
        for (ids, spans_n2), (start, _), before, tag in zip(encoded, example.spans, ends, example.tags, strict=False):
            pieces = np.flatnonzero(spans_n2[:, 1] > start - before)  # the others are of the space before it
            if pieces.size:
                targets_N[at + pieces[0]], weights_N[at + pieces[0]] = id_of[tag], 1
            at += len(ids)
        length = len(ids_N) + frame.extra
        cut = limits.check(example.place, length, limits.max_length)
        around = (frame.start, frame.extra - frame.start)
        arrays = {
            "inputs": np.array(tokenizer.wrap(ids_N[:room].tolist()), np.int32),
            "targets": np.pad(targets_N[:room], around),
            "weights": np.pad(weights_N[:room], around),
        }
        yield Row(number, arrays, length, cut, lost_tags=len(example.tags) - int(weights_N.sum()))


def span_rows(examples: Sequence[Question], tokenizer: Tokenizer, limits: Limits) -> Iterator[Row]:
    """`targets` (2,) are the first and the last token of the first answer, or 0 and 0 where a window lacks it.

    A context that does not fit is read in windows, one a row (Devlin et al. 2019, run_squad.py): `limits.stride`
    tokens apart. A question takes up to half of max_length; what is longer is cut.
    """
    frame = Frame.of(tokenizer, pair=True)

    def encoded() -> Iterator[tuple[Question, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
        for batch in _batches(examples):
            questions = tokenizer.encode_batch([example.question for example in batch])
            contexts = list(dict.fromkeys(example.context for example in batch))  # several questions share one
            read = dict(zip(contexts, encode_with_offsets(tokenizer, contexts), strict=True))
            yield from zip(batch, questions, (read[example.context] for example in batch), strict=True)

    for number, (example, asked, (ids_N, spans_N2)) in enumerate(encoded()):
        cut = limits.check(f"{example.place}: question", len(asked), limits.max_length // 2, "max_length to twice it")
        question = asked[: limits.max_length // 2].tolist()
        room = limits.max_length - frame.extra - len(question)
        step = limits.stride or (room + 1) // 2
        if not 0 < step <= room:
            raise DataError(f"{example.place}: windows {step} apart skip tokens: {room} fit beside the question")
        first, last = _answer_tokens(example, spans_N2)
        begin = frame.start + len(question) + frame.between
        for start in range(0, max(len(ids_N) - room, 0) + step, step):
            ids = tokenizer.wrap(question, ids_N[start : start + room].tolist())
            end = min(start + room, len(ids_N))
            window = Window(spans_N2, begin, start, end - start)
            inside = start <= first <= last < end
            arrays = {
                "inputs": np.array(ids, np.int32),
                "targets": np.array([begin + first - start, begin + last - start] if inside else [0, 0]),
                "weights": np.array(1.0),
            }
            if limits.token_types:
                arrays["token_types"] = (np.arange(len(ids)) >= frame.types + len(question)).astype(np.int32)
            yield Row(number, arrays, len(question) + len(ids_N) + frame.extra, cut, window=window)


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Some examples at a time: what a tokenizer makes of all of them takes more memory than what is kept."""
    return (examples[at : at + _BATCH] for at in range(0, len(examples), _BATCH))


def _answer_tokens(example: Question, spans_N2: np.ndarray) -> tuple[int, int]:
    """The first and the last token that hold a part of the first answer; -1 and -1: there is none."""
    if not example.answers:
        return -1, -1
    start, text = example.answers[0]
    held = np.flatnonzero((spans_N2[:, 1] > start) & (spans_N2[:, 0] < start + len(text)))
    if not held.size:
        raise DataError(f"{example.place}: the tokenizer makes no token of the answer {text!r}")
    return int(held[0]), int(held[-1])
