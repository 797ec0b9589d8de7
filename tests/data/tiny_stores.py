"""Stores of a few documents that are tokens already."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import new_folder
from data.store.store import TokenStore, open_store
from data.store.writer import StoreWriter
from data.tokenizers.tokenizer import Tokenizer


def write_store(
    folder: str | Path,
    encoded: Iterable[tuple[np.ndarray, int]],
    *,
    tokenizer: Tokenizer,
    source_fingerprint: str,
    split: str,
    ids: Iterable[str] | None = None,
    scores: Sequence[float] | None = None,
    provenance: dict[str, Any] | None = None,
) -> TokenStore:
    """A new store of documents, each given as its ids and the UTF-8 bytes of its text; they are called "0", "1", ..."""
    documents = list(encoded)
    names = map(str, itertools.count()) if ids is None else ids
    with new_folder(Path(folder)) as temporary:
        writer = StoreWriter(temporary, tokenizer, split, has_scores=scores is not None)
        names = list(itertools.islice(names, len(documents)))
        writer.append([tokens for tokens, _ in documents], names, sum(size for _, size in documents), scores)
        writer.finish(source_fingerprint=source_fingerprint, provenance=provenance or {})
    return open_store(folder)
