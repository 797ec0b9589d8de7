"""What the backward pass keeps: the same gradients, the bytes that the price list says, and the budget obeyed."""

import contextlib
import dataclasses
import functools
import io
import math
import re

import jax
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from model import parameters
from model.build import build
from model.config import REMAT_NAMES
from model.losses import language_model_loss
from model.remat import Saving, policy, priced, within_budget
from model.sharding import MESH_AXES, ShardingRules
from tests import tiny

GPT = dataclasses.replace(tiny.GPT, num_kv_heads=2, mlp_dim=96, num_layers=3)
T5 = dataclasses.replace(GPT, architecture="encoder_decoder", positions="relative", num_layers=2, num_encoder_layers=3)
MOE = dataclasses.replace(GPT, experts=4, capacity_factor=1.25)
RULES = ShardingRules()
ONE = dict.fromkeys(MESH_AXES, 1)
ROWS, SOURCE = 4, 24


GATED = dataclasses.replace(GPT, mlp="swiglu", compute_dtype="bfloat16")
CONFIGS = [GPT, GATED, T5, MOE, dataclasses.replace(MOE, mlp="swiglu", experts_per_token=1, capacity_factor=0.0)]


def batch(config):
    source = {"source": np.ones((ROWS, SOURCE), np.int32)} if config.architecture == "encoder_decoder" else {}
    return tiny.batch(rows=ROWS) | source


def loss_of(config):
    loss_fn = language_model_loss(build(config))
    return lambda params: loss_fn(params, batch(config), jax.random.key(0)).loss


def kept(config, **axes):
    """What the forward pass hands to the backward pass, by JAX's own account: "f32[3,4,32,96] output of scan …"."""
    with jax.set_mesh(tiny.mesh(**axes)), contextlib.redirect_stdout(io.StringIO()) as printed:
        params = jax.eval_shape(lambda: parameters.init(build(config), jax.random.key(0)))
        print_saved_residuals(loss_of(config), params)
    return [line for line in printed.getvalue().splitlines() if "argument" not in line]


@functools.cache
def kept_bytes(config, **axes):
    found = [re.match(r"([a-z]+)(\d+)\[([\d,]*)\]", line) for line in kept(config, **axes)]
    sizes = [(int(match[2]), match[3]) for match in found if match]  # booleans and keys have no number of bits
    return sum(bits // 8 * math.prod(int(n) for n in shape.split(",") if n) for bits, shape in sizes)


def gradients(config):
    with jax.set_mesh(tiny.mesh()):
        params = jax.jit(lambda: parameters.init(build(config), jax.random.key(0)))()
        return jax.device_get(jax.jit(jax.grad(loss_of(config)))(params))


@pytest.fixture(scope="module")
def plain():
    return gradients(dataclasses.replace(GPT, dropout=0.1))


@pytest.mark.parametrize("change", [
    {"remat": ",".join(REMAT_NAMES), "scan_unroll": 0},
    {"remat": "query,mlp_hidden", "remat_offload": "attention,key,value"},
])  # fmt: skip
def test_gradients_are_those_without(change, plain):
    ours = gradients(dataclasses.replace(GPT, dropout=0.1, **change))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(plain))
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("name", REMAT_NAMES)
@pytest.mark.parametrize("config", CONFIGS)
def test_each_name_keeps_what_its_price_says(name, config):
    _, savings = priced(config, RULES, ONE, rows=ROWS, length=32, source_length=SOURCE)
    price = {saving.name: saving.bytes for saving in savings}[name]
    full = kept_bytes(dataclasses.replace(config, remat="full"))
    assert kept_bytes(dataclasses.replace(config, remat=name)) - full == price > 0


def test_a_pipeline_keeps_the_rows_of_every_tick():
    """Four microbatches on two stages: five ticks, of which a stage works in four."""
    config, mesh = dataclasses.replace(GPT, num_layers=2, pipeline_microbatches=4), ONE | {"stage": 2}
    _, savings = priced(config, RULES, mesh, rows=ROWS, length=32)
    full = kept_bytes(dataclasses.replace(config, remat="full"), stage=2)
    for saving in savings:
        both = kept_bytes(dataclasses.replace(config, remat=saving.name), stage=2) - full
        assert both == 2 * saving.bytes > 0, saving.name
    hidden = {saving.name: saving.bytes for saving in savings}["mlp_hidden"]
    assert hidden == 1 * (ROWS * 5 // 4) * 32 * 96 * 4  # one layer


@pytest.mark.parametrize("capacity_factor", [1.25, 0.0])
def test_experts_on_two_devices_keep_what_the_price_says(capacity_factor):
    config = dataclasses.replace(MOE, capacity_factor=capacity_factor)
    _, savings = priced(config, RULES, ONE | {"expert": 2}, rows=ROWS, length=32)
    hidden = {saving.name: saving for saving in savings}["mlp_hidden"]
    named, full = (kept_bytes(dataclasses.replace(config, remat=name), expert=2) for name in ("mlp_hidden", "full"))
    assert named - full == 2 * hidden.bytes > 0
    slots = 4 * ROWS * math.ceil(1.25 * 2 * 32 / 4)  # of all experts; without a capacity each choice is computed once
    assert hidden.flops == 2 * 3 * 32 * 96 * (slots if capacity_factor else 2 * 32 * ROWS) / 2


@pytest.mark.slow
def test_offloaded_experts_have_the_same_gradients():
    config = dataclasses.replace(MOE, num_layers=1, capacity_factor=0.0)
    plain, moved = gradients(config), gradients(dataclasses.replace(config, remat="full", remat_offload="mlp_hidden"))
    for mine, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max() + 1e-7)


def test_a_budget_buys_nothing_that_cudnn_computes_anyway():
    config = dataclasses.replace(GPT, compute_dtype="bfloat16", remat="budget", remat_bytes=1e9, attention_impl="cudnn")
    chosen = within_budget(config, RULES, ONE, rows=ROWS, length=32).remat
    assert chosen == "query,key,value,attention_output,mlp_hidden"


def test_what_is_offloaded_lies_with_the_host():
    config = dataclasses.replace(GPT, remat="full", remat_offload="mlp_hidden")
    assert [line for line in kept(config) if line.startswith("f32<host>[3,4,32,96]")], kept(config)


def test_prices_by_hand():
    """Llama-like: 3 layers, 4 rows of 32, width 32, 4 heads of 8 with 2 for keys, MLP 96 twice, in bfloat16."""
    config = dataclasses.replace(GPT, mlp="swiglu", compute_dtype="bfloat16")
    mesh = ONE | {"data": 2, "fsdp": 2, "tensor": 2}
    inputs, savings = priced(config, RULES, mesh, rows=4, length=32)
    assert inputs == 3 * 1 * 32 * 32 * 2  # one row a device, the whole width
    wide = 3 * 32 * 16  # elements of 2 heads
    assert savings == [
        Saving("query", 2 * wide, 2 * 32 * wide),
        Saving("key", wide, 32 * wide),
        Saving("value", wide, 32 * wide),
        Saving("attention", 2 * wide, 2 * 32 * wide),
        Saving("attention_output", 2 * 3 * 32 * 32, 2 * 16 * 3 * 32 * 32),
        Saving("mlp_hidden", 2 * 3 * 32 * 96, 2 * 32 * 3 * 32 * 96),
    ]


def test_the_budget_buys_most_work_a_byte_and_is_obeyed():
    """At width 32, 32 keys and 4 heads of 8, a byte of any name spares as much; longer rows make attention dear."""
    budget = dataclasses.replace(GPT, remat="budget", remat_bytes=1.0)
    inputs, savings = priced(GPT, RULES, ONE, rows=ROWS, length=32)
    price = {saving.name: saving.bytes for saving in savings}

    def chosen(extra, **changes):
        config = dataclasses.replace(budget, remat_bytes=float(inputs + extra), **changes)
        return within_budget(config, RULES, ONE, rows=ROWS, length=32)

    assert chosen(0).remat == "full" and chosen(0).remat_bytes == 0
    assert chosen(price["query"]).remat == "query"
    assert chosen(price["query"] - 1).remat == "key"  # value has no room any more
    assert chosen(sum(price.values())).remat == ",".join(REMAT_NAMES)
    long = within_budget(
        dataclasses.replace(budget, remat_bytes=float(8 * inputs + 8 * price["attention"])),
        RULES,
        ONE,
        rows=ROWS,
        length=256,
    )
    assert long.remat == "attention"
    some = chosen(price["query"] + price["mlp_hidden"] - 1)
    full = kept_bytes(dataclasses.replace(GPT, remat="full"))
    assert some.remat == "query,key,value,attention" and kept_bytes(some) - full <= price["query"] + price["mlp_hidden"]
    with pytest.raises(
        ValueError, match=f"remat_bytes is {inputs - 1:,}: the inputs of the blocks alone take {inputs:,} bytes"
    ):
        chosen(-1)
    # Two stages with four microbatches keep five of them, the first or the last of rows that nobody reads.
    staged = dataclasses.replace(budget, remat_bytes=float(inputs * 5 // 8), pipeline_microbatches=4)
    assert within_budget(staged, RULES, ONE | {"stage": 2}, rows=ROWS, length=32).remat == "full"
    with pytest.raises(ValueError, match=f"the inputs of the blocks alone take {inputs * 5 // 8:,} bytes"):
        less = dataclasses.replace(staged, remat_bytes=float(inputs * 5 // 8 - 1))
        within_budget(less, RULES, ONE | {"stage": 2}, rows=ROWS, length=32)
    assert within_budget(GPT, RULES, ONE, rows=ROWS, length=32) is GPT
    with pytest.raises(ValueError, match="only a training run knows"):
        policy(budget)


@pytest.mark.parametrize(("change", "message"), [
    ({"remat": "query,keys"}, r"use none, dots, full, budget, or some of query,.* \('keys' is none\)"),
    ({"remat": "query,query"}, "each once"),
    ({"remat": "budget"}, "remat_bytes is 0 .* such as 8e9"),
    ({"remat": "full", "remat_bytes": 1e9}, "'budget' needs"),
    ({"remat": "query", "remat_offload": "query"}, "not in model.remat"),
    ({"remat_offload": "query"}, "use remat 'full', or name"),
    ({"remat": "full", "remat_offload": "scores"}, "remat_offload is 'scores'"),
])  # fmt: skip
def test_what_means_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GPT, **change)
