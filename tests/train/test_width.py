"""muP: the standard network at the base width; away from it, updates that do the same at any width."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny
from train.optimizers import make_optimizer

RULES = ShardingRules()
BASE = 32
C = dataclasses.replace(tiny.OPTIMIZER, weight_decay=0.0)


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(tiny.mesh()):
        yield


def wide(width, base, **changes):
    """Wider by more heads."""
    return dataclasses.replace(tiny.GPT, embed_dim=width, num_heads=width // 8, base_width=base, **changes)


def logits(config, steps, rate=1e-2):
    """Of a batch, before and after some steps."""
    model, batch = build(config), tiny.batch()
    optimizer = make_optimizer(C, parameters.weights(model), RULES, config.base_width)
    params = parameters.init(model, jax.random.key(0))
    loss = language_model_loss(model)

    def step(_, carry):
        params, state = carry
        grads = jax.grad(lambda p: loss(p, batch, None).loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    @jax.jit
    def run(params):
        trained, _ = jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
        return tuple(apply(model, p, batch["inputs"]).logits for p in (params, trained))

    return run(params)


def test_at_the_base_width_nothing_differs():
    for one, same in zip(logits(wide(BASE, 0), 3), logits(wide(BASE, BASE, base_head_dim=8), 3), strict=True):
        np.testing.assert_array_equal(one, same)


def test_what_a_few_steps_change_grows_with_the_width_only_without_it():
    """The coordinate check (Yang et al. 2022, appendix D.1): root mean square of the change of the logits."""

    def power(base):
        pairs = [logits(wide(width, base, num_layers=1), 3) for width in (BASE, 8 * BASE)]
        narrow, broad = (float(jnp.sqrt(jnp.mean((after - before) ** 2))) for before, after in pairs)
        return np.log(broad / narrow) / np.log(8)  # of the width

    assert power(0) > 0.6
    assert abs(power(BASE)) < 0.25  # what is left: the logits of the start fall with the width


def test_rates_initial_weights_and_output_by_hand():
    config = wide(4 * BASE, BASE, tied_output=False, bias="all")
    model = build(config)
    weights = parameters.weights(model)
    params = parameters.init(model, jax.random.key(0))
    optimizer = make_optimizer(C, weights, RULES, BASE)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(ones), params)
    moves = {name: float(u.ravel()[0]) for name, u in parameters.named_leaves(updates).items()}
    spread = {name: float(jnp.std(p)) for name, p in parameters.named_leaves(params).items()}
    for name in moves:
        hidden = "/layers/" in name and name.endswith("kernel")
        assert moves[name] == pytest.approx(0.25 if hidden else 1.0, rel=1e-5), name
    layers = "decoder/layers"
    for name in (f"{layers}/attention/query/kernel", f"{layers}/mlp/up/kernel"):
        assert spread[name] == pytest.approx(0.02 / 2, rel=0.05)
    for name in (f"{layers}/attention/output/kernel", f"{layers}/mlp/down/kernel"):
        assert spread[name] == pytest.approx(0.02 / 2 / 2, rel=0.05)  # two layers: sqrt(4) smaller
    for name in ("embedding/embedding", "head/output/kernel"):
        assert spread[name] == pytest.approx(0.02, rel=0.05)
    plain = build(dataclasses.replace(config, base_width=0))
    ids = tiny.batch()["inputs"]
    expected = apply(plain, params, ids).logits / 4
    np.testing.assert_allclose(apply(model, params, ids).logits, expected, atol=1e-6)


def test_scores_fall_as_one_over_the_head_size():
    """Heads of 32 from a base of 8: 1 / sqrt(8) * 8 / 32, where the standard has 1 / sqrt(32)."""
    given = wide(BASE, BASE, head_dim=32)
    ours = dataclasses.replace(given, base_head_dim=8)
    by_hand = dataclasses.replace(given, attention_scale=8**-0.5 * 8 / 32)
    (a, _), (b, _), (c, _) = (logits(config, 0) for config in (ours, by_hand, given))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(jnp.abs(a - c).max()) > 1e-5


def test_decay_does_not_depend_on_the_width():
    config = wide(4 * BASE, BASE)
    weights = parameters.weights(build(config))
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape), weights)
    ones = jax.tree.map(jnp.ones_like, zeros)
    optimizer = make_optimizer(dataclasses.replace(C, weight_decay=0.5), weights, RULES, BASE)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    assert {float(u.ravel()[0]) for u in jax.tree.leaves(updates)} == {0.0, 0.5}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_width": -1}, "must not be negative"),
        ({"base_head_dim": 8}, "base_width is 0"),
        ({"base_width": 32, "base_head_dim": 8, "attention_scale": 1.0}, "attention_scale 1.0"),
        ({"base_width": 32, "init_scheme": "t5"}, "'t5'"),
        ({"base_width": 32, "architecture": "lstm"}, "'lstm'"),
        ({"base_width": 32, "architecture": "encoder", "head": "masked_lm"}, "'masked_lm'"),
        ({"base_width": 32, "scale_output": True}, "scale_output"),
        ({"base_width": 12, "embed_dim": 32, "mlp_dim": 100}, "mlp_dim is 100 .* would be 37.5"),
        ({"base_width": 16, "embed_dim": 64, "num_heads": 2}, "head_dim is 64 .* would be 16, .* multiple of 32"),
    ],
)
def test_what_does_not_go_together(changes, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(tiny.GPT, **changes)


@pytest.mark.parametrize("name", ["muon", "sgd", "adafactor"])
def test_other_optimisers_have_other_rates(name):
    with pytest.raises(ValueError, match=f"{name!r}.*adamw and lion"):
        make_optimizer(dataclasses.replace(C, name=name), parameters.weights(build(wide(64, BASE))), RULES, BASE)
