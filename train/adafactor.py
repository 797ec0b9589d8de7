"""Adafactor: second moments of a matrix as the mean of each row and of each column (Shazeer & Stern 2018).

Without its relative step and parameter scale: the schedule is ours. Unlike Optax, which factors the two largest
dimensions of an array, this knows that a query kernel (layers, embed, heads, head_dim) is a D x HK matrix a layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model.parameters import Weight
from train.matrices import sides

SMALLEST = 128  # side of a matrix that is factored: below it little is saved
EPSILON = 1e-30  # added to squared gradients
LARGEST = 1.0  # root mean square of an update of one matrix or vector


class Averages(NamedTuple):
    """Of squared gradients: by row and by column of each matrix (the averaged dimensions have size 1), or one by one.

    A weight is in the first two trees or in the third; in the others it is an `optax.MaskedNode`.
    """

    count: jax.Array  # int32 scalar, updates done
    rows: Any
    columns: Any
    each: Any


def scale_by_adafactor(weights: Any) -> optax.GradientTransformation:
    """Gradients over the root of their averaged squares, clipped by matrix (algorithm 4); `weights` are declared."""

    def init(params: Any) -> Averages:
        def zeros(factored: bool, averaged: str | None) -> Any:
            def of(weight: Weight, param: jax.Array) -> Any:
                if (sides(weight).smaller(weight) >= SMALLEST) != factored:
                    return optax.MaskedNode()
                gone = getattr(sides(weight), averaged) if averaged else ()
                return jnp.zeros([1 if i in gone else size for i, size in enumerate(param.shape)], param.dtype)

            return jax.tree.map(of, weights, params)

        return Averages(jnp.int32(0), zeros(True, "other"), zeros(True, "embed"), zeros(False, None))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Averages]:
        new = 1.0 / (state.count + 1.0) ** 0.8  # share of this gradient (section 7.2)

        def of(weight: Weight, g: jax.Array, row: Any, column: Any, each: Any) -> tuple[jax.Array, Any, Any, Any]:
            _, embed, other = sides(weight)
            square = g * g + EPSILON
            if isinstance(row, optax.MaskedNode):
                each = each + new * (square - each)
                scaled = g * each**-0.5
            else:
                row = row + new * (jnp.mean(square, other, keepdims=True) - row)
                column = column + new * (jnp.mean(square, embed, keepdims=True) - column)
                scaled = g * (row / jnp.mean(row, embed, keepdims=True)) ** -0.5 * column**-0.5
            size = jnp.sqrt(jnp.mean(scaled * scaled, (*embed, *other), keepdims=True))
            return scaled / jnp.maximum(1.0, size / LARGEST), row, column, each

        done = jax.tree.map(of, weights, updates, state.rows, state.columns, state.each)
        scaled, *averages = (jax.tree.map(lambda _, four, i=i: four[i], weights, done) for i in range(4))
        return scaled, Averages(state.count + 1, *averages)

    return optax.GradientTransformation(init, update)
