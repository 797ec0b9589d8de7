"""Everything derived from the one line that declares a weight: shape, logical axes, sharding, role."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from jax.sharding import AbstractMesh, AxisType

from model.sharding import MESH_AXES, ShardingRules, shards

Params = Any  # a tree of dicts: of arrays, or of what stands for them


@dataclasses.dataclass(frozen=True)
class Weight:
    """One declared weight: `shape` with the logical name of each dimension in `axes`."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]
    role: str  # kernel | embedding | bias | scale

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Declared(struct.PyTreeNode, meta.AxisMetadata):
    """A weight with the logical names of its dimensions, as `init` of a module returns it.

    Not `nn.Partitioned`, which takes the names for mesh axes, nor `nn.LogicallyPartitioned`, which silently replicates
    if there are no global rules.
    """

    value: Any
    axes: tuple[str, ...] = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        return self.replace(axes=(*self.axes[:index], params[nn.PARTITION_NAME], *self.axes[index:]))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        return self.replace(axes=(*self.axes[:index], *self.axes[index + 1 :]))


def declare(initializer: Callable[..., jax.Array], *axes: str) -> Callable[..., Any]:
    """An initialiser whose weight carries the logical names of its dimensions."""
    return lambda *args: Declared(initializer(*args), axes)


def init(model: nn.Module, key: jax.Array) -> Params:
    """Fresh parameters of `model`. Pure: under `jax.jit` with output shardings no device holds more than its share."""
    return nn.unbox(_init_boxed(model, key))


def weights(model: nn.Module) -> Params:
    """The tree of declared `Weight`s of `model`. Computes nothing and takes no memory."""
    with _some_mesh():
        boxed = jax.eval_shape(lambda: _init_boxed(model, jax.random.key(0)))

    def describe(path, leaf) -> Weight:
        if not isinstance(leaf, Declared):
            raise ValueError(f"weight {jax.tree_util.keystr(path)} declares no logical axes: wrap it in `declare`")
        return Weight(leaf.value.shape, leaf.value.dtype, leaf.axes, path[-1].key)

    return jax.tree_util.tree_map_with_path(describe, boxed, is_leaf=lambda x: isinstance(x, Declared))


def shardings(tree: Params, rules: ShardingRules, mesh: jax.sharding.Mesh | AbstractMesh) -> Params:
    """The sharding of each `Weight` of `tree` on `mesh`.

    Raises:
        ValueError: a dimension that the mesh cannot divide evenly, with the sizes and the way out.
    """
    for name, weight in named_leaves(tree).items():
        for size, axis in zip(weight.shape, weight.axes, strict=True):
            parts = shards(getattr(rules, axis), dict(mesh.shape))
            if size % parts:
                near = sorted({size // parts * parts or parts, (size // parts + 1) * parts})
                raise ValueError(
                    f"{name} {weight.shape}: its {axis!r} dimension {size} is not divisible by {parts}, the size of "
                    f"mesh axis {getattr(rules, axis)!r}: use a mesh axis of {_common(size, parts)}, change the size "
                    f"to {' or '.join(map(str, near))}, or keep it whole with "
                    f"--config.sharding.{axis}=''"
                )
    return jax.tree.map(lambda w: jax.sharding.NamedSharding(mesh, rules.spec(*w.axes)), tree)


def unstack(params: Params) -> Params:
    """The same parameters with each stack of layers split into one tree per layer, for `build(..., stacked=False)`.

    On a CPU, a step that slices a layer's weights out of a stack copies them. Slicing once, before many steps, halves
    the memory traffic of a step, at the cost of a second copy of the layers.
    """
    if not isinstance(params, dict):
        return params
    return {name: _split(tree) if name == "layers" else unstack(tree) for name, tree in params.items()}


def _split(stacked: Params) -> Params:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return {str(layer): jax.tree.map(lambda x, layer=layer: x[layer], stacked) for layer in range(count)}


def named_leaves(tree: Params) -> dict[str, Any]:
    """ "layers/mlp/up/kernel" -> leaf, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _common(size: int, parts: int) -> str:
    return " or ".join(str(d) for d in range(1, parts) if size % d == 0 and parts % d == 0)


def _init_boxed(model: nn.Module, key: jax.Array) -> Params:
    # The shapes of weights do not depend on the batch: one token is enough.
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def _some_mesh() -> contextlib.AbstractContextManager:
    """The mesh that is set, or else any mesh, since constraints need one: global shapes do not depend on it."""
    if not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, axis_types=axis_types))
