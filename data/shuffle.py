"""A permutation of 0 to max_index that is looked up at many places at once: Grain's index shuffle, in numpy.

Grain works out one place a call, in ten microseconds and more: longer than reading a short row takes. These are its
permutations, but where max_index is 2^16, 2^18, …: there Grain's, one bit short, leave out a number.
"""

from functools import lru_cache

import numpy as np

_FEW = 2**16  # of fewer numbers many applications are out of range: all places are worked out, once
_LEAST = 2**8  # of still fewer, Grain is quicker
_ROUNDS = 4
_WORD = 2**32


def shuffled(places_N: np.ndarray, max_index: int, seed: int) -> np.ndarray:
    """Where the permutation of `seed` (32 bits) takes places_N, int64, of 0 to max_index (32 bits at most).

    A cipher that permutes all numbers of an even number of bits (Simon, Beaulieu et al. 2013, with four rounds) is
    applied until the number is in range again (cycle walking, Black and Rogaway 2002).
    """
    if max_index < _FEW:
        return _whole(max_index, seed)[places_N]
    return _walked(places_N.astype(np.int64), max_index, seed)


@lru_cache(maxsize=16)
def _whole(max_index: int, seed: int) -> np.ndarray:
    if max_index >= _LEAST:
        return _walked(np.arange(max_index + 1), max_index, seed)
    from grain.experimental import index_shuffle  # a second of import, which large rows should not cost

    places = range(max_index + 1)
    return np.array([index_shuffle(place, max_index=max_index, seed=seed, rounds=_ROUNDS) for place in places])


def _walked(numbers_N: np.ndarray, max_index: int, seed: int) -> np.ndarray:
    bits = max(-(-max_index.bit_length() // 2), 8)  # of a half
    keys, out = _keys(seed), np.arange(len(numbers_N))
    made_N = numbers_N.copy()
    while out.size:
        made_N[out] = _encrypted(made_N[out], bits, keys)
        out = out[made_N[out] > max_index]
    return made_N


def _encrypted(numbers_N: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
    mask = (1 << bits) - 1
    left, right = numbers_N >> bits, numbers_N & mask

    def mixed(half: np.ndarray) -> np.ndarray:
        one, two, eight = ((half << by | half >> (bits - by)) & mask for by in (1, 2, 8))
        return one & eight ^ two

    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mixed(right) ^ (first & mask)
        right = right ^ mixed(left) ^ (second & mask)
    return left << bits | right


def _keys(seed: int) -> list[int]:
    """One 32-bit key for each round: what C++'s seed_seq{seed} generates (ISO C++17, 29.6.7.1)."""
    n, keys = _ROUNDS, [0x8B8B8B8B] * _ROUNDS
    for k in range(2 * n):
        at, near, far, before = k % n, (k + 1) % n, (k + 2) % n, (k - 1) % n
        if k < n:
            mixed = keys[at] ^ keys[near] ^ keys[before]
            first = 1664525 * (mixed ^ mixed >> 27) % _WORD
            second = (first + (1 if k == 0 else at + (seed if k == 1 else 0))) % _WORD
            keys[near], keys[far] = (keys[near] + first) % _WORD, (keys[far] + second) % _WORD
        else:
            mixed = (keys[at] + keys[near] + keys[before]) % _WORD
            first = 1566083941 * (mixed ^ mixed >> 27) % _WORD
            second = (first - at) % _WORD
            keys[near], keys[far] = keys[near] ^ first, keys[far] ^ second
        keys[at] = second
    return keys
