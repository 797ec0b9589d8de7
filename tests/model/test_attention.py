"""Every path of attention against the f32 reference, values and gradients; and what a mask lets through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import CHUNKS, IMPLEMENTATIONS, MaskSpec, attention
from model.layers import WeightDropout

B, H, T, K = 2, 4, 16, 8


def inputs(G=H, S=T, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((B, H, T, K), (B, G, S, K), (B, G, S, K))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


SEGMENTS = jnp.asarray(np.repeat([[0, 1, 2, 3], [1, 1, 2, 2]], T // 4, axis=1), jnp.int32)
PREFIX = jnp.asarray([[1] * 5 + [0] * (T - 5), [0] * 8 + [1] * 3 + [0] * (T - 11)], jnp.int32)
MASKS = {
    "causal": MaskSpec(),
    "full": MaskSpec(causal=False),
    "segments": MaskSpec(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS),
    "segments_full": MaskSpec(causal=False, query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS),
    "window": MaskSpec(window=3),
    "window_full": MaskSpec(causal=False, window=3),
    "prefix": MaskSpec(prefix_BS=PREFIX),
    "prefix_segments": MaskSpec(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS, prefix_BS=PREFIX),
}
SCALE, SOFTCAP = 0.3, 1.5
BIAS = jax.random.normal(jax.random.key(7), (1, H, T, T))


def attend(q, k, v, mask, impl, bias=None, softcap=0.0, **options):
    return attention(q, k, v, bias, mask, scale=SCALE, softcap=softcap, impl=impl, **options)


def sees(mask, b, t, s):
    slot = t + int(mask.query_offset or 0)
    ahead = s > slot and not (mask.prefix_BS is not None and mask.prefix_BS[b, s])
    far = mask.window and (slot - s >= mask.window or (not mask.causal and s - slot >= mask.window))
    same = mask.query_segments_BT is None or mask.query_segments_BT[b, t] == mask.key_segments_BS[b, s]
    return same and not far and not (mask.causal and ahead)


def by_hand(q, k, v, mask, bias=None, softcap=0.0):
    """One query at a time, in float64: shares nothing with the code under test but the definition."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(B, H, T):
        g = h // (H // k.shape[1])
        seen = [s for s in range(k.shape[2]) if sees(mask, b, t, s)]
        scores = np.array([q[b, h, t] @ k[b, g, s] * SCALE for s in seen])
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        scores = scores if bias is None else scores + np.asarray(bias, np.float64)[0, h, t, seen]
        weights = np.exp(scores - scores.max())
        out[b, h, t] = (weights / weights.sum()) @ v[b, g, seen]
    return out


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_reference_is_the_definition(mask, groups):
    q, k, v = inputs(G=groups)
    np.testing.assert_allclose(attend(q, k, v, MASKS[mask], "reference"), by_hand(q, k, v, MASKS[mask]), atol=2e-6)
    np.testing.assert_allclose(
        attend(q, k, v, MASKS[mask], "reference", BIAS, SOFTCAP),
        by_hand(q, k, v, MASKS[mask], BIAS, SOFTCAP),
        atol=2e-6,
    )


@pytest.mark.parametrize("impl", [name for name in IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("softcap", [0.0, SOFTCAP])
def test_paths_equal_the_reference_in_values_and_gradients(impl, mask, groups, softcap):
    q, k, v = inputs(G=groups)
    weight = jax.random.normal(jax.random.key(9), q.shape)

    def run(impl):
        return jax.value_and_grad(
            lambda q, k, v, bias: jnp.sum(weight * attend(q, k, v, MASKS[mask], impl, bias, softcap)),
            argnums=(0, 1, 2, 3),
        )(q, k, v, BIAS)

    (ours, our_grads), (reference, reference_grads) = run(impl), run("reference")
    np.testing.assert_allclose(ours, reference, rtol=1e-5)
    for mine, theirs in zip(our_grads, reference_grads, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("window", [0, 100])
def test_long_rows_in_chunks_equal_the_reference(groups, segments, window):
    keys = jax.random.split(jax.random.key(0), 3)
    long = 64 * CHUNKS
    q, k, v = (jax.random.normal(key, (1, n, long, 8)) for key, n in zip(keys, (2, groups, groups), strict=True))
    ids = jnp.repeat(jnp.asarray([[1, 2, 3, 0]]), long // 4, axis=1) if segments else None
    mask = MaskSpec(window=window, query_segments_BT=ids, key_segments_BS=ids)
    bias = jax.random.normal(jax.random.key(1), (1, 2, long, long))

    def run(impl):
        return jax.value_and_grad(
            lambda q, k, v, bias: jnp.sum(jnp.sin(attend(q, k, v, mask, impl, bias))), argnums=(0, 1, 2, 3)
        )(q, k, v, bias)

    (ours, our_grads), (reference, reference_grads) = run("xla"), run("reference")
    np.testing.assert_allclose(ours, reference, rtol=1e-5)
    for mine, theirs in zip(our_grads, reference_grads, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_query_offset_is_the_slot_of_the_first_query(impl):
    q, k, v = inputs(S=T + 5)
    mask = MaskSpec(query_offset=jnp.int32(3))
    np.testing.assert_allclose(attend(q, k, v, mask, impl), by_hand(q, k, v, mask), atol=2e-6)


def test_bf16_stays_near_the_reference():
    q, k, v = inputs(dtype=jnp.bfloat16)
    out = attend(q, k, v, MaskSpec(), "xla")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(np.float32), attend(q, k, v, MaskSpec(), "reference").astype(np.float32), atol=0.03
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_row_with_nothing_to_see_has_no_nan(impl):
    q, k, v = inputs()
    nothing = MaskSpec(query_segments_BT=jnp.zeros((B, T), int), key_segments_BS=jnp.ones((B, T), int))
    assert np.isfinite(attend(q, k, v, nothing, impl)).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_drop_acts_on_the_attention_weights(impl):
    q, k, v = inputs()
    dropped = attend(q, k, v, MaskSpec(), impl, drop=lambda weights: 2.0 * weights)
    np.testing.assert_allclose(dropped, 2.0 * attend(q, k, v, MaskSpec(), impl), rtol=1e-5, atol=1e-6)


def test_the_parts_of_long_rows_drop_each_on_their_own():
    """Values that tell the weights: what the first rows of two parts drop of the same keys."""
    length = 64 * CHUNKS
    same, one_each = jnp.zeros((1, 1, length, length)), jnp.eye(length)[None, None]
    weights_TS = attend(same, same, one_each, MaskSpec(), "xla", drop=WeightDropout(jax.random.key(0), 0.5))[0, 0]
    kept_PS = np.asarray(weights_TS[64::64, :64]) > 0
    assert 0.3 < kept_PS.mean() < 0.7
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert 0.3 < (kept_PS[one] == kept_PS[other]).mean() < 0.7
