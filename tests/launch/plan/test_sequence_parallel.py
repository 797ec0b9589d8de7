"""What a compiler for TPU makes of norms and residual sums that are cut along the length (Korthikanti et al. 2022)."""

import collections

import jax
import pytest

from launch.experiment import read
from launch.plan.collectives import found_in
from launch.plan.hlo import parse
from launch.plan.plan import stand_in
from launch.plan.topology import find_topology
from launch.program import assemble
from tests.launch.plan.tiny_plans import tiny_config

LAYERS, ACTIVATION = 2, 4 * 128 * 256 * 2  # bytes of x_BTD in bf16


def in_the_layers(preset: str) -> dict[str, int]:
    """How often whole activations go over the wires in the blocks of one step, by kind; whatever else goes there."""
    config = tiny_config(tensor=4)
    config.model.update(num_layers=LAYERS, embed_dim=256, max_length=128, compute_dtype="bfloat16")
    config.model.update(norm="rms", bias="none", positions="rotary", attention_impl="xla")
    config.train.global_batch = 4
    config.sharding.preset = preset
    experiment = read(config)
    program = assemble(experiment, stand_in(experiment), find_topology("v5e:2x2").devices)
    with jax.set_mesh(program.mesh):
        compiled, _ = program.compile()
    found = collections.Counter()
    for one in found_in(parse(compiled.as_text()), program.mesh):
        if "/layers/" in one.where:
            found[one.kind if one.bytes == ACTIVATION else f"{one.kind} of {one.bytes} bytes"] += one.times
    return dict(found)


@pytest.mark.slow
def test_each_sum_over_the_tensor_axis_becomes_a_reduce_scatter_and_an_all_gather():
    """Two sums a layer, forward and backward. An all-reduce is the two in one: as many bytes go over the wires."""
    pytest.importorskip("libtpu")
    assert in_the_layers("fsdp_tensor") == {"all-reduce": 4 * LAYERS}
    assert in_the_layers("sequence_parallel") == {"reduce-scatter": 4 * LAYERS, "all-gather": 4 * LAYERS}
