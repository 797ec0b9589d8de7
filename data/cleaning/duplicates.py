"""Which documents say what an earlier one said: equal texts by their hash, near-equal ones by MinHash and LSH.

Near duplicates are those whose sets of word n-grams have an estimated Jaccard similarity at or above a threshold
(Broder 1997). `datasketch` computes the signatures and chooses the bands; the buckets are sorted arrays instead of its
dictionaries, which hold a million documents in a tenth of the memory.
"""

import functools
import hashlib
import importlib.util
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cleaning.shingles import combined, ngram_hashes, word_hashes
from data.cleaning.unicode import stream_safe
from data.errors import DataError

_SLICE = 2**16  # shingles that are permuted at once: 32 MB of numbers for 128 permutations
_TOLD = 1000  # documents between two reports
# Staying documents of one bucket that a later one is compared with. Documents made from one template, alike but not
# alike enough, fill a few buckets by the million; a true near duplicate shares other, rarer ones too.
RIVALS = 100
# Candidates are checked against each other, so a bucket may hold wrong ones; a pair that no bucket holds is lost.
_WEIGHTS = (0.05, 0.95)  # of false positives and false negatives, in the choice of bands


@dataclass(frozen=True)
class Duplicates:
    """For each of N documents, in source order, the earlier one that stays in its place."""

    of_N: np.ndarray  # int64: its index; -1 for a document that stays
    jaccard_N: np.ndarray  # float32: estimated similarity to it; NaN where the texts are equal, or the document stays
    crowded: int = 0  # staying documents that found a bucket full: there, later ones were not compared with them


def check_installed() -> None:
    """Raises DataError where there is no datasketch, which takes too long to import for a look."""
    if importlib.util.find_spec("datasketch") is None:
        raise DataError("near duplicates need datasketch: pip install 'tessera-lm[cleaning]'")


def text_key(text: str) -> np.ndarray:
    """uint64 (2,): equal for texts that differ in white space or in the canonical Unicode form (NFC) only."""
    plain = " ".join(unicodedata.normalize("NFC", stream_safe(text)).split())
    return np.frombuffer(hashlib.blake2b(plain.encode(), digest_size=16).digest(), np.uint64)


def signature(text: str, ngram: int, permutations: int) -> np.ndarray:
    """uint32 (permutations,): the MinHash of the text's `ngram`-word shingles; a shorter text is one shingle."""
    words = word_hashes(text)
    shingles = np.unique(ngram_hashes(words, max(min(ngram, len(words)), 1)) >> np.uint64(32))
    minhash = _minhash(permutations).copy()
    for first in range(0, len(shingles), _SLICE):
        minhash.update_batch(shingles[first : first + _SLICE].tolist())
    return minhash.hashvalues


def band_keys(signatures_NP: np.ndarray, threshold: float) -> np.ndarray:
    """uint64 (N, bands): two documents with an equal key in a band are candidates."""
    bands, rows = _bands(threshold, signatures_NP.shape[1])
    signatures_NBR = signatures_NP[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    return combined([signatures_NBR[:, :, row] for row in range(rows)])


def equal_texts(keys_N2: np.ndarray) -> np.ndarray:
    """int64 (N,): the first document with the same key, -1 for that one."""
    order = np.lexsort((keys_N2[:, 1], keys_N2[:, 0]))  # stable: the first of equal keys is the earliest document
    new = np.ones(len(order), bool)
    new[1:] = (keys_N2[order[1:]] != keys_N2[order[:-1]]).any(axis=1)
    of_N = np.empty(len(order), np.int64)
    of_N[order] = order[new][np.cumsum(new) - 1]
    of_N[of_N == np.arange(len(order))] = -1
    return of_N


def candidates(keys_NB: np.ndarray, left_out_N: np.ndarray) -> np.ndarray:
    """int32 (N, B): the bucket of each document in each band, -1 where it is alone in it or left out."""
    buckets = np.full(keys_NB.shape, -1, np.int32)
    there = np.flatnonzero(~left_out_N)
    for band in range(keys_NB.shape[1]):
        keys = keys_NB[there, band]
        _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
        buckets[there, band] = np.where(counts[numbers] > 1, numbers, -1)
    return buckets


def near_duplicates(
    buckets_MB: np.ndarray,
    signatures_MP: np.ndarray,
    threshold: float,
    tell: Callable[[int, int], object] = lambda done, kept: None,
) -> Duplicates:
    """Of documents in source order: each goes if one that stays, before it, is at least `threshold` similar.

    So a document that goes names one that stays and is as similar as asked; documents that are only linked through a
    chain of others do not pull each other out. In each bucket, it is compared with the first RIVALS that stay, so that
    the work grows with the number of documents and not with its square. `tell` hears how many are done, and stay.
    """
    of_M = np.full(len(buckets_MB), -1, np.int64)
    jaccard_M = np.full(len(buckets_MB), np.nan, np.float32)
    staying: list[dict[int, list[int]]] = [{} for _ in range(buckets_MB.shape[1])]
    gone = crowded = 0
    for document, row in enumerate(buckets_MB):
        if document % _TOLD == 0:
            tell(document, document - gone)
        places = [(there, bucket) for there, bucket in zip(staying, row.tolist(), strict=True) if bucket >= 0]
        rivals = sorted({rival for there, bucket in places for rival in there.get(bucket, ())})
        if rivals:
            similar = (signatures_MP[rivals] == signatures_MP[document]).mean(axis=1)
            best = int(similar.argmax())
            if similar[best] >= threshold:
                of_M[document], jaccard_M[document] = rivals[best], similar[best]
                gone += 1
                continue
        full = 0
        for there, bucket in places:
            held = there.setdefault(bucket, [])
            if len(held) < RIVALS:
                held.append(document)
            else:
                full = 1
        crowded += full
    return Duplicates(of_M, jaccard_M, crowded)


@functools.cache
def _minhash(permutations: int) -> Any:
    return _datasketch().MinHash(permutations, hashfunc=lambda number: number)  # the shingles are hashes


@functools.cache
def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    datasketch = _datasketch()
    try:
        lsh = datasketch.MinHashLSH(threshold=threshold, num_perm=permutations, weights=_WEIGHTS)
    except ValueError:  # one band would be best, for a threshold of almost 1, and is refused
        return 2, permutations // 2
    return lsh.b, lsh.r


def _datasketch() -> Any:
    check_installed()
    import datasketch

    return datasketch
