"""Who talks to whom in one step: kinds, mesh axes and bytes of the collectives of each preset, in CPU's programs.

CPU writes a reduce-scatter as an all-reduce and a slice.
"""

import functools

import jax
import pytest

from launch.plan.collectives import Collective, collectives
from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import PRESETS
from tests import tiny
from train.mesh import batch_sharding, place_batch
from train.step import gradients

ROWS, LENGTH, WIDTH = 16, 32, 32
SCALARS = 64  # bytes of what is no array: sums of the loss and of weights


@functools.cache
def found_in(preset: str, forward: bool = False, **axes: int) -> list[Collective]:
    """Of the gradients of a tiny GPT, or of its loss alone."""
    rules, mesh = PRESETS[preset], tiny.mesh(**axes)
    with jax.set_mesh(mesh):
        model, placed = build(tiny.GPT, rules), batch_sharding(mesh, rules)
        weights = parameters.weights(model)
        cut = parameters.shardings(weights, rules, mesh)
        params = jax.tree.map(lambda w, to: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=to), weights, cut)
        loss, key = language_model_loss(model, rules), jax.random.key(0)
        if forward:
            jitted = jax.jit(lambda p, b: loss(p, b, key))
        else:
            jitted = jax.jit(lambda p, b: gradients(loss, rules, p, b, key, 1), out_shardings=(cut, None))
        compiled = jitted.lower(params, place_batch(tiny.batch(ROWS, LENGTH), placed)).compile()
    return collectives(compiled.as_text() or "", mesh)


def moved(found: list[Collective], kind: str = "", axis: str = "") -> int:
    return sum(c.bytes * c.times for c in found if kind in c.kind and (not axis or axis in c.axes))


def bytes_of(named: str = "") -> int:
    """Of all weights, or of those whose logical axes have this one."""
    weights = jax.tree.leaves(parameters.weights(build(tiny.GPT)))
    return sum(4 * weight.size for weight in weights if not named or named in weight.axes)


TABLE, POSITIONS = 64 * 32 * 4, 32 * 32 * 4
STATE = ROWS // 2 * LENGTH * WIDTH * 4  # the residual stream on a device, with two parts of the batch


def test_a_tensor_parallel_forward_pass_sums_activations():
    """Once for the look-up, twice for each layer; the data axis hears of the loss alone."""
    found = found_in("tensor", forward=True, data=2, tensor=4)
    assert {c.kind for c in found} == {"all-reduce"}
    assert moved(found, axis="data") <= SCALARS
    sums = [c for c in found if c.axes == ("tensor",) and c.bytes == STATE]
    assert sum(c.times for c in sums) == 1 + 2 * 2
    assert moved(found, axis="tensor") - (1 + 2 * 2) * STATE <= 4 * STATE // WIDTH  # of the vocabulary, for the loss


def test_sequence_parallel_gathers_activations_in_front_of_products():
    """Two for each layer, one for the head; still nothing goes over data."""
    found = found_in("sequence_parallel", forward=True, data=2, tensor=4)
    gathers = [c for c in found if c.kind == "all-gather"]
    assert {(c.axes, c.bytes) for c in gathers} == {(("tensor",), STATE)}
    assert sum(c.times for c in gathers) == 2 * 2 + 1
    assert moved(found, axis="data") <= SCALARS


def test_a_data_parallel_step_sums_gradients_once():
    """The tied table has two of them: of the look-up and of the head."""
    found = found_in("data_parallel", data=8)
    assert {(c.kind, c.axes) for c in found} == {("all-reduce", ("data",))}
    assert 0 <= moved(found) - bytes_of() - TABLE <= SCALARS


def test_fsdp_gathers_each_weight_where_it_is_used():
    """Forward and backward; the positions forward only, since a look-up needs no table to be differentiated."""
    found = found_in("fsdp", fsdp=8)
    assert {(c.kind, c.axes) for c in found} == {("all-gather", ("fsdp",)), ("all-reduce", ("fsdp",))}
    assert moved(found, "all-gather") == 2 * bytes_of("embed") - POSITIONS
    assert 0 <= moved(found, "all-reduce") - bytes_of() - TABLE <= SCALARS


@pytest.mark.parametrize("preset", ["fsdp_tensor", "tensor"])
def test_nothing_is_gathered_over_tensor_or_data(preset):
    """Neither weights nor activations; a look-up in a table whose rows are cut is a sum."""
    found = found_in(preset, data=2, fsdp=2, tensor=2)
    gathered = {c.axes for c in found if c.kind in ("all-gather", "all-to-all", "collective-permute")}
    assert gathered == ({("fsdp",)} if preset == "fsdp_tensor" else set())
