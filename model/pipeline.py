"""Layers sharded over stages of devices: a pipeline in training; elsewhere each layer's weights visit every device.

The stacked weights are sharded along `layers`, so a checkpoint fits any number of stages.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.attention import Context
from model.cache import Cache
from model.routing import Routing
from model.sharding import STAGE, ShardingRules, mesh_axes, shards

MOST = 4  # microbatches per stage if the config leaves their number open: the bubble stays below a fifth
Carry = tuple[jax.Array, Cache | None]


def run_layers(
    stack: nn.Module, carry: Carry, layers: jax.Array, context: Context, *, rules: ShardingRules, microbatches: int
) -> tuple[Carry, Routing | None]:
    """x_BTD and cache after all layers of `stack` (bound, blocks scanned over stacked weights), and the routing of
    experts.

    On a mesh with stages, training is a pipeline through them; `microbatches` as in `ModelConfig`. Evaluation and
    decoding shard the batch over the stages too, and every layer's weights are sent to all stages when they are
    needed: each call costs a reduction of all weights over the stages.
    """
    stages = shards(rules.layers, dict(jax.sharding.get_abstract_mesh().shape))
    if stages == 1 or stack.is_initializing():
        return stack(carry, layers, context)
    bound, params, stack = stack, stack.variables["params"], stack.clone(parent=None)
    if carry[1] is not None or not context.train:
        return _visit(stack, params, carry, layers, context, stages), None
    key = bound.make_rng("dropout") if bound.has_rng("dropout") else None
    x_BTD, routing = _pipeline(stack, params, carry[0], layers, context, key, rules, stages, microbatches)
    return (x_BTD, None), routing


def count_microbatches(rows: int, mesh_shape: dict[str, int], rules: ShardingRules, microbatches: int) -> int:
    """The number of microbatches of a pipeline for a batch of `rows`.

    Raises:
        ValueError: stages or rows that do not divide evenly.
    """
    stages = shards(rules.layers, mesh_shape)
    parts = shards(batch_axes(rules), mesh_shape)
    if not microbatches:
        fits = [stages * n for n in range(1, MOST + 1) if rows % (stages * n * parts) == 0]
        microbatches = max(fits, default=stages)
    if microbatches % stages:
        low = microbatches // stages * stages
        raise ValueError(
            f"model.pipeline_microbatches {microbatches} is not a multiple of the {stages} stages of the mesh: use "
            f"{f'{low} or ' if low else ''}{low + stages}, or 0 to have the number chosen"
        )
    if rows % (microbatches * parts):
        step = microbatches * parts
        low = rows // step * step
        raise ValueError(
            f"a batch of {rows} rows is not divisible into {microbatches} pipeline microbatches on {parts} parts of "
            f"mesh axes {batch_axes(rules)!r}: use {f'{low} or ' if low else ''}{low + step} rows, or fewer "
            f"model.pipeline_microbatches (a multiple of the {stages} stages)"
        )
    return microbatches


def kept_rows(rows: int, mesh_shape: dict[str, int], rules: ShardingRules, microbatches: int) -> int:
    """For a batch of `rows`, the rows whose activations are kept for the backward pass: those of an idle stage count,
    which computes on rows that nobody reads.

    Raises:
        ValueError: rows that the stages cannot share.
    """
    stages = shards(rules.layers, mesh_shape)
    if stages == 1:
        return rows
    M = count_microbatches(rows, mesh_shape, rules, microbatches)
    return rows // M * (M + stages - 1)


def batch_axes(rules: ShardingRules) -> tuple[str, ...]:
    """The mesh axes that cut the batch inside a stage."""
    return tuple(axis for axis in mesh_axes(rules.batch) if axis not in mesh_axes(rules.layers))


def _pipeline(
    stack, params, x_BTD, layers, context: Context, key, rules, stages: int, microbatches: int
) -> tuple[jax.Array, Routing | None]:
    """GPipe (Huang et al. 2019): at tick t, stage s works on microbatch t - s and hands it to its neighbour.

    M microbatches take M + stages - 1 ticks. A stage that has no microbatch yet, or no more, computes on rows that
    nobody reads. Each device stores M / stages microbatches. The stored ones move down one device a tick until stage 0
    takes them in; the results of the last stage follow them.
    """
    M = count_microbatches(len(x_BTD), dict(jax.sharding.get_abstract_mesh().shape), rules, microbatches)
    kept, ticks, last = M // stages, M + stages - 1, stages - 1
    by_row, shared, join = _apart(context)
    up, down = [(s, s + 1) for s in range(last)], [(s + 1, s) for s in range(last)]

    def stage(params, layers, waiting, shared, key) -> tuple[jax.Array, Routing | None]:
        here = jax.lax.axis_index(STAGE)

        def tick(carry, t):
            waiting, handed = carry
            first = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, t % kept, keepdims=False), waiting)
            x_BTD, by_row = jax.tree.map(lambda new, old: jnp.where(here == 0, new, old), first, handed)
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, t * stages + here)}
            out = stack.apply({"params": params}, (x_BTD, None), layers, join(by_row, shared), rngs=rngs)
            (y_BTD, _), routing = out
            handed = jax.lax.ppermute((y_BTD, by_row), STAGE, up)
            moved_BTD, moved = jax.lax.ppermute(first, STAGE, down)
            moved = jnp.where(here == last, y_BTD, moved_BTD), moved
            put = lambda rows, new: jax.lax.dynamic_update_index_in_dim(rows, new, t % kept, 0)  # noqa: E731
            return (jax.tree.map(put, waiting, moved), handed), routing

        # Before the first microbatch any finite rows will do.
        start = (waiting, jax.tree.map(lambda rows: rows[0], waiting))
        ((y_MBTD, _), _), routing = jax.lax.scan(tick, start, jnp.arange(ticks))
        routing = jax.tree.map(lambda by_tick: jax.lax.dynamic_slice_in_dim(by_tick, here, M), routing)
        return jnp.roll(y_MBTD, -last, axis=0), routing  # the results are `last` ticks late

    cut, whole, of_layers = PartitionSpec(STAGE), PartitionSpec(), PartitionSpec(None, STAGE)
    # Kernels and ring attention do not declare what varies over the stages, so JAX cannot check it.
    staged = jax.shard_map(
        stage, in_specs=(cut, cut, cut, whole, whole), out_specs=(cut, of_layers), axis_names={STAGE}, check_vma=False
    )
    waiting = jax.tree.map(lambda rows: _cut(rows, stages, M), (x_BTD, by_row))
    y_MBTD, routing = staged(params, layers, waiting, shared, key)
    # Layers come in front of rows, and `_whole` wants the rows of a microbatch behind its number.
    routing = jax.tree.map(lambda by_M: jnp.swapaxes(_whole(jnp.swapaxes(by_M, 1, 2), stages), 0, 1), routing)
    return rules.constrain(_whole(y_MBTD, stages), "batch", "sequence", "residual"), routing


def _visit(stack, params, carry: Carry, layers, context: Context, stages: int) -> Carry:
    """The layers in order on every device; the stage that holds a layer's weights sends them to all."""

    def layer(carry, number):
        place = number // (len(layers) // stages) == jnp.arange(stages)

        def bring(stacked):
            parts = stacked.reshape(stages, -1, *stacked.shape[1:])
            mine = jax.lax.dynamic_index_in_dim(parts, number % parts.shape[1], 1, keepdims=False)
            return jnp.sum(jnp.where(place.reshape(-1, *[1] * (mine.ndim - 1)), mine, 0), axis=0, keepdims=True)

        return stack.apply({"params": jax.tree.map(bring, params)}, carry, number[None], context)[0], None

    return jax.lax.scan(layer, carry, layers)[0]


def _cut(rows: jax.Array, stages: int, microbatches: int) -> jax.Array:
    """(rows, …) -> (microbatches, rows / microbatches, …), such that most rows stay on their device.

    Outside, the batch is sharded by stages first. A stage's share becomes n = microbatches / stages microbatches, each
    of which takes every n-th row of it.
    """
    parts = rows.reshape(stages, -1, microbatches // stages, *rows.shape[1:])
    return jnp.swapaxes(parts, 1, 2).reshape(microbatches, -1, *rows.shape[1:])


def _whole(parts: jax.Array, stages: int) -> jax.Array:
    """The inverse of `_cut`."""
    rows = parts.reshape(stages, len(parts) // stages, *parts.shape[1:])
    return jnp.swapaxes(rows, 1, 2).reshape(-1, *parts.shape[2:])


def _apart(context: Context) -> tuple[list[jax.Array], list[jax.Array], Any]:
    """The arrays of a context that have a batch dimension, the other ones, and a function that joins two such lists.

    Names tell which is which: the shape suffix of the former begins with B.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(context)
    rowwise = [jax.tree_util.keystr(path[-1:], simple=True).rpartition("_")[2].startswith("B") for path, _ in leaves]

    def join(by_row: list[jax.Array], shared: list[jax.Array]) -> Context:
        rows, rest = iter(by_row), iter(shared)
        return jax.tree.unflatten(tree, [next(rows if own else rest) for own in rowwise])

    by_row = [leaf for (_, leaf), own in zip(leaves, rowwise, strict=True) if own]
    return by_row, [leaf for (_, leaf), own in zip(leaves, rowwise, strict=True) if not own], join
