"""Many pieces at once, without a loop over them: items chosen at random, and pieces side by side in many rows."""

from dataclasses import dataclass

import numpy as np

from data.objectives.examples import IDS, PLACES, Example, Features, Objective

_BITS = 20  # of the number of a group, and of a place in it: what is left of 64 bits is random


@dataclass(frozen=True)
class Many:
    """The examples of pieces, one after the other, without padding or `PLACES`."""

    arrays: Example  # (M,): the slots of the first piece, of the second, …
    sizes: dict[str, np.ndarray]  # "inputs", perhaps "source" -> slots of each piece, (P,)


def draw(objective: Objective, count: int, rng: np.random.Generator) -> np.ndarray:
    """The random numbers that `Objective.many` needs for `count` tokens, uint64."""
    return rng.bit_generator.random_raw(count) if objective.is_random else np.empty(0, np.uint64)


def single(objective: Objective, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
    """The example of one piece."""
    ids = np.asarray(piece_ids)
    return objective.many(ids.astype(np.int32), np.array([len(ids)]), draw(objective, len(ids), rng)).arrays


def choose(random_N: np.ndarray, sizes_G: np.ndarray, counts_G: np.ndarray) -> np.ndarray:
    """Bool (N,): in each group of sizes_G items, one after the other, counts_G are chosen, those of lowest numbers.

    Looks at the upper 24 bits of random_N, uint64; of equal numbers, the first one is the lower. A group of no items
    has no choice to make. Raises ValueError for 2^20 groups, or items in one, and more.
    """
    largest = max(len(sizes_G), int(sizes_G.max(initial=0)))
    if largest >= 2**_BITS:
        raise ValueError(
            f"{largest} pieces, or tokens of one, are more than the {2**_BITS - 1} that can be drawn at once"
        )
    group_N = np.repeat(np.arange(len(sizes_G), dtype=np.uint64) << (64 - _BITS), sizes_G)
    key_N = group_N | (random_N >> 40 << _BITS) | counted(sizes_G).astype(np.uint64)
    last_G = np.cumsum(sizes_G) - sizes_G + counts_G - 1
    choosing_G = (sizes_G > 0) & (counts_G > 0)
    limit_G = np.zeros(len(sizes_G), np.uint64)
    limit_G[choosing_G] = np.sort(key_N)[last_G[choosing_G]] + np.uint64(1)
    return key_N < np.repeat(limit_G, sizes_G)


def arrange(many: Many, pieces_B: np.ndarray, features: Features, pad_id: int) -> Example:
    """What `assemble` makes of the pieces of each row: row b holds the next pieces_B[b] of them.

    Raises ValueError for pieces that are longer than their row.
    """
    row_P, number_P, made = np.repeat(np.arange(len(pieces_B)), pieces_B), counted(pieces_B), {}
    for side, sizes_P in many.sizes.items():
        (width,) = features[side][0]
        used_B = np.bincount(row_P, sizes_P, len(pieces_B)).astype(np.int64)
        if (used_B > width).any():
            raise ValueError(f"pieces of {used_B.max()} {side} slots are longer than their row of {width}")
        filled_BT = np.arange(width) < used_B[:, None]
        values = {name: of for name, of in many.arrays.items() if (name == "source") == (side == "source")}
        for name in [name for name, of in PLACES.items() if of == side and name in features]:
            values[name] = counted(sizes_P) if name.endswith("positions") else np.repeat(number_P + 1, sizes_P)
        for name, values_M in values.items():
            dtype = features[name][1]
            if filled_BT.all():
                made[name] = values_M.astype(dtype, copy=False).reshape(filled_BT.shape)
            else:
                made[name] = np.full(filled_BT.shape, pad_id if name in IDS else 0, dtype)
                made[name][filled_BT] = values_M
    return {name: made[name] for name in features}


def counted(sizes_N: np.ndarray) -> np.ndarray:
    """0, 1, … for each size: (2, 3) -> 0 1 0 1 2."""
    return np.arange(sizes_N.sum()) - np.repeat(np.cumsum(sizes_N) - sizes_N, sizes_N)
