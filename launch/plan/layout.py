"""How arrays lie on a mesh, worked out from declared weights, rules and axis sizes: no device is needed."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from jax.sharding import AbstractMesh, AxisType

from model import parameters
from model.sharding import MESH_AXES, ShardingRules, mesh_axes


@dataclasses.dataclass(frozen=True)
class Laid:
    """One array cut into tiles. A tile is what one device holds; devices that hold the same tile are its copies."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical name of each dimension
    itemsize: int  # bytes of one number
    cuts: tuple[tuple[str, ...], ...]  # of each dimension: the mesh axes that cut it, outermost first; none of size 1
    mesh: Mapping[str, int]  # size of each mesh axis

    @property
    def parts(self) -> tuple[int, ...]:
        """Into how many parts each dimension is cut."""
        return tuple(math.prod(self.mesh[axis] for axis in cut) for cut in self.cuts)

    @property
    def tiles(self) -> int:
        return math.prod(self.parts)

    @property
    def copies(self) -> int:
        """Devices that hold each tile."""
        return math.prod(self.mesh.values()) // self.tiles

    @property
    def tile_shape(self) -> tuple[int, ...]:
        return tuple(size // parts for size, parts in zip(self.shape, self.parts, strict=True))

    @property
    def bytes(self) -> int:
        """Of the whole array, once."""
        return math.prod(self.shape) * self.itemsize

    @property
    def device_bytes(self) -> int:
        return math.prod(self.tile_shape) * self.itemsize


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these sizes that has no devices: enough to say who would hold what."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def full_sizes(given: Mapping[str, int]) -> dict[str, int]:
    """The size of every mesh axis, 1 where `given` does not say.

    Raises:
        ValueError: an axis that does not exist, or a size below 1.
    """
    for axis, size in given.items():
        if axis not in MESH_AXES:
            raise ValueError(f"there is no mesh axis {axis!r}: the axes are {', '.join(MESH_AXES)}")
        if size < 1:
            raise ValueError(f"mesh axis {axis} has size {size}: it must be at least 1")
    return {axis: given.get(axis, 1) for axis in MESH_AXES}


def lay_weights(weights: parameters.Params, rules: ShardingRules, sizes: Mapping[str, int]) -> list[Laid]:
    """Every declared `Weight` of a tree on a mesh of these sizes, in the order of the tree.

    Raises:
        ValueError: a dimension that the mesh cannot cut into equal parts.
    """
    placed = parameters.named_leaves(parameters.shardings(weights, rules, abstract_mesh(sizes)))
    return [
        _laid(name, weight.shape, weight.axes, weight.dtype.itemsize, tuple(placed[name].spec), sizes)
        for name, weight in parameters.named_leaves(weights).items()
    ]


def lay_tokens(rows: int, length: int, rules: ShardingRules, sizes: Mapping[str, int]) -> Laid:
    """A batch of token ids (int32) on a mesh.

    Raises:
        ValueError: rows or tokens that the mesh cannot cut into equal parts.
    """
    laid = _laid("tokens", (rows, length), ("batch", "length"), 4, tuple(rules.spec("batch", "length")), sizes)
    for size, parts, axis in zip(laid.shape, laid.parts, laid.axes, strict=True):
        if size % parts:
            raise ValueError(f"the {axis} {size} of a batch is not divisible by the {parts} parts of its mesh axes")
    return laid


def _laid(
    name: str, shape: tuple[int, ...], axes: tuple[str, ...], itemsize: int, spec: tuple, sizes: Mapping[str, int]
) -> Laid:
    spec = (*spec, *[None] * (len(shape) - len(spec)))
    cuts = tuple(tuple(axis for axis in mesh_axes(entry) if sizes[axis] > 1) for entry in spec)
    return Laid(name, shape, axes, itemsize, cuts, MappingProxyType(dict(sizes)))
