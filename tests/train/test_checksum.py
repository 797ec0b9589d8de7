"""Checksums: one value on any mesh, another one for any change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import tiny
from train.checksum import checksums, digest, part_sums

TYPES = ("float32", "bfloat16", "float8_e4m3fn", "int32", "uint8", "bool")


def array(dtype, shape=(16, 8)):
    return np.random.default_rng(0).integers(0, 99, shape).astype(jnp.dtype(dtype))


def of(x):
    return checksums({"x": x})["/x"]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_mesh_changes_nothing(dtype):
    x, mesh = array(dtype), tiny.mesh(fsdp=4, tensor=2)
    specs = [(), ("fsdp",), ("fsdp", "tensor"), ("tensor", "fsdp"), (None, ("fsdp", "tensor"))]
    cut = {str(spec): jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))) for spec in specs}
    assert set(checksums(cut).values()) == {of(x)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_every_bit_counts(dtype):
    x = array(dtype, (3, 5))
    bits, seen = x.view(f"uint{8 * x.dtype.itemsize}"), {of(x)}
    for at in np.ndindex(x.shape):
        for bit in range(8 * x.dtype.itemsize):
            bits[at] ^= np.array(1 << bit, bits.dtype)
            seen.add(of(x))
            bits[at] ^= np.array(1 << bit, bits.dtype)
    assert len(seen) == 1 + x.size * 8 * x.dtype.itemsize


def test_the_place_of_a_number_counts_and_so_do_zeros():
    x = array("float32")
    assert len({of(x), of(x[::-1]), of(x.reshape(8, 16).T), of(np.pad(x, ((0, 1), (0, 0)))), of(0 * x)}) == 5
    assert of(np.zeros(2, np.float32)) != of(np.zeros(3, np.float32))
    assert of(np.float32(0.0)) != of(np.float32(-0.0))


def test_parts_add_up():
    x = array("float32", (7, 6, 5))
    whole = part_sums(x, (0, 0, 0), x.shape)
    parts = [part_sums(x[a : a + 3, b : b + 2], (a, b, 0), x.shape) for a in (0, 3, 6) for b in (0, 2, 4)]
    np.testing.assert_array_equal(sum(parts[1:], parts[0]), whole)
    assert digest(whole) == of(x)


def test_large_places_wrap_and_do_not_fail():
    part_sums(np.ones((1, 4), np.float32), (2**40, 0), (2**41, 4))


def test_leaves_are_named_by_path():
    assert list(checksums({"a": [np.ones(1), {"b": np.ones(())}]})) == ["/a/0", "/a/1/b"]


def test_a_start_may_be_known_late():
    x, start = array("float32", (7, 6)), np.array([2, 3], np.uint32)
    late = jax.jit(lambda part, start: part_sums(part, tuple(start), x.shape))(x[2:4, 3:], start)
    np.testing.assert_array_equal(late, part_sums(x[2:4, 3:], (2, 3), x.shape))
