"""Objectives of a decoder alone: predict the next token, of the whole piece or of what follows a prefix."""

from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features


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

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        ids = np.asarray(piece_ids, np.int32)
        count = len(ids) - 1
        weights = np.ones(count, np.float32)
        example = {"inputs": ids[:-1], "targets": ids[1:], "weights": weights}
        if not self.random_prefix:
            return example
        cut = int(rng.integers(1, count + 1))
        weights[: cut - 1] = 0
        return example | {"prefix": (np.arange(count) < cut).astype(np.int32)}
