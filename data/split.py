"""Which text is held out: whole documents, chosen by a hash of their text, or the end of the corpus."""

import hashlib
from collections.abc import Iterable, Iterator

from data.sources.documents import Document

TRAIN, HELD_OUT = "train", "held_out"


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document with this text is held out; it depends on nothing else.

    So a document stays on its side when others come and go, and copies of a text are on one side, all of them.
    """
    return split_number(text) < fraction * 2**64


def split_number(text: str) -> int:
    """The number below 2**64 that decides where a text goes: below fraction * 2**64 it is held out."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def tail_start(num_characters: int, fraction: float) -> int:
    """The character where the held-out tail starts: int(n * (1 - fraction)), as nanoGPT cuts its one text."""
    return int(num_characters * (1 - fraction))


def split_by_document(documents: Iterable[Document], fraction: float) -> Iterator[tuple[str, Document]]:
    """Each document with its side, "train" or "held_out"."""
    for document in documents:
        yield HELD_OUT if is_held_out(document.text, fraction) else TRAIN, document


def split_tail(documents: Iterable[Document], start: int) -> Iterator[tuple[str, Document]]:
    """Each document with its side; the one that holds character `start` of the corpus is cut in two there."""
    position = 0
    for document in documents:
        cut = min(max(start - position, 0), len(document.text))
        position += len(document.text)
        for side, text in ((TRAIN, document.text[:cut]), (HELD_OUT, document.text[cut:])):
            if text:
                yield side, Document(document.id, text, document.score)
