"""Schedules at their corners; weight decay by role; AdamW against the paper's formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.sharding import ShardingRules
from tests import tiny
from train.optimizers import make_optimizer, make_schedule
from train.rounding import nearest, stochastic

C = dataclasses.replace(tiny.OPTIMIZER, peak_lr=1.0, warmup_steps=10, final_lr_fraction=0.1, decay_fraction=0.2)


def rates(schedule, steps=100, **changes):
    made = make_schedule(dataclasses.replace(C, schedule=schedule, **changes), steps)
    return np.asarray([float(made(step)) for step in range(steps)])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "inverse_sqrt", "wsd"])
def test_warmup_is_linear_and_wastes_no_step(schedule):
    np.testing.assert_allclose(rates(schedule)[:11], [*np.arange(1, 11) / 10, 1.0], rtol=1e-5)
    assert rates(schedule, warmup_steps=0)[0] == 1.0


def test_shapes_after_the_warmup():
    after = np.arange(90)
    np.testing.assert_allclose(rates("constant")[10:], 1.0)
    np.testing.assert_allclose(rates("cosine")[10:], 0.1 + 0.45 * (1 + np.cos(np.pi * after / 90)), rtol=1e-5)
    np.testing.assert_allclose(rates("linear")[10:], 1 - 0.9 * after / 90, rtol=1e-5)
    np.testing.assert_allclose(rates("inverse_sqrt")[10:], np.sqrt(10 / (10 + after)), rtol=1e-5)
    np.testing.assert_allclose(rates("wsd")[10:80], 1.0)
    np.testing.assert_allclose(rates("wsd")[80:], 1 - 0.9 * np.arange(20) / 20, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 10), ("wsd", 10), ("wsd", 11)])
def test_phases_that_do_not_fit(schedule, steps):
    with pytest.raises(ValueError, match=f"{steps} train.steps"):
        make_schedule(dataclasses.replace(C, schedule=schedule), steps)


def test_weight_decay_goes_by_role():
    weights = parameters.weights(build(tiny.GPT))
    params = jax.tree.map(lambda w: jnp.ones(w.shape), weights)
    optimizer = make_optimizer(dataclasses.replace(C, name="sgd", weight_decay=0.5), weights, ShardingRules())
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    pulled = jax.tree.map(lambda w, u: (w.role, bool(jnp.all(u == 0.5)), bool(jnp.all(u == 0))), weights, updates)
    for role, decayed, untouched in jax.tree.leaves(pulled, is_leaf=lambda x: isinstance(x, tuple)):
        assert decayed == (role in ("kernel", "embedding")) and untouched != decayed


def test_adamw_is_loshchilov_and_hutters():
    """Two updates of one number, by hand (Loshchilov & Hutter 2019, algorithm 2)."""
    c = dataclasses.replace(C, name="adamw", b1=0.9, b2=0.99, epsilon=1e-8, weight_decay=0.1)
    weights = {"kernel": parameters.Weight((1,), jnp.dtype("float32"), ("embed",), "kernel")}
    optimizer = make_optimizer(c, weights, ShardingRules())
    x, m, v = 2.0, 0.0, 0.0
    params = {"kernel": jnp.asarray([x])}
    state = optimizer.init(params)
    for t, g in enumerate((0.5, -1.5), 1):
        updates, state = optimizer.update({"kernel": jnp.asarray([g])}, state, params)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        x -= 0.01 * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * x)
    assert float(params["kernel"][0]) == pytest.approx(x, rel=1e-5)


def test_bf16_moments_are_computed_with_in_f32():
    """The second of two AdamW updates, by hand from moments that lay in bf16 in between."""
    c = dataclasses.replace(C, name="adamw", b1=0.9, b2=0.99, weight_decay=0.0, moments_dtype="bfloat16")
    weights = {"kernel": parameters.Weight((3,), jnp.dtype("float32"), ("norm",), "kernel")}
    optimizer = make_optimizer(c, weights, ShardingRules())
    one, two = np.float32([0.1, -0.2, 0.3]), np.float32([0.5, 0.7, -0.9])
    state = optimizer.init({"kernel": jnp.zeros(3)})
    kept = jax.tree.map(lambda x: x.dtype, state)
    _, state = optimizer.update({"kernel": jnp.asarray(one)}, state, {"kernel": jnp.zeros(3)})
    state = jax.tree.map(lambda x, dtype: x.astype(dtype), state, kept)
    updates, _ = optimizer.update({"kernel": jnp.asarray(two)}, state, {"kernel": jnp.zeros(3)})
    m, v = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (0.1 * one, 0.01 * one**2))
    m, v = 0.9 * m + 0.1 * two, 0.99 * v + 0.01 * two**2
    np.testing.assert_allclose(updates["kernel"], m / 0.19 / np.sqrt(v / (1 - 0.99**2)), rtol=1e-5)
    assert m[0] != np.float32(0.9 * 0.1 * one[0] + 0.1 * two[0])  # the type made a difference


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"moments_dtype": "float16"}, "float32, bfloat16"),
        ({"moments_dtype": "bfloat16", "name": "sgd", "b1": 0.0}, "b1 above 0"),
        ({"offload": True, "name": "sgd", "b1": 0.0}, "offload is True: SGD .* b1 above 0"),
        ({"moments_dtype": "bfloat16", "b2": 0.999}, "b2 0.999: .* by 0.001 .* at most 0.992"),
        ({"moments_dtype": "bfloat16", "b1": 0.999}, "b1 0.999"),
        ({"moments_dtype": "bfloat16", "name": "muon", "muon_momentum": 0.998}, "muon_momentum 0.998"),
        ({"moments_dtype": "bfloat16", "name": "adafactor"}, "from step 431 on.*stochastic_rounding=True"),
        ({"muon_momentum": 1.0}, "muon_momentum is 1.0"),
        *(({field: float("nan")}, f"{field} is nan") for field in ("peak_lr", "epsilon", "weight_decay", "clip_norm")),
        ({"peak_lr": float("inf")}, "peak_lr is inf"),
    ],
)
def test_what_means_nothing_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(C, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "adamw", "b2": 0.999, "stochastic_rounding": True},
        {"name": "adafactor", "stochastic_rounding": True},
        {"name": "adamw", "b2": 0.99},  # the slowest but one that is let through without
    ],
    ids=str,
)
def test_bf16_averages_follow_a_gradient_that_falls(changes):
    """1 for a while, then 0.1: second moments come down from near 1 to near 0.01, as those in f32 do."""
    first, then = 1500, 4500
    c = dataclasses.replace(C, moments_dtype="bfloat16", **changes)
    weights = {"kernel": parameters.Weight((64,), jnp.dtype("float32"), ("norm",), "kernel")}
    params, rounded = {"kernel": jnp.zeros(64)}, stochastic if c.stochastic_rounding else nearest

    def second_moments(c):
        optimizer = make_optimizer(c, weights, ShardingRules())

        def step(n, state):
            _, new = optimizer.update({"kernel": jnp.full(64, jnp.where(n < first, 1.0, 0.1))}, state, params)
            return rounded(new, state, jax.random.key(n))

        state = jax.jit(lambda: jax.lax.fori_loop(0, first + then, step, optimizer.init(params)))()
        of = next(x for path, x in jax.tree_util.tree_leaves_with_path(state) if {"nu", "each"} & set(names(path)))
        return float(of.astype(jnp.float32).mean())

    def names(path):
        return [getattr(key, "name", None) for key in path]

    exact, kept = second_moments(dataclasses.replace(c, moments_dtype="float32")), second_moments(c)
    assert exact < 0.3 and kept == pytest.approx(exact, rel=0.15 if c.stochastic_rounding else 0.7)
