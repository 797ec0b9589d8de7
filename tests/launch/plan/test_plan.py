"""Plans agree with what the compiler says, with shardings added up by hand, and refuse in time what cannot be."""

import dataclasses
import json
import math

import jax
import pytest
from ml_collections import ConfigDict

from configs import defaults
from launch.experiment import read
from launch.plan.plan import Plan, plan, stand_in
from launch.plan.topology import EMULATED
from launch.program import assemble
from model.config import flops_per_sequence
from tests import tiny
from train.mesh import place_batch


def tiny_config(**mesh: int) -> ConfigDict:
    config = defaults.get_config()
    config.model.update(num_layers=2, embed_dim=32, num_heads=4, max_length=16, vocab_size=64)
    config.data.update(tokenizer="byte")
    config.model.vocab_size = 264
    config.train.global_batch = 8
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, **mesh})
    return config


MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module", params=MESHES, ids=str)
def made(request) -> tuple[ConfigDict, Plan]:
    config = tiny_config(**request.param)
    return config, plan(config, "cpu:8")


def test_what_is_given_is_what_the_compiled_step_takes_and_what_devices_hold(made):
    config, planned = made
    program = assemble(read(config), stand_in(read(config)))
    with jax.set_mesh(program.mesh):
        compiled, _ = program.compile()
        state = program.init(0)
        batch = place_batch(tiny.batch(8, 16), program.batch_sharding)
    device, b = jax.devices()[3], planned.bytes

    def held(tree):
        return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)

    assert b["parameters"] == held(state.params)
    assert b["optimizer"] == held((state.opt_state, state.step))
    assert b["batch"] == held(batch)
    assert b["parameters"] + b["optimizer"] + b["batch"] == compiled.memory_analysis().argument_size_in_bytes
    assert b["padding"] == 0
    assert b["gradients"] == b["parameters"]  # one f32 number each
    assert b["total"] == sum(size for name, size in b.items() if name != "total")


def test_a_plan_says_what_it_is_of(made):
    config, planned = made
    assert planned.method == EMULATED and planned.fits is None and planned.hbm_bytes is None
    assert planned.num_chips == planned.num_devices == 8 and math.prod(planned.mesh.values()) == 8
    assert planned.tokens_per_step == 8 * 16 and planned.tokens == 8 * 16 * config.train.steps
    model = dataclasses.replace(read(config).model).resolved()
    assert planned.flops_per_step == 8 * flops_per_sequence(model, 16)
    assert planned.step_seconds is planned.days is planned.mfu_bound is None
    json.dumps(planned.to_dict())


def test_replicated_weights_are_those_that_no_mesh_axis_cuts():
    waste = {weight.name: weight for weight in plan(tiny_config(fsdp=8), "cpu:8").replicated}
    assert all("norm" in name or "bias" in name for name in waste)
    norm = waste["decoder/norm/scale"]
    assert (norm.bytes, norm.copies, norm.wasted) == (3 * 32 * 4, 8, 7 * 3 * 32 * 4)  # the weight, and two of AdamW
