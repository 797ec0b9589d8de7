"""One update: exact accumulation, clipping, and what happens to a gradient that is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import Sums, language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train import spikes
from train.optimizers import OPTIMIZERS, make_optimizer
from train.state import State, init_state
from train.step import gradients

RULES = ShardingRules()


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def made(**changes):
    c = dataclasses.replace(tiny.OPTIMIZER, **changes)
    model = build(tiny.GPT)
    optimizer = make_optimizer(c, parameters.weights(model), RULES)
    step = tiny.train_step(language_model_loss(model), optimizer, c)
    state = jax.jit(lambda: init_state(model, optimizer, jnp.uint32(0)))()
    return model, jax.jit(step), state


def test_microbatches_1_and_4_give_equal_gradients():
    model, _, state = made()
    batch = tiny.batch()
    assert len({row.sum() for row in batch["weights"]}) > 1  # rows count differently

    def run(microbatches):
        call = jax.jit(lambda p, b: gradients(language_model_loss(model), RULES, p, b, jax.random.key(0), microbatches))
        return call(state.params, batch)

    (one, sums), (four, four_sums) = run(1), run(4)
    assert float(sums.weight) == float(four_sums.weight) == batch["weights"].sum()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max() + 1e-3))


def test_the_loss_is_the_mean_over_predicted_tokens():
    model, step, state = made()
    batch = tiny.batch()
    sums = jax.jit(lambda p: language_model_loss(model)(p, batch, None))(state.params)
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(sums.loss) / batch["weights"].sum(), rel=1e-5)
    assert float(metrics["tokens"]) == batch["weights"].sum()


def test_clipping_scales_the_whole_gradient():
    _, free, state = made(name="sgd", b1=0.0, weight_decay=0.0, clip_norm=0.0, warmup_steps=0, peak_lr=1.0)
    _, clipped, _ = made(name="sgd", b1=0.0, weight_decay=0.0, clip_norm=0.01, warmup_steps=0, peak_lr=1.0)
    (one, metrics), (two, same) = free(state, tiny.batch()), clipped(state, tiny.batch())
    norm = float(metrics["grad_norm"])
    assert norm > 0.01 and norm == pytest.approx(float(same["grad_norm"]), rel=1e-5)
    move = jax.tree.map(lambda a, b: a - b, one.params, state.params)
    small = jax.tree.map(lambda a, b: a - b, two.params, state.params)
    for a, b in zip(jax.tree.leaves(move), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(b, a * (0.01 / norm), atol=2e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_touches_neither_parameters_nor_optimiser(bad):
    _, step, state = made()
    state, _ = step(state, tiny.batch())
    poisoned = tiny.batch(seed=1)
    poisoned["weights"][0, 0] = bad
    after, metrics = step(state, poisoned)
    assert float(metrics["skipped"]) == 1.0 and int(after.step) == 2
    for a, b in zip(
        jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves((after.params, after.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    again, metrics = step(after, tiny.batch(seed=2))
    assert float(metrics["skipped"]) == 0.0 and np.isfinite(float(metrics["loss"]))
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(again.params), strict=True)
    )


def test_a_spike_is_told_as_numpy_tells_it():
    """Row 25. Sample deviation of the last W accepted steps, of loss and norm; from max(20, W/2) of them on."""
    rng, length, sigmas = np.random.default_rng(0), 24, 2.0
    window, accepted, skipped = spikes.empty(length), [], []
    step = jax.jit(lambda w, loss, norm: (spikes.is_spike(w, loss, norm, sigmas), w))
    for number in range(120):
        loss, norm = rng.normal(5, 1), rng.gamma(2.0)
        values = np.float32([loss, norm])
        last = np.float64(accepted[-length:])
        expected = len(accepted) >= 20 and bool((values > last.mean(0) + sigmas * last.std(0, ddof=1)).any())
        spike, window = step(window, *values)
        assert bool(spike) == expected, number
        window = spikes.after(window, *values, ~spike)
        (skipped if expected else accepted).append(values)
    assert len(skipped) > 5 and int(window.accepted) == len(accepted) > 2 * length
    np.testing.assert_array_equal(sorted(map(tuple, window.values.T)), sorted(map(tuple, accepted[-length:])))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_spike_touches_nothing_and_the_step_after_it_counts(microbatches):
    """Row 25. A batch of other targets, on which a network that learned its own by heart has a loss far above."""
    c = dataclasses.replace(tiny.OPTIMIZER, schedule="constant", peak_lr=1e-3)
    model = build(tiny.GPT)
    optimizer = make_optimizer(c, parameters.weights(model), RULES)
    step = jax.jit(tiny.train_step(language_model_loss(model), optimizer, c, microbatches))
    state = jax.jit(lambda: init_state(model, optimizer, jnp.uint32(0), 20))()
    for _ in range(25):
        state, metrics = step(state, tiny.batch())
        assert float(metrics["skipped"]) == float(metrics["spikes"]) == 0
    wild = tiny.batch()
    wild["weights"] = 1 - wild["weights"]
    wild["inputs"] = np.zeros_like(wild["inputs"])
    after, metrics = step(state, wild)
    assert float(metrics["skipped"]) == float(metrics["spikes"]) == 1 and int(after.step) == 26
    for a, b in zip(jax.tree.leaves(state.replace(step=0)), jax.tree.leaves(after.replace(step=0)), strict=True):
        np.testing.assert_array_equal(a, b)
    poisoned = tiny.batch()
    poisoned["weights"][0, 0] = np.nan
    after, metrics = step(after, poisoned)
    assert (float(metrics["skipped"]), float(metrics["spikes"])) == (1, 0)
    assert np.isfinite(after.spikes.values).all()
    again, metrics = step(after, tiny.batch())
    assert float(metrics["skipped"]) == 0 and int(again.spikes.accepted) == 26


def test_a_state_without_a_window_has_no_leaf_for_it():
    _, step, state = made()
    assert (
        state.spikes is None
        and len(jax.tree.leaves(state)) == len(jax.tree.leaves((state.params, state.opt_state))) + 1
    )
    assert "spikes" not in step(state, tiny.batch())[1]


@pytest.mark.parametrize(
    ("window", "sigmas", "steps", "says"),
    [
        (19, 6.0, 1000, "told by 20 accepted steps"),
        (128, 6.0, 64, "after 64 accepted"),
        (128, 0.5, 1000, "every sixth"),
    ],
)
def test_a_window_that_never_skips_or_always_is_refused(window, sigmas, steps, says):
    """Row 25."""
    spikes.check(128, 6.0, 65)
    with pytest.raises(ValueError, match=says):
        spikes.check(window, sigmas, steps)


def test_each_step_and_microbatch_has_a_key_of_its_own():
    """A loss that returns its key's draw shows which keys were used."""

    def loss(params, batch, key):
        return Sums(params["x"] * jax.random.uniform(key), jnp.float32(1))

    def draw(microbatches, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        batch = {"inputs": jnp.zeros((4, 2), jnp.int32)}
        return float(gradients(loss, RULES, {"x": jnp.float32(1)}, batch, key, microbatches)[0]["x"])

    single = {draw(1, step) for step in range(4)}
    assert len(single) == 4
    key = jax.random.key(0)
    expected = sum(float(jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 3), m))) for m in range(2))
    assert draw(2, 3) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_keeps_its_type_step_after_step(name, moments):
    """bf16 parameters, moments as asked."""
    config = dataclasses.replace(tiny.GPT, param_dtype="bfloat16")
    before, after = types(config, name=name, moments_dtype=moments, stochastic_rounding=name == "adafactor")
    assert after == before
    assert {x.name for x in jax.tree.leaves(before.params)} == {"bfloat16"}
    assert {x.name for x in jax.tree.leaves(before.opt_state)} - {"int32"} == {moments}


@pytest.mark.parametrize("microbatches", [1, 4])
def test_bf16_products_leave_weights_moments_and_gradients_in_f32(microbatches):
    config = dataclasses.replace(tiny.GPT, compute_dtype="bfloat16")
    before, after = types(config, microbatches=microbatches)
    assert {x.name for x in jax.tree.leaves((after.params, after.opt_state))} - {"int32"} == {"float32"}
    assert after == before
    model = build(config)
    params = jax.eval_shape(lambda: parameters.init(model, jax.random.key(0)))
    loss, key = language_model_loss(model), jax.random.key(0)
    grads, sums = jax.eval_shape(lambda p, b: gradients(loss, RULES, p, b, key, microbatches), params, tiny.batch())
    assert {x.dtype.name for x in jax.tree.leaves((grads, sums))} == {"float32"}
    text = jax.jit(lambda p, b: loss(p, b, None).loss).lower(params, tiny.batch()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("bf16>, tensor" in line for line in products)


def types(config, *, microbatches=1, **changes):
    """Types of the state before and after a step."""
    c = dataclasses.replace(tiny.OPTIMIZER, **changes)
    model = build(config)
    optimizer = make_optimizer(c, parameters.weights(model), RULES)
    step = tiny.train_step(language_model_loss(model), optimizer, c, microbatches)
    before = jax.eval_shape(lambda: init_state(model, optimizer, jnp.uint32(0)))
    after, _ = jax.eval_shape(step, before, tiny.batch())
    return tuple(jax.tree.map(lambda x: x.dtype, state) for state in (before, after))


def test_rounding_by_chance_differs_from_step_to_step_and_keeps_updates_that_the_nearest_number_loses():
    """Gradient 1, rate 1e-4, weight 1: bf16 has no number between 0.99609375 and 1."""

    def after(steps, stochastic):
        changes = {"name": "sgd", "b1": 0.0, "schedule": "constant", "peak_lr": 1e-4, "warmup_steps": 0}
        changes |= {"weight_decay": 0.0, "clip_norm": 0.0, "stochastic_rounding": stochastic}
        c = dataclasses.replace(tiny.OPTIMIZER, **changes)
        optimizer = make_optimizer(c, WEIGHT, RULES)
        step = tiny.train_step(
            lambda params, batch, key: Sums(jnp.sum(params["kernel"].astype(jnp.float32)), jnp.float32(1)), optimizer, c
        )
        params = {"kernel": jnp.ones(WEIGHT["kernel"].shape, jnp.bfloat16)}
        state = State(jnp.int32(0), params, optimizer.init(params))
        return jax.lax.fori_loop(0, steps, lambda i, s: step(s, {})[0], state).params["kernel"].astype(jnp.float32)

    assert (after(50, False) == 1).all()
    moved = after(50, True)
    # 50 updates of 1e-4, each a step of 2^-8 with probability 0.0256: a mean over 4096 weights has a deviation of 7e-5.
    assert abs(float(moved.mean()) - 0.995) < 4e-4
    assert len(np.unique(moved)) > 3
    first, second = after(1, True), after(2, True)
    assert ((first == 1) & (second < 1)).any()


WEIGHT = {"kernel": parameters.Weight((4096,), jnp.dtype("bfloat16"), ("norm",), "kernel")}
