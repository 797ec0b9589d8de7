"""Objectives of a decoder alone: predict the next token, of the whole block or of what follows a prefix."""

from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.examples import Example, Features, padded


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction: block (N,) -> `inputs`, `targets`, `weights` (length,); targets[t] follows inputs[t].

    With `random_prefix`, prefix language modelling (Raffel et al. 2020, section 3.2.1): the block is cut at a random
    place; the tokens before it all see each other (feature `prefix`: 1), those after it are predicted (weight 1), the
    first of them from the last token of the prefix. Both sides have 1 token or more.
    """

    length: int
    random_prefix: bool = False

    overlap = 1

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

    def __call__(self, block_ids: np.ndarray, rng: np.random.Generator) -> Example:
        count = max(len(block_ids) - 1, 0)
        if count == self.length:  # the common case, three times as fast
            ids, weights = np.asarray(block_ids, np.int32), np.ones(count, np.float32)
        else:
            ids, weights = padded(block_ids, self.length + 1, 0), padded(np.ones(count), self.length, 0, np.float32)
        example = {"inputs": ids[:-1], "targets": ids[1:], "weights": weights}
        if not self.random_prefix:
            return example
        cut = int(rng.integers(1, count + 1)) if count else 0
        weights[: max(cut - 1, 0)] = 0
        return example | {"prefix": padded(np.ones(cut), self.length, 0)}
