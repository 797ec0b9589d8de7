"""Meshes of several axes against one device: gradients of the summed loss leaf by leaf, and bytes of a device."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import PRESETS
from tests import tiny
from train.mesh import batch_sharding, place_batch
from train.optimizers import make_optimizer
from train.state import abstract_state
from train.step import gradients

ROWS, LENGTH = 16, 32
MIXTURE = {"experts": 4, "experts_per_token": 2, "load_balance_loss": 0.5, "router_z_loss": 0.1, "init_std": 0.2}
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 20}
NETWORKS = {
    "gpt": tiny.GPT,
    "llama": tiny.LLAMA,  # two query heads for each key head
    "t5": dataclasses.replace(tiny.LLAMA, architecture="encoder_decoder", mlp="reglu", **RELATIVE),
    "limited": dataclasses.replace(tiny.LLAMA, capacity_factor=1.0, **MIXTURE),  # experts that drop tokens
    "dropless": dataclasses.replace(tiny.GPT, capacity_factor=0.0, **MIXTURE),
}
# What each mesh axis cuts of the weights in the default preset, said a second time: by hand.
CUT_BY = {
    "stage": {"layers"},
    "fsdp": {"embed"},
    "tensor": {"heads", "kv_heads", "mlp", "vocab"},
    "expert": {"experts"},
}
FAST = [
    "gpt data2 stage2",
    "gpt data4 fsdp2",
    "gpt data2 tensor4",
    "llama data2 context4",
    "gpt stage2 fsdp4",
    "llama stage2 tensor2",
    "gpt stage2 context2",
    "llama fsdp4 tensor2",
    "llama fsdp2 context2",
    "gpt tensor2 context4",
    "t5 fsdp2 tensor2 context2",
    "llama data2 stage2 fsdp2",
    "llama data2 fsdp2 tensor2 sequence_parallel",
    "limited fsdp2 tensor2 expert2",
    "limited stage2 expert2",
    "gpt fsdp2 tensor2 data_parallel",
    "gpt fsdp2 tensor2 fsdp",
    "gpt fsdp2 tensor2 tensor",
]
SLOW = [
    "llama data2 stage2",
    "llama data4 fsdp2",
    "llama data4 tensor2",
    "gpt data4 context2",
    "llama stage2 fsdp2",
    "gpt stage2 tensor4",
    "llama stage2 context4",
    "gpt fsdp2 tensor4",
    "gpt fsdp4 context2",
    "llama tensor2 context2",
    "t5 stage2 fsdp2 context2",
    "gpt data2 stage2 tensor2",
    "gpt stage2 fsdp2 tensor2",
    "gpt stage2 tensor2 context2",
    "llama data2 fsdp2 context2",
    "llama data2 tensor2 context2",
    "gpt stage2 fsdp2 sequence_parallel",
    "t5 tensor2 context2 sequence_parallel",
    "limited data4 expert2",
    "limited fsdp2 expert4",
    "limited tensor2 context2 expert2",
    "limited tensor2 context2",
    "dropless fsdp2 expert2",
    "dropless tensor2 expert4",
    "dropless context2 expert4",
    "dropless stage2 expert4",
    "dropless stage2 tensor2",
    "limited data2 stage2 fsdp2",
    "dropless stage2 context2",
]
CASES = [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]


def read(case: str) -> tuple[str, dict[str, int], str]:
    """Network, mesh axes and preset of "gpt data2 tensor4"; an axis is a word that ends in its size."""
    network, *words = case.split()
    axes = {word[:-1]: int(word[-1]) for word in words if word[-1].isdigit()}
    return network, axes, next((word for word in words if word in PRESETS), "fsdp_tensor")


def batch_of(network: str) -> dict[str, np.ndarray]:
    """Packed rows with padding and weights; for an encoder-decoder also sources."""
    made, rng = tiny.batch(ROWS, LENGTH), np.random.default_rng(3)
    ends = np.sort(rng.integers(1, LENGTH, (ROWS, 3)), axis=1)
    segments = 1 + np.sum(np.arange(LENGTH) >= ends[:, :, None], axis=1, dtype=np.int32)
    made["segments"] = np.where(segments == 4, 0, segments)
    made["weights"] *= made["segments"] > 0
    if network == "t5":
        made["source"] = rng.integers(0, 64, (ROWS, LENGTH), dtype=np.int32)
        made["source_segments"] = made["segments"]
    return made


def gradients_on(network: str, axes: dict[str, int], preset: str = "fsdp_tensor", microbatches: int = 1) -> Any:
    """Gradients and `Sums` in the memory of the host; the bytes of the gradients on each device, by leaf."""
    rules, mesh = PRESETS[preset], tiny.mesh(**axes)
    with jax.set_mesh(mesh):
        model, placed = build(NETWORKS[network], rules), batch_sharding(mesh, rules)
        params = tiny.start(NETWORKS[network], mesh, rules)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        loss_fn, key = language_model_loss(model, rules), jax.random.key(0)
        function = functools.partial(gradients, loss_fn, rules, key=key, microbatches=microbatches)
        # A function of its own: what was traced for another mesh is of no use.
        jitted = jax.jit(lambda p, b: function(p, b), in_shardings=(shardings, placed), out_shardings=(shardings, None))
        grads, sums = jitted(params, place_batch(batch_of(network), placed))
        return *jax.device_get((grads, sums)), jax.tree.map(lambda x: x.addressable_shards[0].data.nbytes, grads)


@functools.cache
def on_one_device(network: str) -> Any:
    return gradients_on(network, {})


def check_same(many: Any, one: Any) -> None:
    """Within 1e-5 of the largest number of each leaf. The gradient of a key's bias is 0: softmax knows no shift."""
    np.testing.assert_allclose(many[1].loss, one[1].loss, rtol=2e-6)
    assert many[1].weight == one[1].weight
    for ours, theirs in zip(jax.tree.leaves(many[1].routing), jax.tree.leaves(one[1].routing), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[0]))
    for (name, ours), theirs in zip(parameters.named_leaves(many[0]).items(), jax.tree.leaves(one[0]), strict=True):
        scale = largest if name.endswith("key/bias") else np.abs(theirs).max()
        assert scale > 0, name
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_device(case):
    network, axes, preset = read(case)
    found = gradients_on(network, axes, preset)
    check_same(found, on_one_device(network))
    if preset == "fsdp_tensor":
        weights = parameters.weights(build(NETWORKS[network]))
        assert found[2] == jax.tree.map(lambda weight: share(weight, axes), weights)


@pytest.mark.parametrize("case", ["gpt data2 fsdp2", pytest.param("llama stage2 tensor2", marks=pytest.mark.slow)])
def test_microbatches_change_nothing(case):
    network, axes, _ = read(case)
    check_same(gradients_on(network, axes, microbatches=4), on_one_device(network))


def share(weight: parameters.Weight, axes: dict[str, int]) -> int:
    """Bytes of one device."""
    parts = math.prod(size for axis, size in axes.items() if CUT_BY.get(axis, set()) & set(weight.axes))
    assert weight.size % parts == 0
    return weight.size // parts * weight.dtype.itemsize


@pytest.mark.parametrize("case", [case for case in FAST if read(case)[2] == "fsdp_tensor"])
def test_statistics_of_the_optimiser_are_cut_as_their_weights(case):
    network, axes, _ = read(case)
    mesh, rules = tiny.mesh(**axes), PRESETS["fsdp_tensor"]
    with jax.set_mesh(mesh):
        model = build(NETWORKS[network], rules)
        weights = parameters.weights(model)
        state = abstract_state(model, make_optimizer(tiny.OPTIMIZER, weights, rules), rules, mesh)
    adam = state.opt_state[0]
    for leaves in (state.params, adam.mu, adam.nu):
        held = jax.tree.map(lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, leaves)
        assert held == jax.tree.map(lambda weight: share(weight, axes), weights)
