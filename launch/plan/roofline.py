"""How fast a step could be at best: what the chips, their memory and the wires between them allow. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from launch.plan.collectives import Collective
from train.chips import Chip

GPUS_OF_A_MACHINE = 8  # behind one NVLink switch
SECONDS_A_DAY = 86_400


def compute_seconds(flops: float, peak: float, devices: int) -> float:
    """Of all FLOPs of a step at the peak FLOP/s of a device, evenly over the devices."""
    return flops / (peak * devices)


def memory_seconds(traffic: float, chip: Chip) -> float:
    """Of the bytes that one device reads and writes in its HBM."""
    return traffic / chip.hbm_bandwidth


def collective_seconds(
    collectives: Sequence[Collective], mesh: Mesh, chip: Chip, places: Mapping[Any, Sequence[int]]
) -> dict[tuple[str, ...], float]:
    """Seconds of one step on the wires of each set of mesh axes, without latency.

    `places` says where each device sits, see `places_of`. A ring of n devices sends (n - 1) / n of the message of a
    gather, a scatter or an exchange, twice that of an all-reduce, and all of a permute.
    """
    seconds: dict[tuple[str, ...], float] = {}
    for c in collectives:
        n = len(c.group)
        share = 1.0 if c.kind == "collective-permute" else (n - 1) / n
        sent = c.bytes * c.times * share * (2 if c.kind == "all-reduce" else 1)
        both_ways = c.kind != "collective-permute"
        wires = bandwidth(c.group, mesh, chip, places, both_ways=both_ways)
        seconds[c.axes] = seconds.get(c.axes, 0.0) + sent / wires
    return seconds


def bandwidth(
    group: Sequence[int], mesh: Mesh, chip: Chip, places: Mapping[Any, Sequence[int]], *, both_ways: bool = True
) -> float:
    """Bytes/s with which one device talks in a group, given by its places on the mesh.

    Over the network where it crosses slices or machines; else over NVLink, or over the ICI links of all the dimensions
    of the torus that the group runs along: both ways at once where a dimension is a ring, one way else.
    """
    at = np.array([places[mesh.devices.flat[place]] for place in group])
    varies = (at != at[:1]).any(axis=0)
    if varies[0]:
        return chip.network_bandwidth
    if not chip.torus:
        return chip.link_bandwidth
    whole = np.array(list(places.values()))
    sizes = whole.max(axis=0) + 1
    links = sum(2 if both_ways and _ring(int(size), chip) else 1 for size in sizes[1:][varies[1:]])
    return chip.link_bandwidth * max(links if both_ways else 1, 1)


def _ring(size: int, chip: Chip) -> bool:
    """Whether a dimension of the torus is closed: multiples of 4 on three-dimensional ones, 16 on flat ones."""
    return size % 4 == 0 if chip.torus == 3 else size == 16


def places_of(devices: Sequence[Any], chip: Chip, sizes: Sequence[int]) -> dict[Any, tuple[int, ...]]:
    """(slice or machine, coordinates …) of each device; of emulated ones as if they were counted through `sizes`."""
    places = {}
    per_slice = math.prod(sizes) * chip.devices if chip.torus else min(GPUS_OF_A_MACHINE, math.prod(sizes))
    for number, device in enumerate(devices):
        coordinates = getattr(device, "coords", None)
        if coordinates is not None:
            places[device] = (getattr(device, "slice_index", None) or 0, *coordinates)
            continue
        outer, inner = divmod(number, per_slice)
        at = np.unravel_index(inner // chip.devices, sizes) if chip.torus else (inner,)
        places[device] = (outer, *map(int, at))
    return places


def mfu(flops: float, seconds: float, peak: float, devices: int) -> float:
    """Model FLOPs utilisation: the useful FLOPs of a step over what the chips could do in that time."""
    return flops / (seconds * peak * devices)
