"""What an objective is: a block of tokens in, arrays of fixed shapes out."""

from typing import Protocol

import numpy as np

Example = dict[str, np.ndarray]
Features = dict[str, tuple[tuple[int, ...], type]]


class Objective(Protocol):
    """Makes examples of blocks that lie `stride` tokens apart and hold stride + overlap tokens.

    Names of features: `inputs`, `targets` and `weights` (of each target in the loss) always; `segments` (0 is padding)
    and `prefix` (1 is seen by all) belong to the inputs, `source` and `source_segments` to the encoder of an
    encoder-decoder.
    """

    @property
    def stride(self) -> int: ...

    @property
    def overlap(self) -> int: ...  # 1 where the last token of a block is only a target, else 0

    @property
    def features(self) -> Features: ...  # shape and type of each array of one example

    def __call__(self, block_ids: np.ndarray, rng: np.random.Generator) -> Example:
        """Block (N,), N <= stride + overlap -> one example, drawn by `rng`; padding has weight 0 and segment 0."""
        ...


def padded(values: np.ndarray, length: int, fill: int, dtype: type = np.int32) -> np.ndarray:
    """values (N,) -> (length,) of `dtype`, filled up at the end."""
    array = np.full(length, fill, dtype)
    array[: len(values)] = values
    return array
