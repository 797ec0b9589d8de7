"""A length that the mesh cuts: loss and gradients are those of one device, and nothing of full length is gathered."""

import dataclasses

import jax
import numpy as np
import pytest

from launch.plan.collectives import collectives
from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train.mesh import batch_sharding, place_batch

RULES = ShardingRules()
# Weights far from 0: where attention is flat, its gradients are as small as what they may be wrong by.
GPT, LLAMA = (dataclasses.replace(config, init_std=0.3) for config in (tiny.GPT, tiny.LLAMA))
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 20}
T5 = dataclasses.replace(LLAMA, architecture="encoder_decoder", mlp="reglu", **RELATIVE)
NETWORKS = {
    "llama": LLAMA,
    "alibi": dataclasses.replace(LLAMA, positions="alibi"),
    "relative": dataclasses.replace(GPT, **RELATIVE),
    "t5": T5,
    "bert": dataclasses.replace(GPT, architecture="encoder", head="masked_lm", norm_placement="post", token_types=2),
    "window": dataclasses.replace(LLAMA, window=5, attention_softcap=3.0, qk_norm=True),
    "prefix": dataclasses.replace(GPT, prefix_lm=True),
    "remat": dataclasses.replace(LLAMA, remat="full", scan_unroll=0),
}


def batch_of(name):
    """A batch with what each network reads: packed rows, padding, prefixes, sources, pairs."""
    made, rng = tiny.batch(rows=4), np.random.default_rng(3)
    lengths = np.asarray([[9, 7, 12, 4], [32, 0, 0, 0], [3, 3, 3, 20], [1, 15, 10, 2]])
    segments = np.zeros((4, 32), np.int32)
    for row, ends in enumerate(np.cumsum(lengths, axis=1)):
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            segments[row, start:end] = number
    if name in ("llama", "alibi", "relative", "window", "remat"):
        made["segments"] = segments
    if name == "llama":
        starts = np.asarray([[np.argmax(row == number) for number in row] for row in segments])
        made["positions"] = (np.arange(32) - starts).astype(np.int32)
    if name == "prefix":
        made["prefix"] = (np.arange(32) < np.asarray([[5], [17], [1], [30]])).astype(np.int32)
    if name == "bert":
        made["segments"] = (np.arange(32) < np.asarray([[32], [20], [7], [1]])).astype(np.int32)
        made["token_types"] = rng.integers(0, 2, (4, 32), dtype=np.int32)
    if name == "t5":
        made["source"] = rng.integers(0, 64, (4, 48), dtype=np.int32)
        made["source_segments"] = (np.arange(48) < np.asarray([[48], [30], [5], [1]])).astype(np.int32)
    return made


def loss_and_gradients(config, batch, mesh, *, compiled=False):
    """The mean loss and its gradients; or the compiled program."""
    with jax.set_mesh(mesh):
        model, placed = build(config, RULES), batch_sharding(mesh, RULES)
        params, rows = tiny.start(config, mesh), place_batch(batch, placed)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        loss_fn = language_model_loss(model, RULES)

        def mean(params, batch):
            sums = loss_fn(params, batch, None)
            return sums.loss / sums.weight

        jitted = jax.jit(jax.value_and_grad(mean), in_shardings=(shardings, placed), out_shardings=(None, shardings))
        step = jitted.lower(params, rows).compile()
        return step if compiled else jax.device_get(step(params, rows))


@pytest.fixture(scope="module")
def on_one_device():
    known = {}

    def result(name):
        if name not in known:
            known[name] = loss_and_gradients(NETWORKS[name], batch_of(name), tiny.mesh())
        return known[name]

    return result


def same(many, one):
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    named = parameters.named_leaves(one[1])
    for name, ours in parameters.named_leaves(many[1]).items():
        atol = 5e-5 * np.abs(named[name]).max() + 1e-7  # the bias of keys moves no softmax: its gradient is 0
        np.testing.assert_allclose(ours, named[name], atol=atol, rtol=0, err_msg=name)


SLOW = ("relative", "t5", "remat", "prefix", "window")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_every_network_on_context_4(name, on_one_device):
    same(loss_and_gradients(NETWORKS[name], batch_of(name), tiny.mesh(context=4)), on_one_device(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_length_over_all_devices(name, on_one_device):
    same(loss_and_gradients(NETWORKS[name], batch_of(name), tiny.mesh(context=8)), on_one_device(name))


def test_keys_go_round_and_nothing_but_ids_is_gathered():
    mesh = tiny.mesh(context=4)
    program = loss_and_gradients(LLAMA, tiny.batch(rows=4), mesh, compiled=True)
    found = [c for c in collectives(str(program.as_text()), mesh) if "context" in c.axes]
    assert any(c.kind == "collective-permute" and "attention" in c.where for c in found)
    # 4 rows of 32 tokens: 512 bytes of ids, 16 KiB of activations.
    assert max((c.bytes for c in found if c.kind in ("all-gather", "all-to-all")), default=0) <= 512
