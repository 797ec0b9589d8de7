"""The losses: nats of the target against other formulas, what a batch may hold, sums and not means."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.layers import Linear
from model.losses import cross_entropy, language_model_loss, span_loss
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

SPAN = dataclasses.replace(tiny.GPT, architecture="encoder", head="span")


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def drawn(shape=(2, 5), classes=11):
    """Logits, targets and weights of the sum."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(*shape, classes)) * 5, rng.integers(0, classes, shape), rng.normal(size=shape)


def value_and_gradient(logits, targets, weights, **options):
    def total(x):
        nats = cross_entropy(x, jnp.asarray(targets), **options)
        return jnp.sum(weights * nats), nats

    gradient, nats = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(logits))
    return nats, gradient


def made(config):
    """A network and its weights, so far from 0 that its logits differ."""
    model = build(config)
    with jax.set_mesh(tiny.mesh()):
        params = jax.device_get(jax.jit(lambda: parameters.init(model, jax.random.key(0)))())
    return model, jax.tree.map(lambda p: 5 * p, params)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


@pytest.fixture(scope="module")
def gpt():
    return made(tiny.GPT)


@pytest.mark.parametrize("sharded_vocab", [False, True])
def test_cross_entropy_and_its_gradient_are_the_textbooks(sharded_vocab):
    entropy = functools.partial(cross_entropy, sharded_vocab=sharded_vocab)
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 5, 11)) * 5, rng.integers(0, 11, (2, 5))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(entropy(jnp.asarray(logits), jnp.asarray(targets)), expected, rtol=1e-5)
    weight = rng.normal(size=(2, 5))
    gradient = jax.grad(lambda x: jnp.sum(weight * entropy(x, jnp.asarray(targets))))(jnp.asarray(logits))
    one_hot = np.eye(11)[targets]
    np.testing.assert_allclose(gradient, weight[..., None] * (p - one_hot), atol=1e-5)


def test_large_logits_stay_finite():
    nats = cross_entropy(jnp.asarray([[[1e4, -1e4, 0.0]]]), jnp.asarray([[1]]))
    np.testing.assert_allclose(nats, [[2e4]])


@pytest.mark.parametrize("sharded_vocab", [False, True])
@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_label_smoothing_is_that_of_torch(smoothing, sharded_vocab):
    torch = pytest.importorskip("torch")
    logits, targets, weights = drawn()
    nats, gradient = value_and_gradient(
        logits, targets, weights, label_smoothing=smoothing, sharded_vocab=sharded_vocab
    )
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs.transpose(1, 2), torch.tensor(targets), label_smoothing=smoothing, reduction="none"
    )
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(nats, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-5)


@pytest.mark.parametrize("sharded_vocab", [False, True])
def test_smoothing_and_z_loss_by_hand(sharded_vocab):
    """-sum q ln p + z ln(Z)^2 with q = (1 - e) one_hot + e / V; its gradient is p - q + 2 z ln(Z) p."""
    logits, targets, weights = drawn()
    logits += 3.0  # else the normaliser, and with it the z-loss, would be near 0
    e, z = 0.2, 0.01
    options = {"label_smoothing": e, "z_loss": z, "sharded_vocab": sharded_vocab}
    nats, gradient = value_and_gradient(logits, targets, weights, **options)
    q = (1 - e) * np.eye(11)[targets] + e / 11
    normaliser = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(nats, -(q * log_softmax(logits)).sum(-1) + z * normaliser**2, rtol=1e-5)
    p = np.exp(log_softmax(logits))
    expected = weights[..., None] * (p - q + 2 * z * normaliser[..., None] * p)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_a_loss_is_a_weighted_sum_and_its_weight(gpt):
    model, params = gpt
    batch = tiny.batch(rows=3)
    sums = jax.jit(language_model_loss(model), static_argnums=2)(params, batch, None)
    logp = log_softmax(jax.jit(functools.partial(apply, model))(params, batch["inputs"]).logits)
    nats = -np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
    assert float(sums.loss) == pytest.approx(float((nats * batch["weights"]).sum()), rel=1e-5)
    assert float(sums.weight) == batch["weights"].sum() < batch["weights"].size


def test_only_training_is_smoothed(gpt):
    """With a key, the loss has smoothing and z-loss; without, it is the plain one."""
    model, params = gpt
    batch, e, z = tiny.batch(rows=3), 0.3, 0.05
    loss = jax.jit(language_model_loss(model, label_smoothing=e, z_loss=z))
    plain = jax.jit(language_model_loss(model))
    key = jax.random.key(0)  # no dropout: it decides nothing else
    assert loss(params, batch, None).loss == plain(params, batch, None).loss == plain(params, batch, key).loss
    logits = np.asarray(jax.jit(functools.partial(apply, model))(params, batch["inputs"]).logits, np.float64)
    q = (1 - e) * np.eye(64)[batch["targets"]] + e / 64
    nats = -(q * log_softmax(logits)).sum(-1) + z * np.log(np.exp(logits).sum(-1)) ** 2
    assert float(loss(params, batch, key).loss) == pytest.approx(float((nats * batch["weights"]).sum()), rel=1e-5)


def test_a_vocabulary_on_several_devices_changes_nothing(gpt):
    model, params = gpt
    batch, key, rules = tiny.batch(rows=4), jax.random.key(0), ShardingRules()
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    whole = jax.jit(language_model_loss(model, **options))(params, batch, key)
    with jax.set_mesh(tiny.mesh(data=2, tensor=4)):
        model = build(tiny.GPT, rules)
        parts = jax.jit(language_model_loss(model, rules, **options))(params, batch, key)
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-5)
    assert float(parts.weight) == float(whole.weight)


def test_what_the_network_does_not_read_is_refused(gpt):
    batch = tiny.batch(rows=2) | {"labels": np.zeros((2, 32), np.int32), "attention_mask": np.ones((2, 32), np.int32)}
    for loss in (language_model_loss(gpt[0]), span_loss(gpt[0])):
        with pytest.raises(ValueError, match="the batch has attention_mask, labels: .* reads inputs, "):
            loss(gpt[1], batch, None)


def test_features_of_the_batch_reach_the_network(gpt):
    """Segments change what is seen: the loss is that of the two halves alone."""
    model, params = gpt
    batch = tiny.batch(rows=2)
    halves = jax.tree.map(lambda x: np.concatenate([x[:, :16], x[:, 16:]]), batch)
    segments = np.repeat([[1, 2]], 16, axis=1).repeat(2, axis=0).reshape(2, 32)
    positions = np.tile(np.arange(16), (2, 2))
    loss = jax.jit(language_model_loss(model))
    packed = loss(params, batch | {"segments": segments, "positions": positions}, None)
    assert float(packed.loss) == pytest.approx(float(loss(params, halves, None).loss), rel=1e-5)
    assert float(packed.loss) != pytest.approx(float(loss(params, batch, None).loss), rel=1e-3)


def test_span_loss_by_hand():
    """The mean nats of start and end among the places of the text, each row by its weight."""
    model, params = made(SPAN)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.integers(0, 64, (3, 7), dtype=np.int32),
        "segments": np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 7], np.int32),
        "targets": np.array([[1, 4], [0, 0], [6, 6]], np.int32),
        "weights": np.array([1.0, 0.5, 0.0], np.float32),
    }
    run = jax.jit(lambda params, ids, segments: apply(model, params, ids, segments_BT=segments).logits)
    logp = log_softmax(np.swapaxes(run(params, batch["inputs"], batch["segments"]), 1, 2))
    starts, ends = (-logp[np.arange(3), side, batch["targets"][:, side]] for side in (0, 1))
    sums = jax.jit(span_loss(model), static_argnums=2)(params, batch, None)
    assert float(sums.loss) == pytest.approx((starts[0] + ends[0]) / 2 + (starts[1] + ends[1]) / 4, rel=1e-5)
    assert float(sums.weight) == 1.5


def test_span_loss_trains_with_dropout():
    model, params = made(dataclasses.replace(SPAN, dropout=0.5))
    batch = {
        "inputs": np.ones((2, 7), np.int32),
        "targets": np.array([[1, 4], [0, 6]], np.int32),
        "weights": np.ones(2, np.float32),
    }
    loss = jax.jit(span_loss(model))
    values = {float(loss(params, batch, key).loss) for key in (None, jax.random.key(0), jax.random.key(1))}
    assert len(values) == 3


@pytest.mark.parametrize("devices", [1, 2])
def test_products_of_a_bf16_head_take_bf16_in_the_backward_pass_too(devices):
    """Logits are f32, and so is their gradient; it is rounded before it meets weights or activations."""
    linear = Linear("BTD,DV->BTV", (32, 64), ("embed", "vocab"), nn.initializers.normal(), out_dtype="float32")
    rng = np.random.default_rng(0)
    kernel, gradient = (rng.normal(size=shape).astype(np.float32) for shape in ((32, 64), (2, 8, 64)))
    x = rng.normal(size=(2, 8, 32)).astype(jnp.bfloat16)

    def pull(kernel, x, gradient):
        logits, back = jax.vjp(lambda kernel, x: linear.apply({"params": {"kernel": kernel}}, x), kernel, x)
        assert jax.typeof(logits).dtype == jnp.float32
        return back(gradient)

    with jax.set_mesh(tiny.mesh(data=devices)):
        text = str(jax.make_jaxpr(pull)(kernel, x, gradient))
        kernel_gradient, x_gradient = jax.jit(pull)(kernel, x, gradient)
    products = re.findall(r":(\w+)\[[^\]]*\] = dot_general", text)
    assert sorted(products) == ["bf16", "bf16", "f32"]
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(kernel_gradient, np.einsum("btd,btv->dv", wide, gradient), rtol=0.01, atol=0.05)
    np.testing.assert_allclose(
        np.asarray(x_gradient, np.float64), np.einsum("dv,btv->btd", kernel, gradient), rtol=0.01, atol=0.1
    )
