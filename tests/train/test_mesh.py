"""Mesh sizes, and the batches that fit on them."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from model.sharding import PRESETS, ShardingRules
from tests import tiny
from train.mesh import MeshConfig, batch_sharding, check_batch, check_length, local_rows, make_mesh, place_batch


def test_minus_one_is_the_rest_of_the_devices():
    others = {"tensor": 1, "context": 1, "expert": 1, "stage": 1}
    assert MeshConfig(-1, 2, 1, 1, 1).sizes(8) == {"data": 4, "fsdp": 2, **others}
    assert dict(make_mesh(MeshConfig(1, 4, 2, 1, 1)).shape) == {
        "data": 1,
        "stage": 1,
        "fsdp": 4,
        "tensor": 2,
        "context": 1,
        "expert": 1,
    }


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((4, 4, 1, 1, 1), r"data=4, fsdp=4 asks for 16 devices, there are 8.*--devices=16"),
        ((3, -1, 1, 1, 1), r"makes 3 devices, there are 8"),
        ((4, 1, 1, 1, 1), r"makes 4 devices, there are 8: every device takes part"),
        ((-1, -1, 1, 1, 1), r"at most one is -1"),
        ((0, 1, 1, 1, 1), r"sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit(sizes, says):
    with pytest.raises(ValueError, match=says):
        make_mesh(MeshConfig(*sizes))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that says in which slice it is."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def slices_along(mesh, axis):
    """Whether neighbours along an axis lie in different slices."""
    chips = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    place = mesh.axis_names.index(axis)
    return bool((np.diff(chips, axis=place) != 0).any())


@pytest.mark.parametrize(
    ("slices", "axes", "crosses"),
    [
        (2, {"data": 2, "fsdp": 4}, {"data"}),
        (2, {"data": 4, "tensor": 2}, {"data"}),
        (4, {"data": 2, "stage": 2, "fsdp": 2}, {"data", "stage"}),
        (2, {"data": 1, "stage": 4, "context": 2}, {"stage"}),
        (1, {"data": 2, "fsdp": 4}, set()),
    ],
)
def test_only_data_and_stages_go_between_slices(slices, axes, crosses):
    chips = [Chip(i, i % slices) for i in range(8)]  # as they come: slices mixed
    config = MeshConfig(**({"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1} | axes))
    mesh = make_mesh(config, chips)
    assert {axis for axis in mesh.axis_names if slices_along(mesh, axis)} == crosses
    assert {axis: n for axis, n in mesh.shape.items() if n > 1} == {axis: n for axis, n in axes.items() if n > 1}
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(8))


def test_slices_are_the_outer_part_of_an_axis():
    chips = [Chip(i, i // 4) for i in range(8)]
    mesh = make_mesh(MeshConfig(4, 2, 1, 1, 1), chips)
    assert [[chip.id for chip in row] for row in mesh.devices.reshape(4, 2)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # Devices of one slice may be treated as several, which emulates them.
    mesh = make_mesh(MeshConfig(1, 2, 1, 1, 1, stage=4, slices=2))
    assert [[d.id for d in row] for row in mesh.devices.reshape(4, 2)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("config", "counts", "says"),
    [
        (MeshConfig(1, 8, 1, 1, 1), (4, 4), "2 slices do not fit mesh.data 1 and mesh.stage 1.*mesh.slices=1"),
        (MeshConfig(3, 2, 1, 1, 1), (3, 3), "2 slices do not fit mesh.data 3"),
        (MeshConfig(8, 1, 1, 1, 1, slices=4), (4, 4), "mesh.slices is 4, the devices lie in 2: use 2, -1 or 1"),
        (MeshConfig(8, 1, 1, 1, 1), (5, 3), "the slices have 5, 3 devices"),
        (MeshConfig(8, 1, 1, 1, 1, slices=3), (8,), "mesh.slices is 3: it must divide the 8 devices"),
    ],
)
def test_slices_that_do_not_fit(config, counts, says):
    chips = [Chip(i, number) for number, count in enumerate(counts) for i in range(count)]
    with pytest.raises(ValueError, match=says):
        make_mesh(config, chips)


def test_several_slices_may_count_as_one():
    chips = [Chip(i, i // 4) for i in range(8)]
    assert dict(make_mesh(MeshConfig(1, 8, 1, 1, 1, slices=1), chips).shape)["fsdp"] == 8


def test_batch_that_the_mesh_cannot_cut():
    mesh, rules = tiny.mesh(data=4, fsdp=2), ShardingRules()
    check_batch(mesh, rules, 16, 2)
    with pytest.raises(ValueError, match=re.escape("12 in 1 microbatches gives 12 rows, not divisible by the 8 parts")):
        check_batch(mesh, rules, 12, 1)
    with pytest.raises(ValueError, match="use a global_batch of 16 or 32"):
        check_batch(mesh, rules, 24, 2)
    with pytest.raises(ValueError, match="16 is not divisible by train.microbatches 3"):
        check_batch(mesh, rules, 16, 3)


def test_length_that_the_mesh_cannot_cut():
    mesh, rules = tiny.mesh(context=4), ShardingRules()
    check_length(mesh, rules, 32)
    check_length(tiny.mesh(data=4), rules, 31)
    with pytest.raises(ValueError, match="length 28 .*not divisible by twice the 4 parts.*use 24 or 32"):
        check_length(mesh, rules, 28)
    with pytest.raises(ValueError, match="length 18 .*not divisible by the 4 parts"):
        check_length(tiny.mesh(tensor=4), PRESETS["sequence_parallel"], 18)


def test_a_placed_batch_is_cut_by_rows():
    mesh = tiny.mesh(data=4)
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = place_batch({"inputs": rows}, batch_sharding(mesh, ShardingRules()))["inputs"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(jax.device_get(placed), rows)


def test_rows_of_one_process_are_all_rows():
    for axes in ({"data": 4}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}):
        sharding = batch_sharding(tiny.mesh(**axes), ShardingRules())
        assert local_rows(sharding, 8).tolist() == list(range(8))
        rows = np.arange(8 * 4).reshape(8, 4)
        np.testing.assert_array_equal(jax.device_get(place_batch({"x": rows}, sharding, 8)["x"]), rows)
