"""What training carries from step to step, born sharded: no array is ever whole on one host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from model import parameters
from model.parameters import Params, Weight
from model.sharding import ShardingRules


class State(struct.PyTreeNode):
    """Everything that a step reads and writes. Randomness comes from the seed and `step`; no key is carried."""

    step: Any  # int32 scalar, updates done
    params: Params
    opt_state: Any


def init_state(model: nn.Module, optimizer: optax.GradientTransformation, seed: jax.Array) -> State:
    """A fresh state. Run it under `jax.jit` with `out_shardings=state_shardings(...)`."""
    params = parameters.init(model, jax.random.key(seed))
    # Statistics are f32 whatever the weights are: the gradients that feed them are.
    return State(jnp.int32(0), params, optimizer.init(jax.tree.map(lambda p: p.astype(jnp.float32), params)))


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, rules: ShardingRules, mesh: Mesh | AbstractMesh
) -> State:
    """Shapes, types and shardings of the state, without its memory."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, jnp.uint32(0)))
    weights = parameters.weights(model)
    placed = State(
        step=NamedSharding(mesh, PartitionSpec()),
        params=parameters.shardings(weights, rules, mesh),
        opt_state=_optimizer_shardings(shapes.opt_state, weights, rules, mesh),
    )
    return jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, placed)


def _optimizer_shardings(opt_state: Any, weights: Params, rules: ShardingRules, mesh: Mesh | AbstractMesh) -> Any:
    """Each statistic of a weight lies where the weight does: found by its path, which ends in the weight's."""
    by_path = {path: weight for path, weight in jax.tree_util.tree_leaves_with_path(weights)}

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if leaf.size <= 1:  # counters, and the placeholders of Adafactor
            return NamedSharding(mesh, PartitionSpec())
        weight = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        if weight is not None:
            for axes, shape in _statistics(weight, path):
                if shape == leaf.shape:
                    return NamedSharding(mesh, rules.spec(*axes))
        raise ValueError(
            f"optimiser leaf {jax.tree_util.keystr(path)} {leaf.shape} belongs to no weight: cannot shard it"
        )

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _statistics(weight: Weight, path: tuple[Any, ...]) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Logical axes and shape of what an optimiser may keep for a weight: the same, or Adafactor's sums over a side."""
    names = {getattr(key, "name", None) for key in path}
    dropped = {"v_row": -1, "v_col": -2}  # Optax sums rows over the largest side and columns over the second largest
    for name, rank in dropped.items():
        if name in names:
            gone = int(np.argsort(weight.shape)[rank])
            axes = tuple(axis for i, axis in enumerate(weight.axes) if i != gone)
            return [(axes, tuple(size for i, size in enumerate(weight.shape) if i != gone))]
    return [(weight.axes, weight.shape)]
