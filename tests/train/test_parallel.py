"""Any mesh, one result: losses of 20 steps, bytes per device, and where everything lies."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import PRESETS, ShardingRules
from tests import tiny
from train.mesh import batch_sharding, place_batch
from train.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from train.state import abstract_state, init_state
from train.step import make_train_step

STEPS = 20


def trained(config, mesh, rules=None, *, optimizer=tiny.OPTIMIZER, microbatches=1, steps=STEPS):
    """Losses of some steps, the state, and the compiled step, on a mesh."""
    rules = rules or ShardingRules()
    with jax.set_mesh(mesh):
        model = build(config, rules)
        made = make_optimizer(optimizer, parameters.weights(model), rules)
        target = abstract_state(model, made, rules, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, target)
        state = jax.jit(lambda seed: init_state(model, made, seed), out_shardings=shardings)(jnp.uint32(0))
        step = make_train_step(
            language_model_loss(model, rules),
            made,
            make_schedule(optimizer, STEPS),
            rules,
            microbatches=microbatches,
            clip_norm=optimizer.clip_norm,
            seed=0,
            stochastic_rounding=optimizer.stochastic_rounding,
        )
        placed = batch_sharding(mesh, rules)
        jitted = jax.jit(step, in_shardings=(shardings, placed), out_shardings=(shardings, None), donate_argnums=0)
        compiled = jitted.lower(state, place_batch(tiny.batch(), placed)).compile()
        losses = []
        for i in range(steps):
            state, metrics = compiled(state, place_batch(tiny.batch(seed=i % 2), placed))
            losses.append(float(metrics["loss"]))
    return np.asarray(losses), state, compiled


@pytest.fixture(scope="module")
def on_one_device():
    return {config: trained(config, tiny.mesh())[0] for config in (tiny.GPT, tiny.LLAMA)}


MESHES = {
    "data2": {"data": 2},
    "data4": {"data": 4},
    "data8": {"data": 8},
    "fsdp2": {"fsdp": 2},
    "fsdp4": {"fsdp": 4},
    "fsdp8": {"fsdp": 8},
    "tensor2": {"tensor": 2},
    "tensor4": {"tensor": 4},
    "fsdp2_tensor2": {"fsdp": 2, "tensor": 2},
    "data2_tensor2": {"data": 2, "tensor": 2},
    "stage2": {"stage": 2},
    "data2_stage2": {"data": 2, "stage": 2},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.parametrize("name", MESHES)
def test_losses_are_those_of_one_device(name, on_one_device):
    losses, state, compiled = trained(tiny.GPT, tiny.mesh(**MESHES[name]))
    np.testing.assert_allclose(losses, on_one_device[tiny.GPT], atol=1e-5)
    assert losses[-1] < losses[0]
    # Outputs per device are what the shardings say, metrics aside: nothing was replicated on the way out.
    expected = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert 0 <= compiled.memory_analysis().output_size_in_bytes - expected <= 4096


def test_eight_heads_on_eight_devices():
    config = dataclasses.replace(tiny.GPT, num_heads=8)
    one, eight = trained(config, tiny.mesh())[0], trained(config, tiny.mesh(tensor=8))[0]
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_llama_shape_on_fsdp_and_tensor(on_one_device):
    losses, _, _ = trained(tiny.LLAMA, tiny.mesh(fsdp=4, tensor=2))
    np.testing.assert_allclose(losses, on_one_device[tiny.LLAMA], atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_the_same_losses(preset, on_one_device):
    losses, _, _ = trained(tiny.GPT, tiny.mesh(fsdp=2, tensor=2), PRESETS[preset])
    np.testing.assert_allclose(losses, on_one_device[tiny.GPT], atol=1e-5)


def test_a_device_holds_its_share():
    """Kernels and embeddings are cut by all 8 devices; what is left whole is named."""
    mesh, rules = tiny.mesh(fsdp=4, tensor=2), ShardingRules()
    weights = parameters.weights(build(tiny.GPT, rules))
    for weight, sharding in zip(
        jax.tree.leaves(weights), jax.tree.leaves(parameters.shardings(weights, rules, mesh)), strict=True
    ):
        share = weight.size / math.prod(sharding.shard_shape(weight.shape))
        if weight.role == "kernel" or weight.axes == ("vocab", "embed"):
            assert share == 8, weight
        elif weight.axes == ("position", "embed"):
            assert share == 4, weight
        else:
            assert share == (2 if {"heads", "kv_heads", "mlp"} & set(weight.axes) else 1), weight


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_trains_the_same_on_a_mesh(name):
    optimizer = dataclasses.replace(tiny.OPTIMIZER, name=name, peak_lr=0.5 if name == "sgd" else 1e-2)
    # Wide enough that Adafactor factors its statistics (it does from sides of 128 on).
    config = dataclasses.replace(tiny.GPT, embed_dim=128, mlp_dim=256, vocab_size=256, num_layers=2)
    one, _, _ = trained(config, tiny.mesh(), optimizer=optimizer, steps=5)
    many, state, _ = trained(config, tiny.mesh(fsdp=4, tensor=2), optimizer=optimizer, steps=5)
    np.testing.assert_allclose(many, one, atol=2e-5)
    assert many[-1] < many[0]
    for leaf in jax.tree.leaves(state.opt_state):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert leaf.size <= 512 or held < leaf.size, (leaf.shape, leaf.sharding)
    if name == "adafactor":
        # Of the MLP's (2, 128, 256) kernel and the query's (2, 128, 4, 32): a mean for each row and each column.
        layers = [tree["decoder"]["layers"] for tree in (state.opt_state[0].rows, state.opt_state[0].columns)]
        kernels = [x for tree in layers for x in (tree["mlp"]["up"]["kernel"], tree["attention"]["query"]["kernel"])]
        assert [(x.shape, tuple(x.sharding.spec)) for x in kernels] == [
            ((2, 128, 1), ("stage", "fsdp", None)),
            ((2, 128, 1, 1), ("stage", "fsdp", None, None)),
            ((2, 1, 256), ("stage", None, "tensor")),
            ((2, 1, 4, 32), ("stage", None, "tensor", None)),
        ]


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2}], ids=["one", "fsdp2"])
def test_microbatches_change_nothing(mesh, on_one_device):
    """Weights differ from row to row: a mean of means would differ."""
    losses, _, _ = trained(tiny.GPT, tiny.mesh(**mesh), microbatches=4)
    np.testing.assert_allclose(losses, on_one_device[tiny.GPT], atol=1e-5)
