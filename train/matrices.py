"""Weights as stacks of matrices, one side of which is the residual stream."""

import math
from typing import NamedTuple

from model.parameters import Weight

COUNTED_AXES = ("layers", "experts", "gates")  # one matrix for each index


class Sides(NamedTuple):
    """Dimensions of a weight: those that count its matrices, and the two sides. Without both it is no matrix."""

    counted: tuple[int, ...]
    embed: tuple[int, ...]  # the residual stream
    other: tuple[int, ...]

    def smaller(self, weight: Weight) -> int:
        """Size of the smaller side; 0 if it is no matrix."""
        if not self.embed or not self.other:
            return 0
        return min(math.prod(weight.shape[i] for i in side) for side in (self.embed, self.other))


def sides(weight: Weight) -> Sides:
    """A query kernel ("layers", "embed", "heads", "head_dim") is a D x HK matrix for each layer."""
    counted = tuple(i for i, axis in enumerate(weight.axes) if axis in COUNTED_AXES)
    embed = tuple(i for i, axis in enumerate(weight.axes) if axis == "embed")
    return Sides(counted, embed, tuple(i for i in range(len(weight.axes)) if i not in (*counted, *embed)))
