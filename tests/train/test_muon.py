"""Muon against its definition by singular values, for every form of weight; its work is divided over the devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.parameters import Weight, named_leaves
from model.sharding import ShardingRules
from tests import tiny
from train.muon import newton_schulz
from train.optimizers import make_optimizer

RULES = ShardingRules()
C = dataclasses.replace(tiny.OPTIMIZER, name="muon", weight_decay=0.0, muon_momentum=0.8)


def spectral(matrix):
    """U p(S) V^T in f64, p the quintic of Jordan et al. 2024 five times over."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def weight(*axes, **sizes):
    shape = tuple(sizes[axis] for axis in axes)
    return Weight(shape, jnp.dtype("float32"), axes, "kernel")


def drawn(weights, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), weights)


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 9)])
def test_the_iteration_acts_on_singular_values_alone(shape):
    x_NRC = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.stack([spectral(matrix) for matrix in x_NRC])
    np.testing.assert_allclose(newton_schulz(jnp.asarray(x_NRC)), expected, atol=2e-5)
    values = np.linalg.svd(expected, compute_uv=False)
    assert values.min() > 0.3 and values.max() < 1.3


def test_zeros_stay_zeros():
    assert not np.asarray(newton_schulz(jnp.zeros((1, 3, 4)))).any()


# Each weight with the views of one of its matrices: index of the counted dimensions -> (inputs, outputs).
SIZES = {"layers": 2, "experts": 3, "gates": 3, "embed": 6, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp": 10}
FORMS = {
    "query": (("layers", "embed", "heads", "head_dim"), lambda x: [m.reshape(6, 8) for m in x]),
    "key": (("layers", "embed", "kv_heads", "head_dim"), lambda x: [m.reshape(6, 4) for m in x]),
    "output": (("layers", "heads", "head_dim", "embed"), lambda x: [m.reshape(8, 6) for m in x]),
    "up": (("layers", "embed", "mlp"), list),
    "down": (("layers", "mlp", "embed"), list),
    "expert": (("layers", "experts", "embed", "mlp"), lambda x: [m for layer in x for m in layer]),
    "gates": (("layers", "embed", "gates", "mlp"), lambda x: [layer[:, g] for layer in x for g in range(3)]),
}


def test_momentum_and_size_of_every_form_of_weight():
    """Two updates: Nesterov momentum, then each matrix by its singular values, times 0.2 sqrt(its longer side)."""
    declared = {name: {"kernel": weight(*axes, **SIZES)} for name, (axes, _) in FORMS.items()}
    optimizer = make_optimizer(C, declared, RULES)
    one, two = drawn(declared, 1), drawn(declared, 2)
    state = optimizer.init(one)
    _, state = optimizer.update(one, state, one)
    updates, _ = optimizer.update(two, state, one)
    for name, (_, split) in FORMS.items():
        first, second, update = (tree[name]["kernel"] for tree in (one, two, updates))
        nesterov = second + 0.8 * (second + 0.8 * first)
        for matrix, got in zip(split(nesterov), split(np.asarray(update)), strict=True):
            np.testing.assert_allclose(got, 0.2 * max(matrix.shape) ** 0.5 * spectral(matrix), atol=3e-5, err_msg=name)


@pytest.mark.parametrize("axes", [{"expert": 4, "fsdp": 2}, {"expert": 2, "tensor": 2, "fsdp": 2}], ids=str)
def test_experts_on_a_mesh_are_matrices_of_their_own(axes):
    """(L, E, D, F) kernels cut along the expert axis: the updates of one device, of which a matrix is one expert's."""
    forms = {"up": ("layers", "experts", "embed", "mlp"), "down": ("layers", "experts", "mlp", "embed")}
    sizes = {**SIZES, "experts": 4, "embed": 8, "mlp": 12}
    weights = {name: {"kernel": weight(*a, **sizes)} for name, a in forms.items()}
    given, optimizer = drawn(weights, 3), make_optimizer(C, weights, RULES)

    def update(mesh):
        with jax.set_mesh(mesh):
            params = jax.device_put(given, parameters.shardings(weights, RULES, mesh))
            return jax.jit(optimizer.update)(params, optimizer.init(params), params)[0]

    one, many = update(tiny.mesh()), update(tiny.mesh(**axes))
    for name in forms:
        np.testing.assert_allclose(many[name]["kernel"], one[name]["kernel"], atol=1e-5)
        nesterov = 1.8 * given[name]["kernel"][1, 3]
        expected = 0.2 * max(nesterov.shape) ** 0.5 * spectral(nesterov)
        np.testing.assert_allclose(many[name]["kernel"][1, 3], expected, atol=3e-5)


def test_it_is_for_hidden_matrices_alone():
    weights = parameters.weights(build(tiny.LLAMA))
    state = make_optimizer(C, weights, RULES).init(drawn(weights))[0].inner_states
    muon, adam = (set(named_leaves(state[name])) for name in ("muon", "adamw"))
    layers = {"attention/query", "attention/key", "attention/value", "attention/output"}
    layers |= {"mlp/gate", "mlp/up", "mlp/down"}
    prefix = "inner_state/0/trace/decoder/layers"
    assert muon == {f"{prefix}/{name}/kernel" for name in layers}
    rest = set(named_leaves(weights)) - {f"decoder/layers/{name}/kernel" for name in layers}
    assert adam == {"inner_state/count"} | {f"inner_state/{moment}/{name}" for moment in ("mu", "nu") for name in rest}
    assert "head/output/kernel" in rest and "embedding/embedding" in rest


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_the_devices_share_the_matrices(axes):
    """The same update as one device's, an eighth of the products on each, and no device with a gathered stack."""
    config = dataclasses.replace(tiny.GPT, embed_dim=64, mlp_dim=128, num_layers=4, bias="none")

    def update(mesh):
        with jax.set_mesh(mesh):
            weights = parameters.weights(build(config))
            optimizer = make_optimizer(C, weights, RULES)
            params = jax.device_put(drawn(weights), parameters.shardings(weights, RULES, mesh))
            state = optimizer.init(params)
            call = jax.jit(lambda g, s, p: optimizer.update(g, s, p)[0], out_shardings=jax.tree.map(place, params))
            compiled = call.lower(params, state, params).compile()
            return compiled(params, state, params), compiled

    def place(x):
        return x.sharding

    (one, alone), (many, compiled) = update(tiny.mesh()), update(tiny.mesh(**axes))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # 16 matrices of attention and 8 of the MLP: 2 and 1 a device.
    assert compiled.cost_analysis()["flops"] < 1.1 / 8 * alone.cost_analysis()["flops"]
    text = compiled.as_text()
    assert re.search(r" all-to-all\(", text)
    # Only the axis `data`, where gradients are whole, has its parts gathered at the end.
    assert bool(re.search(r" all-gather\(", text)) == ("data" in axes)
