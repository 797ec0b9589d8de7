"""The loss in parts of the tokens: value and gradients of the whole, with less memory, on any mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train.mesh import MeshConfig, batch_sharding, make_mesh, place_batch

GPT, LLAMA = (dataclasses.replace(config, num_layers=1) for config in (tiny.GPT, tiny.LLAMA))
CASES = {
    "tied": dataclasses.replace(GPT, scale_output=True, logits_softcap=2.0),
    "untied": LLAMA,
    "masked_lm": dataclasses.replace(GPT, architecture="encoder", head="masked_lm", dropout=0.3),
}
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}


@functools.cache
def value_and_gradients(config, chunks, mesh=None):
    """Loss of the tokens in training and in evaluation, and the gradients of a multiple of it."""
    rules, mesh = ShardingRules(), mesh or tiny.mesh()
    with jax.set_mesh(mesh):
        model = build(config, rules)
        shardings = parameters.shardings(parameters.weights(model), rules, mesh)
        params = jax.jit(lambda: parameters.init(model, jax.random.key(0)), out_shardings=shardings)()
        placed = place_batch(tiny.batch(length=28), batch_sharding(mesh, rules))
        loss_fn = language_model_loss(model, rules, chunks=chunks, **OPTIONS)

        def run(params, batch):
            def total(params):
                sums = loss_fn(params, batch, jax.random.key(3))
                return 3 * sums.loss, sums

            gradients, sums = jax.grad(total, has_aux=True)(params)
            return sums, gradients, loss_fn(params, batch, None)

        return jax.device_get(jax.jit(run)(params, placed))


def assert_equal(ours, theirs, tolerance=1e-6):
    (sums, gradients, evaluated), (their_sums, their_gradients, their_evaluated) = ours, theirs
    assert float(sums.loss) == pytest.approx(float(their_sums.loss), rel=tolerance)
    assert float(evaluated.loss) == pytest.approx(float(their_evaluated.loss), rel=tolerance)
    assert sums.weight == their_sums.weight
    largest = max(np.abs(g).max() for g in jax.tree.leaves(their_gradients))
    for name, gradient in parameters.named_leaves(gradients).items():
        other = parameters.named_leaves(their_gradients)[name]
        assert gradient.dtype == other.dtype
        np.testing.assert_allclose(gradient, other, rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_parts_gives_the_whole(case):
    chunks = 7 if case == "untied" else 4
    assert_equal(value_and_gradients(CASES[case], chunks), value_and_gradients(CASES[case], 1), 1e-6)


def test_bfloat16_rounds_no_worse_than_the_whole():
    """Both against f32: parts add up in f32, so their gradients are as near."""
    bfloat16 = dataclasses.replace(CASES["tied"], compute_dtype="bfloat16")
    exact, whole, parts = (
        value_and_gradients(config, chunks)[1]["embedding"]["embedding"]
        for config, chunks in ((CASES["tied"], 1), (bfloat16, 1), (bfloat16, 4))
    )
    assert parts.dtype == jnp.float32
    assert np.abs(parts - exact).max() < 1.5 * np.abs(whole - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(("case", "sizes"), [("tied", (1, 2, 2, 1, 1)), ("untied", (2, 1, 1, 2, 1))])
def test_a_mesh_changes_nothing(case, sizes):
    """data, fsdp, tensor, context, expert."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    assert_equal(value_and_gradients(CASES[case], 7, mesh), value_and_gradients(CASES[case], 1), 1e-5)


def test_logits_are_never_whole():
    """The largest array of the step goes: temporary memory falls by more than half of the logits in f32."""
    config = dataclasses.replace(GPT, vocab_size=4096)
    batch = tiny.batch(rows=8, length=32, vocab=4096)
    temporary, shapes = {}, {}
    with jax.set_mesh(tiny.mesh()):
        model = build(config)
        params = jax.eval_shape(lambda: parameters.init(model, jax.random.key(0)))
        for chunks in (1, 4):
            loss_fn = language_model_loss(model, chunks=chunks)
            step = jax.grad(lambda params, loss_fn=loss_fn: loss_fn(params, batch, jax.random.key(0)).loss)
            compiled = jax.jit(step).lower(params).compile(compiler_options={"xla_backend_optimization_level": 3})
            temporary[chunks] = compiled.memory_analysis().temp_size_in_bytes
            shapes[chunks] = compiled.as_text()
    logits = 8 * 32 * 4096 * 4
    assert temporary[1] > logits and temporary[4] < temporary[1] - logits / 2, temporary
    assert "f32[8,32,4096]" in shapes[1] or "f32[256,4096]" in shapes[1]
    assert "f32[8,32,4096]" not in shapes[4] and "f32[256,4096]" not in shapes[4]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"loss_chunks is 3: a device has 28 tokens of a row, use one of 1, 2, 4, 7, 14"
    ):
        value_and_gradients(GPT, 3)
    labelled = dataclasses.replace(GPT, architecture="encoder", head="classification", num_labels=3)
    batch = tiny.batch(length=28) | {"targets": np.zeros(8, np.int32), "weights": np.ones(8, np.float32)}
    with jax.set_mesh(tiny.mesh()), pytest.raises(ValueError, match=r"cuts tokens, \(8, 28\), but .* \(8,\): use 1"):
        model = build(labelled)
        params = jax.eval_shape(lambda: parameters.init(model, jax.random.key(0)))
        jax.eval_shape(lambda params: language_model_loss(model, chunks=2)(params, batch, None), params)
