"""Attention around a ring of devices against the definition: values, gradients, dropout, memory, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ring
from model.attention import attention
from model.build import build
from model.decoding import empty_cache
from model.layers import WeightDropout
from model.mask import MaskSpec
from model.positions import ScoreBias
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

B, H, G, T, K = 4, 4, 2, 16, 8
RULES = ShardingRules()
SEGMENTS = jnp.asarray(np.repeat([[0, 1, 2, 3], [1, 1, 2, 2], [1, 1, 1, 1], [1, 2, 2, 0]], T // 4, axis=1), jnp.int32)
PREFIX = jnp.asarray(np.arange(T) < np.asarray([[5], [0], [16], [1]]), jnp.int32)
MASKS = {
    "causal": MaskSpec(),
    "full": MaskSpec(causal=False),
    "window": MaskSpec(window=5),
    "window_full": MaskSpec(causal=False, window=3),
    "packed": MaskSpec(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS),
    "prefix": MaskSpec(prefix_BS=PREFIX),
}


def inputs(length=T):
    """Queries, keys, values, a table of biases by distance, and weights of the outputs."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((B, H, length, K), (B, G, length, K), (B, G, length, K), (length, H), (B, H, length, K))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def by_distance(ahead_TS):
    """One-hot rows of the distance, whatever its direction."""
    return jax.nn.one_hot(jnp.abs(ahead_TS), T)


def value_and_gradients(mesh, mask, softcap=0.0, drop=None, impl="reference", rules=None):
    """The weighted sum of the outputs, and its gradients by queries, keys, values and biases."""

    def total(q, k, v, table_RH, weight):
        bias = ScoreBias(table_RH, by_distance)
        out = attention(q, k, v, bias, mask, scale=0.5, softcap=softcap, impl=impl, drop=drop, rules=rules)
        return jnp.sum(out * weight)

    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(*inputs()))


def same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, ours, theirs in zip("qkvb", found[1], expected[1], strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0, err_msg=name)


SLOW = ("window", "window_full", "prefix")


@pytest.mark.parametrize("mask", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MASKS])
def test_values_and_gradients_are_those_of_the_definition(mask):
    softcap = 1.5 if mask == "causal" else 0.0
    found = value_and_gradients(tiny.mesh(context=2, tensor=2), MASKS[mask], softcap, rules=RULES)
    same(found, value_and_gradients(tiny.mesh(), MASKS[mask], softcap))


def test_dropout_is_one_mask_forward_and_backward():
    """The mask is put together here, block by block, and multiplies the weights of the definition."""
    rate, parts, mask = 0.3, {"data": 2, "tensor": 2, "context": 2}, MASKS["causal"]
    drop, chunk = WeightDropout(jax.random.key(5), rate), T // 4
    kept_BHTS = np.zeros((B, H, T, T), np.float32)

    @jax.jit
    def multiplied(*numbers):
        return drop.block(*numbers)(jnp.ones((B // 2, 1, H // 2, chunk, chunk)))[:, 0]

    for row, head, t, s in np.ndindex(2, 2, 4, 4):
        block = multiplied(2 * row + head, t * chunk, s * chunk)
        kept_BHTS[2 * row :, 2 * head :, t * chunk :, s * chunk :][:2, :2, :chunk, :chunk] = block
    assert abs((kept_BHTS == 0).mean() - rate) < 0.02
    found = value_and_gradients(tiny.mesh(**parts), mask, drop=drop, rules=RULES)
    same(found, value_and_gradients(tiny.mesh(), mask, drop=lambda weights: weights * kept_BHTS))


def test_a_row_is_dealt_so_that_each_device_has_an_early_and_a_late_chunk():
    assert ring.dealt(16, 4).tolist() == [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9]


@pytest.mark.parametrize("mask", ["causal", "full", "window", "window_full"])
def test_blocks_are_left_out_where_no_query_sees_a_key(mask):
    spec, chunk, worked = MASKS[mask], 4, 0
    made = ring.Ring((), (), (), 1, spec.causal, spec.window, 1.0, 0.0, None, 0.0)
    allowed_TS = np.ones((T, T), bool) & (True if mask == "full" else np.asarray(spec.allowed(T, T))[0, 0])
    for t, s in np.ndindex(4, 4):
        mine = ring.Queries(None, jnp.arange(chunk) + t * chunk, None)
        theirs = ring.Keys(None, None, jnp.arange(chunk) + s * chunk, None, None)
        taken = bool(ring._where_seen(made, lambda *_: jnp.bool(True), jnp.bool(False), mine, theirs))
        assert taken == allowed_TS[t * chunk :, s * chunk :][:chunk, :chunk].any(), (t, s)
        worked += taken
    assert worked == {"causal": 10, "full": 16, "window": 7, "window_full": 10}[mask]


def test_no_device_holds_scores_of_its_queries_with_all_keys():
    length, mesh = 1024, tiny.mesh(context=8)
    x = jax.ShapeDtypeStruct((1, 1, length, K), jnp.float32)

    def total(q, k, v, rules):
        return jnp.sum(attention(q, k, v, None, MaskSpec(), scale=0.5, rules=rules) ** 2)

    def temporary(rules):
        spec = RULES.spec("batch", "heads", "length", None)
        lies = jax.sharding.NamedSharding(mesh, spec)
        with jax.set_mesh(mesh):
            step = jax.jit(
                jax.grad(lambda *x: total(*x, rules), argnums=(0, 1, 2)), in_shardings=lies, out_shardings=lies
            )
            return step.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * length * length // 8  # of the queries of one device
    assert temporary(RULES) < scores / 2 < scores < temporary(None)


def test_decoding_with_a_cache_is_that_of_one_device():
    """A prompt that goes round the ring, then a token that does not."""
    config = dataclasses.replace(tiny.LLAMA, init_std=0.3)
    model, rows = build(config, RULES), tiny.batch(rows=4, length=9)["inputs"]
    segments = (np.arange(8) >= np.asarray([[0], [3], [7], [1]])).astype(np.int32)  # padded on the left

    def logits(params, rows):
        cache = empty_cache(config, RULES, len(rows), 16)
        first = apply(model, params, rows[:, :8], segments_BT=segments, cache=cache)
        return first.logits, apply(model, params, rows[:, 8:], cache=first.cache).logits

    results = []
    for axes in ({}, {"context": 2, "tensor": 2}):
        mesh = tiny.mesh(**axes)
        with jax.set_mesh(mesh):
            params = tiny.start(config, mesh)
            program = jax.jit(logits).lower(params, rows).compile()
            assert ("collective-permute" in str(program.as_text())) == bool(axes)
            results.append(jax.device_get(program(params, rows)))
    for one, many in zip(*results, strict=True):
        assert one.std() > 0.1
        np.testing.assert_allclose(
            many[segments[:, -many.shape[1] :] > 0], one[segments[:, -one.shape[1] :] > 0], atol=2e-5
        )
