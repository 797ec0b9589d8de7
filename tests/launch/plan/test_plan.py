"""Plans agree with what the compiler says, with shardings added up by hand, and refuse in time what cannot be."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from ml_collections import ConfigDict

from launch.experiment import read
from launch.plan import topology
from launch.plan.flops import executed_flops
from launch.plan.memory import replicated
from launch.plan.plan import Plan, plan, stand_in
from launch.plan.shortage import shortage
from launch.plan.topology import COMPILED, EMULATED, find_topology
from launch.program import Program, assemble
from model.config import flops_per_sequence
from model.kernels import splash
from model.mask import MaskSpec
from model.sharding import ShardingRules
from tests import tiny
from tests.launch.plan.tiny_plans import tiny_config
from train.chips import CHIPS
from train.mesh import place_batch, single_device_mesh

MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module", params=MESHES, ids=str)
def made(request) -> tuple[ConfigDict, Plan]:
    config = tiny_config(**request.param)
    return config, plan(config, "cpu:8")


def test_what_is_given_is_what_devices_hold_and_what_the_compiled_step_takes(made):
    config, planned = made
    program = assemble(read(config), stand_in(read(config)))
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        batch = place_batch(tiny.batch(8, 16), program.batch_sharding)
    device, b = jax.devices()[3], planned.bytes

    def held(tree):
        return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)

    assert b["parameters"] == held(state.params)
    assert b["optimizer"] == held((state.opt_state, state.step))
    assert b["batch"] == held(batch)
    assert b["padding"] == 0  # the argument bytes of the compiled step, less those three
    assert b["gradients"] == b["parameters"]  # one f32 number each
    assert b["total"] == sum(size for name, size in b.items() if name != "total")


def test_a_plan_says_what_it_is_of(made):
    config, planned = made
    assert planned.method == EMULATED and planned.fits is None and planned.limit_bytes is None
    assert planned.num_chips == planned.num_devices == 8 and math.prod(planned.mesh.values()) == 8
    assert planned.tokens_per_step == 8 * 16 and planned.tokens == 8 * 16 * config.train.steps
    model = dataclasses.replace(read(config).model).resolved()
    assert planned.flops_per_step == 8 * flops_per_sequence(model, 16)
    assert planned.step_seconds is planned.days is planned.mfu_bound is None
    json.dumps(planned.to_dict())


def assembled(config):
    return assemble(read(config), stand_in(read(config)))


def test_replicated_weights_are_those_that_no_mesh_axis_cuts():
    waste = {weight.name: weight for weight in replicated(assembled(tiny_config(fsdp=8)))}
    assert all("norm" in name or "bias" in name for name in waste)
    norm = waste["decoder/norm/scale"]
    assert (norm.bytes, norm.copies, norm.wasted) == (3 * 32 * 4, 8, 7 * 3 * 32 * 4)  # the weight, and two of AdamW


def flops(config):
    program = assembled(config)
    with jax.set_mesh(program.mesh):
        return executed_flops(jax.make_jaxpr(program.step_fn)(program.target, program.abstract_batch()))


def test_recomputation_is_counted():
    """A block has 4 D^2 + 8 D^2 weights, and T scores and sums of D numbers for each of its tokens."""
    config = tiny_config(data=8)
    model = read(config).model
    once = flops(config)
    assert once == 8 * flops_per_sequence(model, 16)
    config.model.remat = "full"
    tokens, block = 8 * 16, 2 * 12 * 32**2 + 4 * 16 * 32
    # The last product of a block, the MLP's way down, is not needed again.
    assert flops(config) - once in (tokens * 2 * block, tokens * 2 * (block - 2 * 4 * 32**2))


def test_a_kernel_counts_in_each_cell_of_its_grid():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    whole, part = jax.ShapeDtypeStruct((24, 16), jnp.float32), pl.BlockSpec((8, 16), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(3,),
        in_specs=[part, pl.BlockSpec((16, 16), lambda i: (0, 0))],
        out_specs=part,
        out_shape=whole,
    )
    traced = jax.make_jaxpr(call)(whole, jax.ShapeDtypeStruct((16, 16), jnp.float32))
    assert executed_flops(traced) == 2 * 24 * 16 * 16


def test_splash_attention_executes_no_less_than_is_useful():
    """Both count all positions: 2 products forward; 5 backward, and 2 more since each of its two kernels makes scores.

    Only traced: nothing here runs a TPU's kernel.
    """
    B, H, T, K = 2, 4, 256, 64
    one = jax.ShapeDtypeStruct((B, H, T, K), jnp.bfloat16)

    def loss(q_BHTK, k_BHTK, v_BHTK):
        return splash(q_BHTK, k_BHTK, v_BHTK, MaskSpec(causal=True), 1.0, 0.0, ShardingRules()).sum()

    with jax.set_mesh(single_device_mesh()):
        forward = executed_flops(jax.make_jaxpr(loss)(one, one, one))
        both = executed_flops(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(one, one, one))
    product = 2 * B * H * T * T * K
    assert forward == 2 * product and both == 9 * product + 2 * B * H * T * K  # o times its gradient, summed over K


def test_vocabularies_without_a_corpus():
    config = tiny_config(data=8)
    config.data.tokenizer, config.data.tokenizer_vocab, config.model.vocab_size = "sentencepiece", 300, 0
    assert stand_in(read(config)).vocab_size == 300
    config.model.vocab_size, config.data.tokenizer = 100, "char"
    assert stand_in(read(config)).vocab_size == 100
    config.data.tokenizer, config.data.tokenizer_vocab = "sentencepiece", 130_000
    assert stand_in(read(config)).vocab_size == 130_000


def test_slices_reach_emulated_devices_and_stay_with_a_mesh_of_the_command_line():
    with pytest.raises(ValueError, match="2 slices do not fit mesh.data 1 and mesh.stage 1"):
        plan(tiny_config(), "h100:4", mesh={"fsdp": 8}, slices=2)
    config = tiny_config()
    config.mesh.slices = 4
    with pytest.raises(ValueError, match="4 slices do not fit mesh.data 2"):
        plan(config, "cpu:8", mesh={"data": 2, "fsdp": 4})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v4:2x2x1"])
def test_a_step_compiled_for_a_real_tpu(name):
    pytest.importorskip("libtpu")
    config = tiny_config(fsdp=2, tensor=2)
    config.model.update(embed_dim=256, head_dim=64, max_length=128, compute_dtype="bfloat16")
    planned = plan(config, name)
    assert planned.method == COMPILED and planned.num_chips == 4 and planned.fits
    b = planned.bytes
    given = b["parameters"] + b["optimizer"] + b["batch"]
    # Tiles are 8 × 128: scales and biases of the tiny model take more, never less, and no more than a tile each.
    assert 0 <= b["padding"] <= 0.25 * given
    assert b["total"] == sum(size for kind, size in b.items() if kind != "total")
    assert {axis for c in planned.collectives for axis in c.axes} == {"fsdp", "tensor"}
    assert planned.step_seconds and planned.serial_step_seconds and planned.mfu_bound
    assert planned.step_seconds <= planned.serial_step_seconds and 0 < planned.mfu_bound < 1


@pytest.mark.slow
def test_slices_of_a_real_tpu_talk_over_the_network():
    """Gradients of all weights go between the two slices once a step, in bfloat16 or f32, a quarter on each device."""
    pytest.importorskip("libtpu")
    config = tiny_config(data=8)
    config.model.update(embed_dim=256, head_dim=64, max_length=128, compute_dtype="bfloat16")
    planned = plan(config, "v5e:2x2", slices=2)
    assert planned.num_chips == 8 and planned.mesh["data"] == 8
    between = [c for c in planned.collectives if {place // 4 for place in c.group} == {0, 1}]
    sent, parameters = sum(c.bytes * c.times for c in between), planned.bytes["parameters"]
    assert {c.kind for c in between} == {"all-reduce"} and {c.axes for c in between} == {("data",)}
    assert parameters / 2 / 4 <= sent <= 1.1 * parameters
    inside = [c for c in planned.collectives if c not in between]
    assert inside and all(len(c.group) <= 4 for c in inside)
    assert planned.collective_seconds["data"] >= sent / CHIPS["v5e"].network_bandwidth
    assert planned.mfu_bound and 0 < planned.mfu_bound < 1


@pytest.mark.slow
def test_a_tpu_sums_the_gradients_of_look_up_and_head_in_one():
    pytest.importorskip("libtpu")
    config = tiny_config(data=4)
    config.model.update(num_layers=1, embed_dim=256, head_dim=64, max_length=128, vocab_size=4096)
    config.model.compute_dtype = "bfloat16"
    planned = plan(config, "v5e:2x2")
    table, parameters = 2 * 4096 * 256, planned.bytes["parameters"] // 2  # in bfloat16
    sent = sum(c.bytes * c.times for c in planned.collectives)
    assert 0 <= sent - parameters < table // 8


def test_a_step_that_does_not_fit_is_a_plan_too(monkeypatch):
    def refuse(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.50G of 15.75G hbm.")

    monkeypatch.setattr(Program, "compile", refuse)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    config = tiny_config(data=8)
    config.model.compute_dtype = "bfloat16"
    planned = plan(config, "v5e:2x4")
    assert planned.fits is False and planned.problem == "Used 20.50G of 15.75G hbm."
    # "Used" has the arguments in it.
    assert planned.bytes["total"] == round(20.5 * 2**30) and planned.bytes["parameters"] and planned.compute_seconds


def test_what_fits_is_what_the_compiler_lets_a_program_take(monkeypatch):
    """16 GiB are on the data sheet of v5e, 15.75 can be used: what is between does not fit."""
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    nothing = jax.jit(lambda x: x).lower(1.0).compile()
    monkeypatch.setattr(Program, "compile", lambda self: (nothing, 0.1))
    monkeypatch.setattr("launch.plan.plan.counted_bytes", lambda *_: {"gradients": int(15.8 * 2**30), "activations": 0})
    planned = plan(tiny_config(data=8), "v5e:2x4")
    assert planned.limit_bytes == 15.75 * 2**30 < planned.bytes["total"] < CHIPS["v5e"].hbm_bytes
    assert planned.fits is False
    # It computes in float32, of which no data sheet gives the peak.
    assert planned.compute_seconds is planned.step_seconds is planned.mfu_bound is planned.days is None
    assert planned.memory_seconds and planned.memory_seconds > 0 and planned.flops_per_step


@pytest.mark.parametrize(
    ("name", "layout"), [("v4", "2x2x1"), ("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2"), ("tpu7x", "2x2x1")]
)
def test_usable_memory_is_what_the_compiler_says(name, layout):
    """A program of 320 GiB, half of them its argument, is refused on each chip with what there is."""
    pytest.importorskip("libtpu")
    at = jax.sharding.SingleDeviceSharding(find_topology(f"{name}:{layout}").devices[0])
    x = jax.ShapeDtypeStruct((40 * 2**30,), jnp.float32, sharding=at)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x * 2).lower(x).compile()
    told = shortage(refused.value)
    assert told and told.asked == 320 * 2**30 and told.there == CHIPS[name].limit_bytes
