"""The mesh: how many devices lie along each named axis, and how a batch is laid on them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from model.sharding import MESH_AXES, ShardingRules, shards


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis. One of them may be -1: all the devices that the others leave."""

    data: int  # copies of the model, each with its part of the batch
    fsdp: int  # parts of every weight, gathered where used; also parts of the batch
    tensor: int  # parts of heads, MLP width and vocabulary
    context: int  # parts of the length
    expert: int  # parts of the experts
    stage: int = 1  # parts of the layers, a pipeline; outside of them also parts of the batch
    slices: int = -1  # groups of devices with a slow network between them; -1: what the devices say; 1: all wires alike

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of each axis on `num_devices` devices.

        Raises:
            ValueError: sizes that do not multiply to `num_devices`.
        """
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "all axes 1"
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise ValueError(f"mesh {shown}: sizes are positive, and at most one is -1 (the rest of the devices)")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if fixed > num_devices:
            raise ValueError(
                f"mesh {shown} asks for {fixed} devices, there are {num_devices}: "
                f"use smaller axes, or --devices={fixed} to emulate them on a CPU"
            )
        if num_devices % fixed or (not free and fixed != num_devices):
            raise ValueError(
                f"mesh {shown} makes {fixed} devices, there are {num_devices}: every device takes part. "
                f"Choose sizes whose product is {num_devices}, or divides it where one axis is -1 (the rest)"
            )
        return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with all axes, those of size 1 included, so that one rule set fits every mesh.

    Inside a slice jax chooses the order by the wires. Between slices only `data` talks, which does so once a step,
    and where it has fewer parts than there are slices also `stage`, which hands over one microbatch at a time. The
    mesh is the same in every process.

    Raises:
        ValueError: sizes that do not multiply to the number of devices, or slices that `data` and `stage` do not fit.
    """
    devices = list(devices or jax.devices())
    sizes = config.sizes(len(devices))
    slices = _slices(config.slices, devices)
    data, stage = over_slices(sizes, len(slices))
    names = tuple(sizes)
    inner = sizes | {"data": sizes["data"] // data, "stage": sizes["stage"] // stage}
    placed = [_ordered(tuple(inner.values()), members) for members in slices]
    outer = [{"data": data, "stage": stage}.get(name, 1) for name in names]
    blocks = np.stack(placed).reshape(*outer, *inner.values())
    # (outer axes, inner axes) -> each outer axis beside its inner one
    order = [place for axis in range(len(names)) for place in (axis, len(names) + axis)]
    # Auto, not Explicit, under which constraints assert instead of placing.
    types = (AxisType.Auto,) * len(names)
    return Mesh(blocks.transpose(order).reshape(tuple(sizes.values())), names, axis_types=types)


def over_slices(sizes: Mapping[str, int], slices: int) -> tuple[int, int]:
    """How many parts of `data` and of `stage` lie on different slices.

    Raises:
        ValueError: slices that the two do not fit.
    """
    data = math.gcd(slices, sizes["data"])
    stage = slices // data
    if sizes["stage"] % stage:
        raise ValueError(
            f"{slices} slices do not fit mesh.data {sizes['data']} and mesh.stage {sizes['stage']}: make one of "
            f"them {slices} or a multiple, so that only they go over the slow network, or set mesh.slices=1 "
            "where it is as fast as the wires inside a slice"
        )
    return data, stage


def num_slices(asked: int, devices: Sequence[Any]) -> int:
    """Slices of devices, where a config asks for so many: -1 is what the devices say."""
    return len({getattr(device, "slice_index", 0) for device in devices}) if asked == -1 else asked


def single_device_mesh() -> Mesh:
    """A mesh of the first device, on which everything is whole."""
    return make_mesh(MeshConfig(1, 1, 1, 1, 1), jax.devices()[:1])


def _ordered(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:  # where jax knows no order
        return np.array(devices).reshape(shape)
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(shape), devices=devices).devices


def _slices(asked: int, devices: list[Any]) -> list[list[Any]]:
    """The devices of each slice, in the order of their numbers. Those that know of no slices are in one."""
    numbers = [getattr(device, "slice_index", 0) for device in devices]
    found = [[d for d, n in zip(devices, numbers, strict=True) if n == number] for number in sorted(set(numbers))]
    if asked == -1:
        asked = len(found)
    if asked < 1 or len(devices) % asked:
        raise ValueError(f"mesh.slices is {asked}: it must divide the {len(devices)} devices, or be -1")
    if asked == len(found):
        if len({len(members) for members in found}) > 1:
            raise ValueError(
                f"the slices have {', '.join(str(len(members)) for members in found)} devices: they must be alike, "
                "or set mesh.slices=1"
            )
        return found
    if asked > 1 and len(found) > 1:
        raise ValueError(f"mesh.slices is {asked}, the devices lie in {len(found)}: use {len(found)}, -1 or 1")
    # One slice is to be treated as several (its processes, or emulated devices), or several as one.
    size = len(devices) // asked
    return [devices[first : first + size] for first in range(0, len(devices), size)]


def check_batch(mesh: Mesh | AbstractMesh, rules: ShardingRules, global_batch: int, microbatches: int) -> None:
    """Fails where a batch cannot be cut into equal parts.

    Raises:
        ValueError: with the numbers, and the sizes that would work.
    """
    if microbatches < 1 or global_batch < 1 or global_batch % microbatches:
        fits = [m for m in range(1, max(global_batch, 1) + 1) if global_batch % m == 0]
        raise ValueError(
            f"train.global_batch {global_batch} is not divisible by train.microbatches {microbatches}: "
            f"use one of {fits[:12]}"
        )
    parts, rows = shards(rules.batch, dict(mesh.shape)), global_batch // microbatches
    if rows % parts:
        low = rows // parts * parts * microbatches
        better = f"{low} or {low + parts * microbatches}" if low else str(parts * microbatches)
        raise ValueError(
            f"train.global_batch {global_batch} in {microbatches} microbatches gives {rows} rows, not divisible by the "
            f"{parts} parts of mesh axes {rules.batch!r}: use a global_batch of {better}"
        )


def check_length(mesh: Mesh | AbstractMesh, rules: ShardingRules, length: int) -> None:
    """Fails where the length of a sequence cannot be cut into equal parts: two for each device (`model.ring`).

    Raises:
        ValueError: with the numbers, and the lengths that would work.
    """
    parts = shards(rules.length, dict(mesh.shape))
    if parts > 1 and length % (2 * parts):
        low = length // (2 * parts) * 2 * parts
        better = f"{low} or {low + 2 * parts}" if low else str(2 * parts)
        raise ValueError(
            f"length {length} (model.max_length, or what the objective makes of it) is not divisible by twice the "
            f"{parts} parts of mesh axes {rules.length!r}, an early and a late one for each: use {better}"
        )
    finer = shards(rules.sequence, dict(mesh.shape))
    if length % finer:
        raise ValueError(
            f"length {length} (model.max_length, or what the objective makes of it) is not divisible by the {finer} "
            f"parts of mesh axes {rules.sequence!r}: use a multiple of {finer}, or another sharding.sequence"
        )


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Where (batch, length) arrays lie."""
    return NamedSharding(mesh, rules.spec("batch", "length"))


def local_rows(sharding: NamedSharding, global_batch: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, int64, rising.

    They follow from the mesh alone: processes along `tensor` or `context` hold the same rows, and those of a process
    may lie apart.
    """
    held = np.zeros(global_batch, bool)
    # Any length that all axes together divide will do: only rows are asked for.
    blocks: Mapping[Any, Any] = sharding.addressable_devices_indices_map((global_batch, sharding.mesh.size))
    for rows, _ in blocks.values():
        held[rows] = True
    return np.flatnonzero(held)


def place_batch(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding, global_batch: int | None = None
) -> dict[str, jax.Array]:
    """Global arrays from rows in the memory of this process: all of them, or its `local_rows` of a `global_batch`."""
    count = global_batch or len(next(iter(batch.values())))
    held = local_rows(sharding, count) if global_batch else np.arange(count)

    def place(values: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, end, _ = index[0].indices(count)
            return values[(slice(*np.searchsorted(held, (first, end))), *index[1:])]

        return jax.make_array_from_callback((count, *values.shape[1:]), sharding, part)

    return {name: place(values) for name, values in batch.items()}
