"""What training carries from step to step, born sharded: no array is ever whole on one host."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from model import parameters
from model.parameters import Params
from model.sharding import ShardingRules
from train.spikes import Window, empty


class State(struct.PyTreeNode):
    """Everything that a step reads and writes. Randomness comes from the seed and `step`; no key is carried."""

    step: Any  # int32 scalar, updates done
    params: Params
    opt_state: Any
    spikes: Window | None = None  # of the steps before; None, without a leaf, where spikes are not skipped


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: jax.Array, spike_window: int = 0
) -> State:
    """A fresh state. Run it under `jax.jit` with the shardings of `abstract_state` as `out_shardings`."""
    params = parameters.init(model, jax.random.key(seed))
    # Statistics are f32 whatever the weights are: the gradients that feed them are.
    opt_state = optimizer.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))
    return State(jnp.int32(0), params, opt_state, empty(spike_window))


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    rules: ShardingRules,
    mesh: Mesh | AbstractMesh,
    spike_window: int = 0,
) -> State:
    """Shapes, types and shardings of the state, without its memory."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, jnp.uint32(0), spike_window))
    weights = parameters.weights(model)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = State(
        step=everywhere,
        params=parameters.shardings(weights, rules, mesh),
        opt_state=_optimizer_shardings(shapes.opt_state, weights, rules, mesh),
        spikes=jax.tree.map(lambda _: everywhere, shapes.spikes),
    )
    return jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, placed)


def _optimizer_shardings(opt_state: Any, weights: Params, rules: ShardingRules, mesh: Mesh | AbstractMesh) -> Any:
    """Each statistic of a weight lies where the weight does: found by its path, which ends in the weight's."""
    by_path = {path: weight for path, weight in jax.tree_util.tree_leaves_with_path(weights)}

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if leaf.size <= 1:  # counters
            return NamedSharding(mesh, PartitionSpec())
        weight = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        if weight is not None and len(weight.shape) == len(leaf.shape):
            pairs = list(zip(leaf.shape, weight.shape, strict=True))
            if all(size in (whole, 1) for size, whole in pairs):  # 1: averaged over
                whole = [axis if a == b else None for axis, (a, b) in zip(weight.axes, pairs, strict=True)]
                return NamedSharding(mesh, rules.spec(*whole))
        raise ValueError(
            f"optimiser leaf {jax.tree_util.keystr(path)} {leaf.shape} belongs to no weight: cannot shard it"
        )

    return jax.tree_util.tree_map_with_path(place, opt_state)
