"""Mesh sizes, and the batches that fit on them."""

import re

import jax
import numpy as np
import pytest

from model.sharding import ShardingRules
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
