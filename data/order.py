"""The order in which rows are read: a permutation for each epoch, looked up anywhere without a loop."""

import hashlib

import numpy as np

from data.config import CURRICULA
from data.errors import DataError
from data.rows import ChunkRows, PackedRows, Rows
from data.shuffle import shuffled

_BUCKET = 64  # rows of a curriculum that are shuffled together


class Order:
    """Number n of an endless reading -> row: epoch after epoch, each of them every row once, in an order of its own.

    The permutations are Grain's index shuffle, a cipher that works out any place by itself. With a curriculum, the
    first epoch goes from low to high values of the rows instead (Bengio et al. 2009): sorted, ties in random order,
    then shuffled within buckets of 64 rows.
    """

    def __init__(self, rows: Rows, seed: int, name: str = "", curriculum: str = ""):
        """`name` tells apart the orders of the parts of a mixture.

        Raises DataError for 2^32 rows and more, and where the curriculum has nothing to sort by.
        """
        if len(rows) >= 2**32:
            raise DataError(f"{len(rows)} rows are more than the {2**32 - 1} that can be shuffled: use longer rows")
        self._rows = len(rows)
        # Grain is given seed + epoch: epoch 1 of seed 5 would be epoch 0 of seed 6. Hashed seeds lie far apart.
        self._seed = hashed(f"block order {seed}{name and ' ' + name}", 4)
        self._first = _sorted_rows(difficulty(rows, curriculum), self._seed) if curriculum else None

    def __call__(self, numbers_N: np.ndarray) -> np.ndarray:
        """The rows, int64 (N,), of numbers (N,)."""
        epochs_N, places_N = np.divmod(np.asarray(numbers_N, np.int64), self._rows)
        rows_N = np.empty_like(places_N)
        for epoch in np.unique(epochs_N).tolist():
            at = epochs_N == epoch
            rows_N[at] = shuffled(places_N[at], self._rows - 1, (self._seed + epoch) % 2**32)
        return rows_N if self._first is None else np.where(epochs_N == 0, self._first[places_N], rows_N)


def difficulty(rows: Rows, curriculum: str) -> np.ndarray:
    """What a curriculum sorts each row by: the mean length in tokens, or the mean score, of its documents.

    Rows that are packed to be full hold short documents beside long ones: their mean lengths lie close together.
    Raises DataError for rows of another kind than a store's, and for documents without a score.
    """
    if curriculum not in CURRICULA[1:]:
        raise DataError(f"the curriculum {curriculum!r} is not one of length, score")
    if not isinstance(rows, ChunkRows | PackedRows):
        raise DataError(f"a curriculum sorts the rows of token stores, and these are {type(rows).__name__}")
    store = rows.store
    if curriculum == "length":
        return rows.document_means(np.diff(store.document_starts))
    if store.scores is None:
        raise DataError(f"data.curriculum='score', and {store.folder} has no scores: set data.score_field")
    if missing := int(np.isnan(store.scores).sum()):
        raise DataError(f"data.curriculum='score', and {missing} documents of {store.folder} have no score")
    return rows.document_means(store.scores)


def hashed(text: str, num_bytes: int) -> int:
    """A hash of the text, as a number of `num_bytes` bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest(), "big")


def _sorted_rows(values_R: np.ndarray, seed: int) -> np.ndarray:
    """All rows by rising value; ties, and the rows of each bucket, in random order."""
    rng = np.random.default_rng(seed)
    order_R = np.lexsort((rng.random(len(values_R)), values_R))
    bucket_R = np.arange(len(values_R)) // _BUCKET
    return order_R[np.lexsort((rng.random(len(values_R)), bucket_R))]
