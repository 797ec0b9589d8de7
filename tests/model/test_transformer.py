"""A decoder as a whole: causality, scan and remat, dropout, initialisation, positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.positions import interpolated, rotary
from tests import tiny

CONFIGS = {"gpt": tiny.GPT, "llama": tiny.LLAMA, "nope": dataclasses.replace(tiny.GPT, positions="none")}


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def made(config):
    model = build(config)
    return model, jax.jit(lambda: parameters.init(model, jax.random.key(0)))()


def logits(config, params, ids, **kwargs):
    model = build(config)
    return jax.jit(lambda p, ids: model.apply({"params": p}, ids, **kwargs).logits)(params, ids)


def loss_and_grads(config, params, batch):
    loss = language_model_loss(build(config))
    return jax.jit(jax.value_and_grad(lambda p: loss(p, batch, None).loss))(params)


@pytest.mark.parametrize("name", CONFIGS)
def test_causality_by_gradient(name):
    """No logit depends on a later token: the gradient with respect to later embeddings is exactly zero."""
    config = dataclasses.replace(CONFIGS[name], tied_output=False)
    _, params = made(config)
    ids = jnp.arange(16, dtype=jnp.int32)[None]  # each token once: row v of the table is the token at place v

    @jax.jit
    @jax.grad
    def gradient_of_logit(table, t):
        swapped = {**params, "embedding": {"embedding": table}}
        return jnp.sum(build(config).apply({"params": swapped}, ids).logits[0, t])

    for t in (0, 7, 15):
        gradient = gradient_of_logit(params["embedding"]["embedding"], t)
        touched = np.abs(gradient).sum(axis=1) > 0
        assert touched[: t + 1].all() and not touched[t + 1 :].any()


@pytest.mark.parametrize("name", CONFIGS)
def test_initial_loss_is_log_vocab(name):
    config = dataclasses.replace(CONFIGS[name], vocab_size=512)
    model, params = made(config)
    sums = jax.jit(language_model_loss(model))(params, tiny.batch(rows=16, vocab=512), None)
    assert float(sums.loss / sums.weight) == pytest.approx(np.log(512), abs=0.05)


@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("change", [{"scan_unroll": 0}, {"remat": "dots"}, {"remat": "full"},
                                    {"remat": "full", "scan_unroll": 0}, {"attention_impl": "reference"}])  # fmt: skip
def test_how_xla_runs_it_changes_neither_weights_nor_results(name, change):
    config, changed = CONFIGS[name], dataclasses.replace(CONFIGS[name], **change)
    _, params = made(config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made(changed)[1])
    batch = tiny.batch()
    (loss, grads), (other_loss, other_grads) = (
        loss_and_grads(config, params, batch),
        loss_and_grads(changed, params, batch),
    )
    assert float(other_loss) == pytest.approx(float(loss), rel=1e-6)
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * float(np.abs(theirs).max() + 1e-3))


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_segments_are_separate_texts(name):
    """Two texts in one row, with segments and positions, give the logits of each alone."""
    config = CONFIGS[name]
    _, params = made(config)
    a, b = (np.random.default_rng(i).integers(0, 64, (1, n)).astype(np.int32) for i, n in ((0, 10), (1, 14)))
    packed = logits(
        config,
        params,
        np.concatenate([a, b], axis=1),
        segments_BT=jnp.asarray([[1] * 10 + [2] * 14]),
        positions_BT=jnp.asarray([[*range(10), *range(14)]]),
    )
    np.testing.assert_allclose(packed[:, :10], logits(config, params, a), atol=1e-5)
    np.testing.assert_allclose(packed[:, 10:], logits(config, params, b), atol=1e-5)


def test_without_positions_the_order_of_earlier_tokens_does_not_matter_and_with_them_it_does():
    ids = np.asarray([[3, 9, 27, 5]], np.int32)
    swapped = ids[:, [1, 0, 2, 3]]
    for name, differs in (("nope", False), ("gpt", True), ("llama", True)):
        # One layer: with more, causal masks alone tell positions.
        config = dataclasses.replace(CONFIGS[name], num_layers=1, init_std=0.2)
        _, params = made(config)
        gap = np.abs(logits(config, params, ids)[0, -1] - logits(config, params, swapped)[0, -1]).max()
        assert (gap > 1e-3) == differs, (name, gap)


def test_rotary_scores_depend_on_distance_alone_and_keep_length():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in range(2))
    rotate = rotary(10_000.0, interpolated(1.0))

    def score(m, n):
        return float(jnp.sum(rotate(q, jnp.full((1, 1), m)) * rotate(k, jnp.full((1, 1), n))))

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-3)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
    assert float(jnp.linalg.norm(rotate(q, jnp.full((1, 1), 55)))) == pytest.approx(float(jnp.linalg.norm(q)), rel=1e-5)
    # Pair (0, 4) of an 8-wide head turns by one radian a position.
    turned = rotate(jnp.eye(8)[0].reshape(1, 1, 1, 8), jnp.ones((1, 1), int))[0, 0, 0]
    np.testing.assert_allclose(turned, np.cos(1) * np.eye(8)[0] + np.sin(1) * np.eye(8)[4], atol=1e-6)


def test_initialisation_is_gpt2s():
    config = dataclasses.replace(tiny.GPT, embed_dim=256, vocab_size=512, num_layers=8)
    layers = made(config)[1]["decoder"]["layers"]
    for kernel, std in (
        (layers["attention"]["query"]["kernel"], 0.02),
        (layers["mlp"]["up"]["kernel"], 0.02),
        (layers["attention"]["output"]["kernel"], 0.02 / 4),
        (layers["mlp"]["down"]["kernel"], 0.02 / 4),
    ):
        assert float(kernel.std()) == pytest.approx(std, rel=0.02)
        assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0  # layers differ
    assert not np.any(layers["mlp"]["up"]["bias"])


def test_dropout_is_on_in_training_only_and_differs_by_key_and_layer():
    config = dataclasses.replace(tiny.GPT, dropout=0.5)
    model, params = made(config)
    loss, batch = jax.jit(language_model_loss(model)), tiny.batch()
    plain = loss(params, batch, None).loss
    assert float(plain) == float(jax.jit(language_model_loss(build(tiny.GPT)))(params, batch, None).loss)
    one, again, two = (loss(params, batch, jax.random.key(i)).loss for i in (1, 1, 2))
    assert float(one) == float(again) != float(two)
    assert float(one) != float(plain)


def test_bf16_compute_keeps_f32_weights_and_logits():
    config = dataclasses.replace(tiny.GPT, compute_dtype="bfloat16")
    _, params = made(config)
    out = logits(config, params, np.arange(8, dtype=np.int32)[None])
    assert out.dtype == jnp.float32 and {p.dtype.name for p in jax.tree.leaves(params)} == {"float32"}
    np.testing.assert_allclose(out, logits(tiny.GPT, params, np.arange(8, dtype=np.int32)[None]), atol=0.02)
    text = (
        jax.jit(lambda p, i: build(config).apply({"params": p}, i).logits)
        .lower(params, jnp.zeros((1, 8), int))
        .as_text()
    )
    products = [line for line in text.splitlines() if "dot_general" in line and "bf16" not in line]
    assert not products


def test_token_types_without_a_table_are_refused():
    _, params = made(tiny.GPT)
    ids = jnp.zeros((1, 8), jnp.int32)
    with pytest.raises(ValueError, match="model.token_types is 0"):
        logits(tiny.GPT, params, ids, token_types_BT=ids)
