"""Stochastic rounding: to one of two neighbours, without bias, the same bits on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tests import tiny
from train.rounding import nearest, stochastic

KEY = jax.random.key(3)


def bf16(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def test_the_mean_is_the_number_and_every_draw_a_neighbour():
    # Between 1 and 1 + 2^-7 there is no bf16 number; 0.3 of the way, below and above 0.
    x = jnp.concatenate([jnp.full(20_000, 1 + 0.3 * 2**-7), jnp.full(20_000, -1 - 0.3 * 2**-7)])
    got = np.asarray(stochastic({"a": x}, {"a": bf16(40_000)}, KEY)["a"].astype(jnp.float32))
    assert set(np.abs(got)) == {1.0, 1 + 2**-7}
    for part in (got[:20_000], got[20_000:]):
        assert abs((np.abs(part) > 1).mean() - 0.3) < 0.015  # 4.6 standard deviations


def test_what_bf16_holds_is_not_touched():
    held = [0.0, -0.0, 1.5, -(2.0**-126), 3e38, np.inf, -np.inf, np.nan]
    x = jnp.asarray(held, jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(stochastic(x, bf16(8), KEY).astype(jnp.float32), x)


def test_f32_and_counters_pass():
    tree = {"a": jnp.float32([1 / 3]), "n": jnp.int32(7), "b": jnp.float32([1 / 3])}
    like = {"a": tree["a"], "n": tree["n"], "b": bf16(1)}
    for rounded in (nearest, stochastic):
        got = rounded(tree, like, KEY)
        assert got["a"] == tree["a"] and got["n"] == 7 and got["b"].dtype == jnp.bfloat16
    assert nearest(tree, like, KEY)["b"] == jnp.bfloat16(1 / 3)


def test_each_leaf_has_bits_of_its_own():
    x = jnp.full(256, 1 + 2**-8, jnp.float32)
    a, b = stochastic([x, x], [bf16(256)] * 2, KEY)
    assert (a != b).any()
    other = stochastic([x, x], [bf16(256)] * 2, jax.random.key(4))
    assert (other[0] != a).any()


def test_a_mesh_changes_no_bit():
    x = jax.random.normal(jax.random.key(0), (64, 32))
    mesh = tiny.mesh(fsdp=4, tensor=2)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    call = jax.jit(lambda x: stochastic([x, x], [bf16(64, 32)] * 2, KEY))
    for one, many in zip(call(x), call(placed), strict=True):
        np.testing.assert_array_equal(one.astype(jnp.float32), many.astype(jnp.float32))
