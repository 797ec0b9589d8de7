"""Objectives of a decoder alone: predict the next token, of the whole piece or of what follows a prefix."""

from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features
from data.objectives.many import Many, counted, single


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction: piece (N,) -> `inputs`, `targets`, `weights` (N-1,); targets[t] follows inputs[t].

    With `random_prefix`, prefix language modelling (Raffel et al. 2020, section 3.2.1): the piece is cut at a random
    place; the tokens before it all see each other (feature `prefix`: 1), those after it are predicted (weight 1), the
    first of them from the last token of the prefix. Both sides have 1 token or more.
    """

    length: int  # of a row
    random_prefix: bool = False

    overlap = 1
    pad_id = 0  # any would do: nothing sees it

    def __post_init__(self):
        if self.length < 1:
            raise DataError(f"length {self.length} must be 1 or more")

    @property
    def stride(self) -> int:
        return self.length

    @property
    def features(self) -> Features:
        names = ["inputs", "targets", *["prefix"] * self.random_prefix]
        return {name: ((self.length,), np.int32) for name in names} | {"weights": ((self.length,), np.float32)}

    def sizes(self, num_tokens: int) -> dict[str, int]:
        return {"inputs": max(num_tokens - 1, 0)}

    @property
    def is_random(self) -> bool:
        return self.random_prefix

    def many(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> Many:
        sizes_P, ends_P = lengths_P - 1, np.cumsum(lengths_P)
        inputs, targets = np.delete(ids_N, ends_P - 1), np.delete(ids_N, ends_P - lengths_P)
        arrays = {"inputs": inputs, "targets": targets, "weights": np.ones(len(inputs), np.float32)}
        if self.random_prefix:
            cut_P = 1 + (random_N[ends_P - lengths_P] % sizes_P.astype(np.uint64)).astype(np.int64)
            place_M, cut_M = counted(sizes_P), np.repeat(cut_P, sizes_P)
            arrays["prefix"] = (place_M < cut_M).astype(np.int32)
            arrays["weights"][place_M < cut_M - 1] = 0
        return Many(arrays, {"inputs": sizes_P})

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        return single(self, piece_ids, rng)
