"""Adafactor against its paper, matrix by matrix, and the bytes that it keeps beside AdamW's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from model import parameters
from model.build import build
from model.config import ModelConfig
from model.sharding import ShardingRules
from tests import tiny
from train.optimizers import make_optimizer

C = dataclasses.replace(tiny.OPTIMIZER, name="adafactor", weight_decay=0.0)


def by_the_paper(gradients, factored):
    """Algorithms 4 and 5 of Shazeer & Stern 2018 for one matrix or vector in f64, decay 1 - t^-0.8, d = 1."""
    rows, columns, each = 0.0, 0.0, 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), 1):
        decay, square = 1 - t**-0.8, g * g + 1e-30
        rows = decay * rows + (1 - decay) * square.sum(-1, keepdims=True)
        columns = decay * columns + (1 - decay) * square.sum(-2, keepdims=True) if g.ndim > 1 else 0.0
        each = decay * each + (1 - decay) * square
        v = rows * columns / np.sum(rows) if factored else each
        update = g / np.sqrt(v)
        update = update / max(1.0, np.sqrt(np.mean(update**2)))
    return update


def test_three_updates_are_those_of_the_paper_for_each_matrix():
    """Gradients of the layers differ a thousandfold, and one grows: its update alone is clipped."""
    forms = {
        "query": (("layers", "embed", "heads", "head_dim"), (2, 128, 2, 80), lambda x: x.reshape(2, 128, 160), True),
        "output": (("layers", "heads", "head_dim", "embed"), (2, 2, 64, 130), lambda x: x.reshape(2, 128, 130), True),
        "expert": (("layers", "experts", "embed", "mlp"), (1, 3, 128, 129), lambda x: x[0], True),
        "narrow": (("layers", "embed", "mlp"), (2, 128, 127), lambda x: x, False),
        "bias": (("layers", "heads", "head_dim"), (2, 2, 80), lambda x: x.reshape(2, 160), False),
    }
    weights = {
        n: {"kernel": parameters.Weight(s, jnp.dtype("float32"), a, "kernel")} for n, (a, s, *_) in forms.items()
    }
    rng = np.random.default_rng(0)

    def drawn(t):
        def one(w):
            x = rng.normal(size=w.shape).astype(np.float32)
            x[0] *= 1e-3 * (1 + 5 * t)
            return x

        return jax.tree.map(one, weights)

    optimizer = make_optimizer(C, weights, ShardingRules())
    gradients = [drawn(t) for t in range(3)]
    state, update = optimizer.init(gradients[0]), jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(g, state, g)
    for name, (_, _, matrices, factored) in forms.items():
        got = matrices(np.asarray(updates[name]["kernel"]))
        given = np.stack([matrices(g[name]["kernel"]) for g in gradients], axis=1)
        for one, expected in zip(got, given, strict=True):
            np.testing.assert_allclose(one, by_the_paper(expected, factored), rtol=2e-4, atol=1e-6, err_msg=name)


def test_it_keeps_a_five_hundredth_of_adamws_bytes():
    """GPT-2 124M, whose heads of 64 are below what is factored on its own."""
    weights = parameters.weights(build(ModelConfig()))
    params = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), weights)

    def bytes_of(name):
        state = jax.eval_shape(make_optimizer(dataclasses.replace(C, name=name), weights, ShardingRules()).init, params)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))

    assert bytes_of("adamw") > 900e6 and bytes_of("adafactor") < bytes_of("adamw") / 500
