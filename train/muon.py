"""Muon: the momentum of each hidden matrix, made nearly orthogonal (Jordan et al. 2024; Liu et al. 2025).

The iteration needs whole matrices. All matrices of one shape, of every layer, expert and weight, make one stack, and
the devices share the stack: each gathers and iterates on its own matrices only, whatever the mesh.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from model.parameters import Weight
from model.sharding import ShardingRules, mesh_axes
from train.matrices import sides

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at 0, not exact at 1
OUTER_AXES = ("vocab", "head")  # of output projections, for which Muon is not used
UPDATE_RMS = 0.2  # about that of an AdamW update


@dataclasses.dataclass(frozen=True)
class Matrices:
    """How the dimensions of one weight make matrices (count, rows, columns), rows being the shorter side."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # of the dimensions: counted, rows, columns
    size: tuple[int, int, int]  # count, rows, columns
    mesh_axes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]  # that count, rows and columns lie on

    def stack(self, x: jax.Array) -> jax.Array:
        return x.transpose(self.order).reshape(self.size)

    def unstack(self, x_NRC: jax.Array) -> jax.Array:
        transposed = x_NRC.reshape([self.shape[i] for i in self.order])
        return transposed.transpose([self.order.index(i) for i in range(len(self.shape))])


def matrices(weight: Weight, rules: ShardingRules) -> Matrices | None:
    """The matrices of a hidden weight, one side of which is the residual stream, or None: not for Muon."""
    if weight.role != "kernel" or set(OUTER_AXES) & set(weight.axes):
        return None
    lies = [mesh_axes(getattr(rules, axis)) for axis in weight.axes]
    # Sharded dimensions come first, so that a device's matrices are one contiguous part of the stack.
    counted, embed, other = sides(weight)
    counted = tuple(sorted(counted, key=lambda i: not lies[i]))
    if not embed or not other:
        return None

    def size(dimensions: tuple[int, ...]) -> int:
        return math.prod(weight.shape[i] for i in dimensions)

    # The iteration commutes with transposition, and is cheaper with the shorter side first.
    rows, columns = (embed, other) if size(embed) <= size(other) else (other, embed)

    def on(dimensions: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(axis for i in dimensions for axis in lies[i])

    return Matrices(
        shape=weight.shape,
        order=(*counted, *rows, *columns),
        size=(size(counted), size(rows), size(columns)),
        mesh_axes=(on(counted), on(rows), on(columns)),
    )


def orthogonalize(weights: Any, rules: ShardingRules) -> optax.GradientTransformation:
    """Replaces each matrix U S V^T by about 0.2 sqrt(max(rows, columns)) U V^T.

    That size is AdamW's, whose learning rates and weight decay then fit (Liu et al. 2025, eq. 4). `weights` is the
    tree of declared `Weight`s; the updates are those of its hidden matrices, as `optax.partition` passes them.
    """
    views = [view for weight in jax.tree.leaves(weights) if (view := matrices(weight, rules))]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(updates)
        for size in sorted({view.size for view in views}):
            members = [i for i, view in enumerate(views) if view.size == size]
            x_NMRC = jnp.stack([views[i].stack(leaves[i].astype(jnp.float32)) for i in members], axis=1)
            done_NMRC = UPDATE_RMS * max(size[1:]) ** 0.5 * _shared(x_NMRC, views[members[0]].mesh_axes)
            for m, i in enumerate(members):
                leaves[i] = views[i].unstack(done_NMRC[:, m])
        return tree.unflatten(leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def newton_schulz(x_NRC: jax.Array) -> jax.Array:
    """Brings the singular values of each matrix to about 0.7 to 1.2; the singular vectors stay (Jordan et al. 2024)."""
    a, b, c = COEFFICIENTS
    norms_N11 = jnp.sqrt(jnp.sum(x_NRC * x_NRC, axis=(1, 2), keepdims=True))
    x_NRC = x_NRC / jnp.maximum(norms_N11, 1e-16)  # a matrix of zeros stays one
    for _ in range(ITERATIONS):
        square_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * square_NRR + c * (square_NRR @ square_NRR)) @ x_NRC
    return x_NRC


def _shared(x_NMRC: jax.Array, lies: tuple[tuple[str, ...], ...]) -> jax.Array:
    """`newton_schulz` with the stack of matrices sharded over the whole mesh; zeros pad the last shard.

    Resharding goes one side at a time, an all-to-all each; for two at once XLA would gather everything.
    """
    mesh, (N, M, R, C) = jax.sharding.get_abstract_mesh(), x_NMRC.shape
    x_NRC = x_NMRC.reshape(N * M, R, C)
    if mesh.empty or mesh.size == 1:
        return newton_schulz(x_NRC).reshape(N, M, R, C)
    count, rows, columns = lies
    rest = tuple(axis for axis in mesh.axis_names if axis not in (*count, *rows, *columns))
    way = [
        (count, rows, columns),
        ((*count, *rows), (), columns),
        ((*count, *rows, *columns), (), ()),
        ((*count, *rows, *columns, *rest), (), ()),
    ]
    x_NRC = jnp.pad(x_NRC, ((0, -len(x_NRC) % mesh.size), (0, 0), (0, 0)))
    for axes in way:
        x_NRC = jax.lax.with_sharding_constraint(x_NRC, PartitionSpec(*axes))
    x_NRC = newton_schulz(x_NRC)
    for axes in reversed(way):
        x_NRC = jax.lax.with_sharding_constraint(x_NRC, PartitionSpec(*axes))
    return x_NRC[: N * M].reshape(N, M, R, C)
