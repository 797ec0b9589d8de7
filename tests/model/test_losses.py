"""The loss: nats of the target, sums and not means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import cross_entropy


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
