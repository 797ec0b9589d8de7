"""Experts on any mesh: the loss and gradients of one device, and tokens that travel by all-to-all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.plan.collectives import collectives
from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train.mesh import batch_sharding, place_batch
from train.step import gradients

LOSSES = {"load_balance_loss": 1.0, "router_z_loss": 0.1}  # enough to see them in the gradients
EXPERTS = {"num_layers": 1, "experts": 8, "init_std": 0.3, **LOSSES}
FORMS = {
    "limited": dataclasses.replace(tiny.GPT, capacity_factor=1.0, **EXPERTS),
    "dropless": dataclasses.replace(tiny.GPT, capacity_factor=0.0, **EXPERTS),
    "gated": dataclasses.replace(tiny.LLAMA, capacity_factor=0.0, **EXPERTS),
}
RULES = ShardingRules()


def computed(form, mesh, rules=RULES, microbatches=1):
    """Gradients, sums and the compiled program, on a mesh."""
    with jax.set_mesh(mesh):
        model = build(FORMS[form], rules)
        params = tiny.start(FORMS[form], mesh, rules)
        batch = place_batch(tiny.batch(length=16), batch_sharding(mesh, rules))
        loss = language_model_loss(model, rules)
        step = jax.jit(
            lambda params, batch: gradients(loss, rules, params, batch, jax.random.key(1), microbatches),
            out_shardings=(jax.tree.map(lambda x: x.sharding, params), None),
        )
        compiled = step.lower(params, batch).compile()
        return (*jax.device_get(compiled(params, batch)), compiled.as_text() or "")


@pytest.fixture(scope="module")
def on_one_device():
    return functools.cache(lambda form: computed(form, tiny.mesh()))


def same(found, expected):
    (grads, sums, _), (grads_one, sums_one, _) = found, expected
    weight = sums_one.weight
    np.testing.assert_allclose(sums.loss / weight, sums_one.loss / weight, atol=1e-5)
    metrics, metrics_one = sums.routing.metrics(weight), sums_one.routing.metrics(weight)
    for name in metrics_one:
        np.testing.assert_allclose(metrics[name], metrics_one[name], rtol=1e-5, err_msg=name)
    named = parameters.named_leaves(grads_one)
    for name, grad in parameters.named_leaves(grads).items():
        np.testing.assert_allclose(grad / weight, named[name] / weight, atol=1e-6, err_msg=name)


# Gradients on more meshes are in test_matrix.
CASES = [
    ("limited", {"expert": 2, "data": 2, "context": 2}),
    ("dropless", {"expert": 4, "data": 2}),
    pytest.param("limited", {"expert": 8}, marks=pytest.mark.slow),
    pytest.param("dropless", {"expert": 8}, marks=pytest.mark.slow),
    pytest.param("gated", {"expert": 2, "tensor": 2, "context": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("form", "axes"), CASES, ids=str)
def test_a_mesh_changes_nothing(form, axes, on_one_device):
    mesh = tiny.mesh(**axes)
    found = computed(form, mesh)
    same(found, on_one_device(form))
    exchanged = [c for c in collectives(found[2], mesh) if c.kind == "all-to-all" and c.axes == ("expert",)]
    # Tokens go to their experts and come back, and so do their gradients.
    assert len(exchanged) == (4 if form == "limited" else 0), exchanged


@pytest.mark.parametrize("form", ["limited", pytest.param("dropless", marks=pytest.mark.slow)])
def test_microbatches_change_nothing(form, on_one_device):
    """Rows differ in predicted tokens and in how even their loads are: a mean of means would differ."""
    same(computed(form, tiny.mesh(), microbatches=4), on_one_device(form))


@pytest.mark.slow
@pytest.mark.parametrize("rules", [{"batch": ("data", "fsdp")}, {"experts": None}, {"experts": "fsdp", "embed": None}])
def test_other_rules_change_nothing(rules, on_one_device):
    """A batch that the axis of the experts does not cut; experts that are whole; experts on another axis."""
    found = computed("dropless", tiny.mesh(expert=2, fsdp=2), dataclasses.replace(RULES, **rules))
    same(found, on_one_device("dropless"))


@pytest.mark.slow
def test_an_axis_of_stages_that_cuts_the_batch_alone_changes_nothing(on_one_device):
    found = computed("dropless", tiny.mesh(expert=2, stage=2), dataclasses.replace(RULES, layers=None))
    same(found, on_one_device("dropless"))


@pytest.mark.slow
def test_losses_of_the_router_teach_it(on_one_device):
    """The gradient of the router is that of the loss and of what it adds: finite differences of the objective."""
    config, mesh = FORMS["dropless"], tiny.mesh()
    with jax.set_mesh(mesh):
        model = build(config)
        params = parameters.init(model, jax.random.key(0))
        batch, loss = jax.tree.map(jnp.asarray, tiny.batch(length=16)), language_model_loss(model)
        kernel = params["decoder"]["layers"]["mlp"]["router"]["kernel"]
        way = jnp.asarray(np.random.default_rng(0).normal(size=kernel.shape), jnp.float32)

        @jax.jit
        def moved(step):
            router = {"kernel": kernel + step * way}
            layers = {**params["decoder"]["layers"], "mlp": {**params["decoder"]["layers"]["mlp"], "router": router}}
            sums = loss({**params, "decoder": {**params["decoder"], "layers": layers}}, batch, jax.random.key(1))
            return sums.objective, sums.loss

        (up, up_loss), (down, down_loss) = moved(1e-4), moved(-1e-4)
    slope = jnp.sum(on_one_device("dropless")[0]["decoder"]["layers"]["mlp"]["router"]["kernel"] * way)
    np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=0.02)
    # What is added is seen: it is well above what the line before tolerates.
    assert abs(slope - (up_loss - down_loss) / 2e-4) > 0.05 * abs(slope)
