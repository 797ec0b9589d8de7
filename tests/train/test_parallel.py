"""Any mesh, one result: losses of 20 steps, what optimisers do, bytes per device, and where everything lies."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import Sums, language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train.mesh import batch_sharding, place_batch
from train.optimizers import OPTIMIZERS, make_optimizer
from train.state import State, abstract_state, init_state

RULES = ShardingRules()


def trained(config, mesh, loss=None, optimizer=tiny.OPTIMIZER, steps=20):
    """Losses of some steps, the state, and the compiled step, on a mesh."""
    with jax.set_mesh(mesh):
        model = build(config, RULES)
        made = make_optimizer(optimizer, parameters.weights(model), RULES)
        target = abstract_state(model, made, RULES, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, target)
        params = tiny.start(config, mesh)
        state = State(jnp.int32(0), params, jax.jit(made.init, out_shardings=shardings.opt_state)(params))
        step = tiny.train_step(loss or language_model_loss(model, RULES), made, optimizer)
        placed = batch_sharding(mesh, RULES)
        jitted = jax.jit(step, in_shardings=(shardings, placed), out_shardings=(shardings, None), donate_argnums=0)
        compiled = jitted.lower(state, place_batch(tiny.batch(), placed)).compile()
        losses = []
        for i in range(steps):
            state, metrics = compiled(state, place_batch(tiny.batch(seed=i % 2), placed))
            losses.append(float(metrics["loss"]))
    return np.asarray(losses), state, compiled


@pytest.fixture(scope="module")
def on_one_device():
    return trained(tiny.GPT, tiny.mesh())[0]


# Gradients on the meshes between these are in test_matrix.
MESHES = {
    "data8": {"data": 8},
    "fsdp8": {"fsdp": 8},
    "data2_stage2": {"data": 2, "stage": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.parametrize("name", MESHES)
def test_losses_are_those_of_one_device(name, on_one_device):
    losses, state, compiled = trained(tiny.GPT, tiny.mesh(**MESHES[name]))
    np.testing.assert_allclose(losses, on_one_device, atol=1e-5)
    assert losses[-1] < losses[0]
    # Outputs per device are what the shardings say, metrics aside: nothing was replicated on the way out.
    expected = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert 0 <= compiled.memory_analysis().output_size_in_bytes - expected <= 4096


def test_a_state_is_born_the_same_on_a_mesh():
    mesh, model = tiny.mesh(data=2, fsdp=2, tensor=2), build(tiny.GPT, RULES)
    with jax.set_mesh(mesh):
        made = make_optimizer(tiny.OPTIMIZER, parameters.weights(model), RULES)
        shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, made, RULES, mesh))
        state = jax.jit(lambda seed: init_state(model, made, seed), out_shardings=shardings)(jnp.uint32(0))
    assert state.step == 0
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(tiny.initial(tiny.GPT)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_a_device_holds_its_share():
    """Kernels and embeddings are cut by all 8 devices; what is left whole is named."""
    mesh = tiny.mesh(fsdp=4, tensor=2)
    weights = parameters.weights(build(tiny.GPT, RULES))
    for weight, sharding in zip(
        jax.tree.leaves(weights), jax.tree.leaves(parameters.shardings(weights, RULES, mesh)), strict=True
    ):
        share = weight.size / math.prod(sharding.shard_shape(weight.shape))
        if weight.role == "kernel" or weight.axes == ("vocab", "embed"):
            assert share == 8, weight
        elif weight.axes == ("position", "embed"):
            assert share == 4, weight
        else:
            assert share == (2 if {"heads", "kv_heads", "mlp"} & set(weight.axes) else 1), weight


def distance(params, batch, key):
    """A loss whose gradients differ from weight to weight, with no network to compile."""
    goals = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    squares = jax.tree.map(lambda x, goal: jnp.sum((x - goal) ** 2), params, goals)
    return Sums(jax.tree.reduce(jnp.add, squares), jnp.float32(1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_moves_the_same_on_a_mesh(name):
    optimizer = dataclasses.replace(tiny.OPTIMIZER, name=name)
    # Wide enough that Adafactor factors its statistics (it does from sides of 128 on).
    config = dataclasses.replace(tiny.GPT, embed_dim=128, mlp_dim=256, vocab_size=256)
    _, one, _ = trained(config, tiny.mesh(), distance, optimizer, steps=3)
    losses, state, _ = trained(config, tiny.mesh(fsdp=4, tensor=2), distance, optimizer, steps=3)
    assert losses[-1] < losses[0]
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
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
