"""Experts: a slow loop over tokens says what each form must give, and what it must drop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.attention import Context
from model.build import build
from model.config import ModelConfig, flops_per_sequence
from model.decoding import empty_cache
from model.losses import language_model_loss
from model.mask import MaskSpec
from model.mlp import MLP, gelu_tanh
from model.moe import MoE
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

B, T, D, F, E = 3, 8, 4, 6, 5
NORMAL = jax.nn.initializers.normal(1.0)
GPT = dataclasses.replace(tiny.GPT, experts=4, init_std=0.3)


def layer(k: int, capacity_factor: float, *, gated: bool = True, bias: bool = True, experts: int = E) -> MoE:
    return MoE(
        D, F, gelu_tanh, gated, NORMAL, NORMAL, ShardingRules(), bias, "float32",
        experts, k, capacity_factor, 0.01, 0.001,
    )  # fmt: skip


def drawn(module, seed=0):
    """Parameters of a module, biases included, and rows of which the last has 3 tokens of padding in front."""
    rng = np.random.default_rng(seed)
    x_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
    segments_BT = np.ones((B, T), np.int32)
    segments_BT[-1, :3] = 0
    context = Context(
        jnp.zeros((B, T), jnp.int32), MaskSpec(True, query_segments_BT=jnp.asarray(segments_BT)), train=True
    )
    shapes = jax.eval_shape(lambda: parameters.nn.unbox(module.init(jax.random.key(0), x_BTD, context)))
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return params, x_BTD, context


def slow(params, x_BTD, valid_BT, k, capacity):
    """The definition in float64, token by token: y_BTD, load_BE, dropped_B, balance_B and z_B."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    experts = p["up"]["kernel"].shape[0]
    y_BTD, load_BE, dropped_B = np.zeros(x_BTD.shape), np.zeros((B, experts)), np.zeros(B)
    balance_B, z_B = np.zeros(B), np.zeros(B)

    def linear(name, e, x):
        return x @ p[name]["kernel"][e] + (p[name]["bias"][e] if "bias" in p[name] else 0)

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    for b in range(B):
        taken, mean, tokens = np.zeros(experts), np.zeros(experts), 0
        for t in range(T):
            if not valid_BT[b, t]:
                continue
            x = x_BTD[b, t].astype(np.float64)
            logits = x @ p["router"]["kernel"]
            probs = np.exp(logits - logits.max())
            z_B[b] += (logits.max() + np.log(probs.sum())) ** 2
            probs /= probs.sum()
            mean, tokens = mean + probs, tokens + 1
            best = np.argsort(-probs, kind="stable")[:k]
            share = probs[best] / probs[best].sum() if k > 1 else probs[best]
            for e, weight in zip(best, share, strict=True):
                load_BE[b, e] += 1
                if taken[e] == capacity:
                    dropped_B[b] += 1
                    continue
                taken[e] += 1
                h = gelu(linear("gate", e, x)) * linear("up", e, x) if "gate" in p else gelu(linear("up", e, x))
                y_BTD[b, t] += weight * linear("down", e, h)
        balance_B[b] = experts * np.sum(load_BE[b] / load_BE[b].sum() * mean / tokens)
        z_B[b] /= tokens
    return y_BTD, load_BE, dropped_B, balance_B, z_B


CASES = {
    "one of five": (1, 0.0, 99, {}),
    "two of five": (2, 0.0, 99, {"gated": False}),
    "all": (5, 0.0, 99, {"bias": False}),
    "one, capacity 2": (1, 1.25, 2, {"bias": False}),
    "two, capacity 4": (2, 1.0, 4, {}),
    "three, capacity 3": (3, 0.5, 3, {"gated": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_over_tokens_gives_the_same(name):
    k, factor, capacity, options = CASES[name]
    module = layer(k, factor, **options)
    with jax.set_mesh(tiny.mesh()):
        params, x_BTD, context = drawn(module)
        y_BTD, routing = jax.jit(module.apply)(params, x_BTD, context)
    valid_BT = np.asarray(context.mask.query_segments_BT) != 0
    expected_BTD, load_BE, dropped_B, balance_B, z_B = slow(params, x_BTD, valid_BT, k, capacity)
    np.testing.assert_allclose(y_BTD[valid_BT], expected_BTD[valid_BT], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(routing.load_BE, load_BE)
    np.testing.assert_array_equal(routing.dropped_B, dropped_B)
    assert (dropped_B.sum() > 0) == (factor > 0)
    np.testing.assert_allclose(routing.load_balance_B, balance_B, rtol=1e-5)
    np.testing.assert_allclose(routing.router_z_B, z_B, rtol=1e-5)
    np.testing.assert_allclose(routing.added_B, 0.01 * balance_B + 0.001 * z_B, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_one_expert_is_the_dense_mlp(factor):
    module = layer(1, factor, experts=1)
    dense = MLP(D, F, gelu_tanh, True, NORMAL, NORMAL, ShardingRules(), True)
    with jax.set_mesh(tiny.mesh()):
        params, x_BTD, context = drawn(module)
        y_BTD, _ = jax.jit(module.apply)(params, x_BTD, context)
        alone = {name: jax.tree.map(lambda w: w[0], params["params"][name]) for name in ("gate", "up", "down")}
        expected_BTD, _ = jax.jit(dense.apply)({"params": alone}, x_BTD, context)
    valid_BT = np.asarray(context.mask.query_segments_BT) != 0
    np.testing.assert_allclose(y_BTD[valid_BT], expected_BTD[valid_BT], rtol=1e-6, atol=1e-5)


def test_gradients_of_both_forms_agree():
    """Where no expert is full, the capacity form, by autodiff of einsums, gives what the blocks of the other give."""
    with jax.set_mesh(tiny.mesh()):
        params, x_BTD, context = drawn(layer(2, 0.0))

        def gradients(module):
            def total(params, x_BTD):
                y_BTD, routing = module.apply(params, x_BTD, context)
                return jnp.sum(jnp.sin(y_BTD)) + jnp.sum(routing.added_B)

            return jax.jit(jax.grad(total, (0, 1)))(params, x_BTD)

        grads = [gradients(layer(2, factor)) for factor in (0.0, float(E))]
    for dropless, limited in zip(*map(jax.tree.leaves, grads), strict=True):
        assert np.any(limited)
        np.testing.assert_allclose(dropless, limited, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_nobody_looks_ahead(factor):
    """In training too: the tokens behind another one never take its place."""
    config = dataclasses.replace(GPT, capacity_factor=factor)
    ids_BT = tiny.batch(rows=4)["inputs"]
    changed_BT = ids_BT.copy()
    changed_BT[:, 20:] = (changed_BT[:, 20:] + 7) % 64
    with jax.set_mesh(tiny.mesh()):
        model = build(config)
        params = parameters.init(model, jax.random.key(0))
        run = jax.jit(lambda ids_BT: apply(model, params, ids_BT, train=True))
        before, after = run(ids_BT), run(changed_BT)
    np.testing.assert_allclose(before.logits[:, :20], after.logits[:, :20], atol=1e-6)
    assert not np.allclose(before.logits[:, 20:], after.logits[:, 20:], atol=1e-3)
    assert (np.sum(before.routing.dropped_B) > 0) == (factor > 0)


@pytest.mark.parametrize("stacked", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_cache_changes_nothing(stacked):
    """Token by token behind left-padded prompts gives the logits of the whole text: capacity drops none of them."""
    rules, ids_BT = ShardingRules(), tiny.batch(rows=2, length=12)["inputs"]
    config = dataclasses.replace(GPT, capacity_factor=0.25)
    with jax.set_mesh(tiny.mesh()):
        model = build(config, rules)
        params = parameters.init(model, jax.random.key(0))
        whole = jax.jit(lambda ids_BT: apply(model, params, ids_BT))(ids_BT).logits
        stepped = model if stacked else build(config, rules, stacked=False)
        weights = params if stacked else parameters.unstack(params)
        cache = empty_cache(config, rules, 2, 16)
        step = jax.jit(lambda ids_BT, cache: apply(stepped, weights, ids_BT, cache=cache))
        output = step(ids_BT[:, :8], cache)
        np.testing.assert_allclose(output.logits, whole[:, :8], atol=1e-5)
        for t in range(8, 12):
            output = step(ids_BT[:, t : t + 1], output.cache)
            np.testing.assert_allclose(output.logits[:, 0], whole[:, t], atol=1e-5)
    assert output.routing.load_BE.shape == (2, 2, 4)


@pytest.mark.slow
def test_an_encoder_decoder_reports_both_stacks():
    config = dataclasses.replace(GPT, architecture="encoder_decoder", num_encoder_layers=1, remat="full")
    batch = {**tiny.batch(rows=2, length=8), "source": tiny.batch(rows=2, length=6, seed=1)["inputs"]}
    batch["source_segments"] = np.ones((2, 6), np.int32)
    batch["source_segments"][1, 4:] = 0
    batch = jax.tree.map(jnp.asarray, batch)
    with jax.set_mesh(tiny.mesh()):
        model = build(config)
        params = parameters.init(model, jax.random.key(0))
        loss = language_model_loss(model)
        trained = jax.jit(lambda key: loss(params, batch, key))(jax.random.key(1))
        evaluated = jax.jit(lambda: loss(params, batch, None))()
    # Each token has two choices; the encoder's layer stands first and its padding counts in nothing.
    np.testing.assert_array_equal(jnp.sum(trained.routing.load_LE, axis=1), [2 * 10, 2 * 16, 2 * 16])
    assert trained.objective > trained.loss
    assert evaluated.routing is None and evaluated.objective == evaluated.loss


def test_the_router_is_exact_in_bf16():
    """Its product is in f32, with no rounding to bf16 on the way as TPUs do by default."""
    config = dataclasses.replace(GPT, compute_dtype="bfloat16")
    with jax.set_mesh(tiny.mesh()):
        model = build(config)
        params = parameters.init(model, jax.random.key(0))
        text = jax.jit(lambda ids: apply(model, params, ids).logits).lower(tiny.batch()["inputs"]).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "tensor<32x4x" in line]
    assert len(products) == 1 and "[HIGHEST, HIGHEST]" in products[0] and "bf16" not in products[0]


WRONG = {
    "experts=-1": (dict(experts=-1), "experts is -1: it must be at least 1, or 0"),
    "k": (dict(experts=4, experts_per_token=5), "experts_per_token is 5: use 1 to 4"),
    "none": (dict(experts=4, experts_per_token=0), "experts_per_token is 0: use 1 to 4"),
    "rnn": (dict(architecture="rnn", experts=4), "'rnn' has none"),
    "factor": (dict(experts=4, capacity_factor=-1.0), "capacity_factor is -1.0"),
    "nan": (dict(experts=4, router_z_loss=float("nan")), "router_z_loss is nan"),
    "width": (dict(experts=4, base_width=64), "base_width is 64: it says nothing about experts"),
    "dense": (dict(capacity_factor=2.0), "capacity_factor is 2.0, but model.experts is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_means_nothing_is_refused(name):
    values, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_work_counts_the_experts_that_a_token_takes():
    config = dataclasses.replace(tiny.LLAMA, experts=8, experts_per_token=2)
    extra = flops_per_sequence(config, 10) - flops_per_sequence(tiny.LLAMA, 10)
    one, router = 3 * 32 * 64, 32 * 8
    assert extra == 6 * 10 * 2 * (one + router)  # 10 tokens, 2 layers
