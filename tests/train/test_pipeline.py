"""A pipeline of stages computes what one device does: loss, gradients, evaluation, decoding; and who talks to whom."""

import dataclasses
import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.plan.collectives import collectives
from model import kernels, parameters
from model.build import build
from model.decoding import empty_cache
from model.losses import language_model_loss
from model.pipeline import count_microbatches
from model.sharding import PRESETS, ShardingRules
from model.transformer import Transformer, apply
from tests import tiny
from train.mesh import batch_sharding, place_batch

RULES = ShardingRules()
# Weights far from 0: where attention is flat, its gradients are as small as what they may be wrong by.
GPT = dataclasses.replace(tiny.GPT, num_layers=4, init_std=0.3)
LLAMA = dataclasses.replace(
    tiny.LLAMA, num_layers=4, init_std=0.3, remat="full", scan_unroll=3, pipeline_microbatches=2
)
ALIBI = dataclasses.replace(GPT, positions="alibi", window=8)
BERT = dataclasses.replace(GPT, architecture="encoder", head="masked_lm", norm_placement="post")
EXPERTS = dataclasses.replace(GPT, experts=4)
T5 = dataclasses.replace(
    GPT, architecture="encoder_decoder", num_layers=2, num_encoder_layers=4, positions="relative", norm="rms",
    bias="none", relative_max_distance=20,
)  # fmt: skip


def batch(*features):
    """A batch with random features: packed segments, positions, a prefix, a source."""
    rng = np.random.default_rng(1)
    ids = functools.partial(rng.integers, size=(8, 32), dtype=np.int32)
    segments = np.sort(ids(0, 3), axis=1)
    made = {
        "segments": segments,
        "positions": ids(0, 32),
        "prefix": ids(0, 2),
        "source": ids(0, 64),
        "source_segments": segments,
    }
    return tiny.batch() | {name: made[name] for name in features}


def gradients(config, axes, rows, rules=RULES):
    """Loss, gradients and the compiled program that gives them, on a mesh."""
    mesh = tiny.mesh(**axes)
    with jax.set_mesh(mesh):
        model, placed = build(config, rules), batch_sharding(mesh, rules)
        params, rows = tiny.start(config, mesh, rules), place_batch(rows, placed)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        loss_fn = language_model_loss(model, rules)

        def loss(params, rows):
            return loss_fn(params, rows, jax.random.key(0)).loss

        jitted = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, placed), out_shardings=(None, shardings))
        compiled = jitted.lower(params, rows).compile()
        return *jax.device_get(compiled(params, rows)), compiled


@functools.cache
def gpt_on_four_stages():
    return gradients(GPT, {"stage": 4}, batch())


def check_same(result, one):
    np.testing.assert_allclose(result[0], one[0], rtol=1e-6)
    named = parameters.named_leaves(one[1])
    for name, ours in parameters.named_leaves(result[1]).items():
        atol = 5e-5 * np.abs(named[name]).max() + 2e-5  # of sums over 180 tokens; that of the bias of keys is 0
        np.testing.assert_allclose(ours, named[name], atol=atol, rtol=0, err_msg=name)


def test_loss_and_gradients_on_four_stages_are_those_of_one_device():
    check_same(gpt_on_four_stages(), gradients(GPT, {}, batch()))


CASES = {
    "llama_packed_remat": (LLAMA, {"stage": 2, "data": 2}, ("segments", "positions")),
    "alibi_prefix": (ALIBI, {"stage": 2, "fsdp": 2}, ("segments", "prefix")),
    "bert": (BERT, {"stage": 2, "fsdp": 2, "tensor": 2}, ("segments",)),
    "t5": (T5, {"stage": 2, "tensor": 2}, ("segments", "source", "source_segments")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "llama_packed_remat")) for name in CASES]
)
def test_loss_and_gradients_are_those_of_one_device(name):
    config, axes, features = CASES[name]
    rows = batch(*features)
    check_same(gradients(config, axes, rows), gradients(config, {}, rows))


def test_who_talks_to_whom():
    """Microbatches go from stage to stage; weights of layers stay where they are, and each device has its part."""
    mesh = tiny.mesh(stage=4)
    found = collectives(str(gpt_on_four_stages()[2].as_text()), mesh)
    permutes = [c for c in found if c.kind == "collective-permute"]
    ticks = 8 + 4 - 1
    # Forward and backward: a microbatch up to the next stage, and one down; with positions forward only.
    assert {c.axes for c in permutes} == {("stage",)} and {c.times for c in permutes} == {ticks}
    states = [c for c in permutes if c.bytes == 1 * 32 * 32 * 4]
    assert len(states) == 4
    assert not [c for c in found if c.kind in ("all-gather", "all-to-all") and c.bytes > 8 * 32 * 4]
    weights = parameters.weights(build(GPT, RULES))
    shardings = parameters.shardings(weights, RULES, mesh)
    shares = jax.tree.map(lambda w, s: w.size / math.prod(s.shard_shape(w.shape)), weights, shardings)
    assert set(jax.tree.leaves(shares["decoder"]["layers"])) == {4}


def test_evaluation_is_that_of_one_device():
    """Without a key: nothing is dropped."""
    dropping = dataclasses.replace(GPT, dropout=0.5)

    def loss(axes):
        mesh = tiny.mesh(**axes)
        with jax.set_mesh(mesh):
            model, placed = build(dropping, RULES), batch_sharding(mesh, RULES)
            loss_fn = language_model_loss(model, RULES)
            call = jax.jit(lambda params, rows: loss_fn(params, rows, None).loss)
            return float(call(tiny.start(dropping, mesh), place_batch(batch("segments"), placed)))

    assert loss({"stage": 2, "fsdp": 2}) == pytest.approx(loss({}), rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [GPT, pytest.param(T5, marks=pytest.mark.slow), pytest.param(EXPERTS, marks=pytest.mark.slow)],
    ids=["gpt", "t5", "experts"],
)
def test_decoding_with_a_cache_is_that_of_one_device(config):
    """Two calls, the second with the cache that the first left."""
    model, rows = build(config, RULES), tiny.batch(rows=4, length=9)["inputs"]
    more = {"source_BS": rows[:, ::-1]} if config is T5 else {}

    def logits(params, rows, more):
        cache = empty_cache(config, RULES, len(rows), 12, 9 if more else 0)
        first = apply(model, params, rows[:, :8], cache=cache, **more)
        return apply(model, params, rows[:, 8:], cache=first.cache).logits

    results = []
    for axes in ({}, {"stage": 2, "tensor": 2}):
        mesh = tiny.mesh(**axes)
        with jax.set_mesh(mesh):
            results.append(jax.device_get(jax.jit(logits)(tiny.start(config, mesh), rows, more)))
    assert results[0].std() > 0.1
    np.testing.assert_allclose(results[1], results[0], atol=1e-5 * np.abs(results[0]).max())


def test_dropout_differs_by_microbatch_and_follows_the_key():
    config = dataclasses.replace(GPT, dropout=0.2)
    same_rows = {name: np.repeat(rows[:1], 8, axis=0) for name, rows in batch().items()}
    mesh, rules = tiny.mesh(stage=2), RULES
    with jax.set_mesh(mesh):
        model = cast(Transformer, build(config, rules))
        # The embeddings of the whole batch are dropped outside of the pipeline: here nothing of them is.
        model = model.clone(stack=functools.partial(model.stack, dropout=0.0))
        params = jax.jit(lambda: parameters.init(model, jax.random.key(0)))()

        @jax.jit
        def hidden(params, ids, key):
            return apply(model, params, ids, train=True, rngs={"dropout": key}).hidden_BTD

        a, again, b = (hidden(params, same_rows["inputs"], jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert float(jnp.max(jnp.abs(a - b))) > 0.1
    apart = jnp.abs(a[:, None] - a[None]).max((2, 3)) + jnp.eye(8)
    assert float(apart.min()) > 0.1  # no two rows saw the same masks


@pytest.mark.slow
def test_a_stage_may_use_a_kernel(monkeypatch):
    """On the rows of its microbatches, which the stages do not cut."""
    shapes = []

    def interpreted(q_BHTK, *args):
        shapes.append(q_BHTK.shape)
        return kernels.splash(q_BHTK, *args, interpret=True)

    monkeypatch.setitem(kernels.KERNELS, "splash", interpreted)
    config = dataclasses.replace(LLAMA, num_layers=2, scan_unroll=1, max_length=128, head_dim=64)
    rows = tiny.batch(length=128) | {"segments": np.repeat(batch("segments")["segments"], 4, axis=1)}
    one = gradients(config, {}, rows)
    check_same(gradients(dataclasses.replace(config, attention_impl="splash"), {"stage": 2, "data": 2}, rows), one)
    assert set(shapes) == {(4, 4, 128, 64)}  # two microbatches


@pytest.mark.slow
def test_without_stages_the_axis_is_one_more_for_the_batch():
    rules = dataclasses.replace(RULES, layers=None)
    config = dataclasses.replace(GPT, num_layers=3)
    check_same(gradients(config, {"stage": 2}, batch(), rules=rules), gradients(config, {}, batch()))


@pytest.mark.parametrize(
    ("rows", "axes", "asked", "expected"),
    [(64, {"stage": 2}, 0, 8), (12, {"stage": 2}, 0, 6), (16, {"stage": 4, "data": 2}, 0, 8), (8, {"stage": 2}, 2, 2)],
)
def test_number_of_microbatches(rows, axes, asked, expected):
    assert count_microbatches(rows, dict(tiny.mesh(**axes).shape), RULES, asked) == expected


@pytest.mark.parametrize(
    ("rows", "axes", "asked", "says"),
    [
        (16, {"stage": 4}, 6, "6 is not a multiple of the 4 stages of the mesh: use 4 or 8"),
        (12, {"stage": 2, "data": 2}, 4, "12 rows is not divisible into 4 pipeline microbatches on 2.*use 8 or 16"),
        (6, {"stage": 4}, 0, "6 rows is not divisible into 4 pipeline microbatches.*use 4 or 8"),
    ],
)
def test_batches_that_the_stages_cannot_share(rows, axes, asked, says):
    with pytest.raises(ValueError, match=says):
        count_microbatches(rows, dict(tiny.mesh(**axes).shape), RULES, asked)


def test_layers_that_the_stages_cannot_share():
    weights = parameters.weights(build(dataclasses.replace(GPT, num_layers=3)))
    with pytest.raises(ValueError, match=r"'layers' dimension 3 is not divisible by 2.*'stage'.*to 2 or 4"):
        parameters.shardings(weights, RULES, tiny.mesh(stage=2))
    with pytest.raises(ValueError, match="layers lie along 'stage'"):
        ShardingRules(layers="fsdp")
    assert {rules.layers for rules in PRESETS.values()} == {"stage"}
