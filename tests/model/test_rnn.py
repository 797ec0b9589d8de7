"""Recurrent networks: against PyTorch's in values and gradients, memory over segments and padding, and caches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.decoding import empty_cache
from model.losses import language_model_loss
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

BASE = dataclasses.replace(tiny.GPT, tied_output=False, embed_dim=12, num_heads=1)
CONFIGS = {name: dataclasses.replace(BASE, architecture=name, norm="none") for name in ("rnn", "lstm", "gru")}


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def made(config, spread=0.3):
    model = build(config)
    params = jax.jit(lambda: parameters.init(model, jax.random.key(0)))()
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return model, jax.tree.map(lambda p: p + spread * jax.random.normal(next(keys), p.shape), params)


@functools.partial(jax.jit, static_argnames="model")
def run(model, params, ids, **options):
    return apply(model, params, jnp.asarray(ids, jnp.int32), **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    model, params = made(CONFIGS[name])
    batch = tiny.batch(rows=3, length=9)
    loss = language_model_loss(model)
    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, None).loss))(params)

    peer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name](12, 12, 2, batch_first=True)
    table, output = (
        torch.tensor(np.asarray(params[a][b] if a == "embedding" else params["head"]["output"]["kernel"]))
        for a, b in (("embedding", "embedding"), ("head", "output"))
    )
    with torch.no_grad():
        for layer in range(2):
            for theirs, ours in (("ih", params["layers"]["input"]), ("hh", params["layers"])):
                kernel, bias = np.array(ours["kernel"][layer]), np.array(ours["bias"][layer])
                getattr(peer, f"weight_{theirs}_l{layer}").copy_(torch.tensor(kernel.reshape(12, -1).T))
                getattr(peer, f"bias_{theirs}_l{layer}").copy_(torch.tensor(bias.reshape(-1)))
    table.requires_grad_()
    hidden, _ = peer(table[torch.tensor(batch["inputs"]).long()])
    logits = hidden @ output
    np.testing.assert_allclose(run(model, params, batch["inputs"]).logits, logits.detach(), atol=2e-6)
    nats = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 64), torch.tensor(batch["targets"]).reshape(-1).long(), reduction="none"
    )
    total = (nats * torch.tensor(batch["weights"]).reshape(-1)).sum()
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-6)
    np.testing.assert_allclose(grads["embedding"]["embedding"], table.grad, atol=1e-5)
    for layer in range(2):
        theirs = getattr(peer, f"weight_hh_l{layer}").grad.T.reshape(12, -1, 12)
        np.testing.assert_allclose(grads["layers"]["kernel"][layer], theirs, atol=2e-5)
        theirs = getattr(peer, f"bias_ih_l{layer}").grad.reshape(-1, 12)
        np.testing.assert_allclose(grads["layers"]["input"]["bias"][layer], theirs, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_cached_equals_uncached_and_padding_is_not_read(name, norm):
    config = dataclasses.replace(CONFIGS[name], norm=norm)
    model, params = made(config)
    ids = np.random.default_rng(0).integers(0, 64, (2, 10))
    whole = run(model, params, ids).logits
    cache = empty_cache(config, ShardingRules(), 2, 16)
    # Row 1 is padded on the left by what must not matter.
    padded = np.concatenate([np.full((2, 3), 7), ids[:, :6]], axis=1)
    segments = np.asarray([[0] * 3 + [1] * 6] * 2)
    output = run(model, params, padded, segments_BT=jnp.asarray(segments), cache=cache)
    np.testing.assert_allclose(output.logits[:, 3:], whole[:, :6], atol=1e-6)
    for t in range(6, 10):
        output = run(model, params, ids[:, t : t + 1], cache=output.cache)
        np.testing.assert_allclose(output.logits[:, 0], whole[:, t], atol=1e-6)
    assert int(output.cache.filled) == 13


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_segment_starts_with_an_empty_memory(name):
    model, params = made(CONFIGS[name])
    a, b = (np.random.default_rng(i).integers(0, 64, (1, n)) for i, n in ((0, 5), (1, 7)))
    segments = jnp.asarray([[1] * 5 + [2] * 7])
    packed = run(model, params, np.concatenate([a, b], axis=1), segments_BT=segments).logits
    np.testing.assert_allclose(packed[:, 5:], run(model, params, b).logits, atol=1e-6)
    apart = run(model, params, np.concatenate([a, b], axis=1)).logits
    assert np.abs(apart[:, 5:] - packed[:, 5:]).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_take_chooses_rows_of_the_memory(name):
    model, params = made(CONFIGS[name])
    ids = np.random.default_rng(0).integers(0, 64, (3, 6))
    output = run(model, params, ids, cache=empty_cache(CONFIGS[name], ShardingRules(), 3, 16))
    rows = jnp.asarray([2, 0, 2])
    again = run(model, params, np.full((3, 1), 5), cache=output.cache.take(rows))
    longer = run(model, params, np.concatenate([ids[rows], np.full((3, 1), 5)], axis=1))
    np.testing.assert_allclose(again.logits[:, 0], longer.logits[:, -1], atol=1e-6)


def test_the_forget_gate_starts_open():
    params = jax.jit(lambda: parameters.init(build(CONFIGS["lstm"]), jax.random.key(0)))()
    assert (params["layers"]["bias"][:, 1] == 1).all() and not params["layers"]["bias"][:, [0, 2, 3]].any()
