"""Positions against their papers, computed another way; and that a decoder with each of them can tell order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import ModelConfig
from model.positions import (
    ALiBi,
    LearnedPositions,
    RelativePositions,
    SinusoidalPositions,
    alibi_slopes,
    interpolated,
    llama3_scaled,
    rotary,
)
from model.sharding import ShardingRules
from tests import tiny


def test_sinusoidal_is_the_papers_formula():
    positions = np.asarray([[0, 3, 700]])
    out = SinusoidalPositions(6).apply({}, jnp.ones((1, 3, 6)), jnp.asarray(positions))
    for t, position in enumerate(positions[0]):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert out[0, t, 2 * i] == pytest.approx(1 + math.sin(angle), abs=1e-4)
            assert out[0, t, 2 * i + 1] == pytest.approx(1 + math.cos(angle), abs=1e-4)


def test_learned_positions_start_at_the_offset():
    table = lambda key, shape, dtype: jnp.arange(12.0).reshape(6, 2)  # noqa: E731
    model = LearnedPositions(4, 2, ShardingRules(), table, "float32", offset=2)
    x, positions = jnp.zeros((1, 2, 2)), jnp.asarray([[0, 3]])
    with jax.set_mesh(tiny.mesh()):
        params = jax.tree.map(
            lambda boxed: boxed.value, model.init(jax.random.key(0), x, positions),
            is_leaf=lambda leaf: hasattr(leaf, "axes"),
        )  # fmt: skip
        np.testing.assert_array_equal(model.apply(params, x, positions)[0], [[4, 5], [10, 11]])


@pytest.mark.parametrize("heads", [1, 2, 8, 16])
def test_alibi_slopes_of_a_power_of_two_are_a_geometric_series(heads):
    np.testing.assert_allclose(alibi_slopes(heads), [2 ** (-8 * (i + 1) / heads) for i in range(heads)], rtol=1e-6)


def test_alibi_slopes_of_other_numbers_are_filled_from_the_next_power():
    # Press et al. 2022, as released: 12 heads take the 8 slopes of 8 and every second of the 16 slopes of 16.
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2 ** (-(i + 0.5)) for i in range(4)], rtol=1e-6)
    bias = ALiBi(12).apply({})(jnp.asarray([5]), jnp.arange(7))
    np.testing.assert_allclose(bias[0, 8, 0], [-(2**-0.5) * abs(s - 5) for s in range(7)], rtol=1e-6)


def bucket_by_hand(distance, buckets, far, bidirectional):
    """Of the key at query + distance; the same rule as a loop over what each bucket holds."""
    first = 0
    if bidirectional:
        buckets //= 2
        first, distance = (buckets, distance) if distance > 0 else (0, -distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # Bucket exact + i begins at exact * (far / exact)^(i / (buckets - exact)).
    begins = [exact * (far / exact) ** (i / (buckets - exact)) for i in range(buckets - exact)]
    return first + exact + max(i for i, begin in enumerate(begins) if distance >= begin - 1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 20)])
def test_relative_buckets(bidirectional, buckets, far):
    model = RelativePositions(
        buckets, far, 1, bidirectional, lambda key, shape, dtype: jnp.arange(float(buckets))[:, None]
    )
    variables = {"params": {"embedding": jnp.arange(float(buckets))[:, None]}}
    found = model.apply(variables)(jnp.asarray([300]), jnp.arange(601))[0, 0, 0]
    expected = [bucket_by_hand(s - 300, buckets, far, bidirectional) for s in range(601)]
    np.testing.assert_array_equal(found, expected)
    assert max(expected) == buckets - 1 and min(expected) == 0


def test_interpolated_rotary_is_rotary_at_a_fraction_of_the_position():
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 8))
    positions = jnp.asarray([[0, 8, 40]])
    np.testing.assert_allclose(
        rotary(10_000.0, interpolated(4.0))(x, positions),
        rotary(10_000.0, interpolated(1.0))(x, positions // 4),
        atol=1e-6,
    )


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    frequency = 500_000.0 ** (-np.arange(64, dtype=np.float32) / 64)
    scaled = llama3_scaled(8.0, 1.0, 4.0, 8192)(frequency)
    wavelength = 2 * np.pi / frequency
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    assert short.any() and long.any() and not (short | long).all()
    np.testing.assert_array_equal(scaled[short], frequency[short])
    np.testing.assert_allclose(scaled[long], frequency[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert ((scaled < frequency) & (scaled > frequency / 8))[between].all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positions": "rotary", "head_dim": 7}, "even head size"),
        ({"positions": "sinusoidal", "embed_dim": 15, "num_heads": 3}, "come in pairs"),
        ({"positions": "relative", "relative_buckets": 1}, "distances apart"),
        ({"positions": "relative", "relative_max_distance": 16}, "below model.relative_max_distance 16"),
        ({"rope_factor": 0.5}, "at least 1"),
        ({"architecture": "encoder"}, "model.head is 'lm'"),
        ({"head": "span"}, "architecture 'decoder' has lm"),
        ({"architecture": "encoder", "head": "classification"}, "num_labels is 0.*at least 1"),
        ({"num_labels": 3}, "num_labels is 3"),
        ({"architecture": "encoder", "head": "masked_lm", "tied_output": False}, "tied to the embedding"),
        ({"scale_output": True, "tied_output": False}, "only a tied output"),
        ({"norm": "none"}, "only rnn, lstm, gru"),
        ({"architecture": "ngram", "ngram_order": 7}, "use 1 to 6"),
        ({"architecture": "lstm", "prefix_lm": True}, "only a decoder"),
        ({"window": -1}, "must be positive"),
        *(({name: float("nan")}, f"{name} is nan") for name in ("attention_scale", "logits_softcap", "rope_theta")),
    ],
)
def test_choices_that_do_not_go_together_say_so(change, says):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**change)


def test_relative_and_token_type_tables_have_gradients_without_scatter():
    """A look-up with many repeats is slow to differentiate on GPUs: these tables use products."""
    model = RelativePositions(8, 20, 2, True, lambda key, shape, dtype: jnp.ones(shape, dtype))
    params = {"embedding": jnp.ones((8, 2))}
    text = jax.jit(
        jax.grad(lambda p: jnp.sum(model.apply({"params": p})(jnp.arange(6), jnp.arange(6)) ** 2))
    ).lower(params).as_text()  # fmt: skip
    assert "scatter" not in text
