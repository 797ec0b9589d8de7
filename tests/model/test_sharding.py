"""Rules: logical axes to mesh axes, and the mistakes that they refuse."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from model import parameters
from model.build import build
from model.sharding import PRESETS, ShardingRules, parse_axes
from tests import tiny


def test_spec_of_a_weight_and_of_an_activation():
    rules = ShardingRules()
    assert rules.spec("layers", "embed", "heads", "head_dim") == P("stage", "fsdp", "tensor", None)
    assert rules.spec("batch", "length", "residual") == P(("stage", "data", "fsdp", "expert"), "context", None)


def test_a_typo_is_an_attribute_error():
    with pytest.raises(AttributeError, match="embd"):
        ShardingRules().spec("embd")


def test_two_dimensions_on_one_mesh_axis_raise():
    with pytest.raises(ValueError, match="'embed' and 'mlp'.*'tensor'"):
        ShardingRules(embed="tensor").spec("embed", "mlp")


def test_an_unknown_mesh_axis_raises():
    with pytest.raises(ValueError, match="'model'.*data, stage, fsdp, tensor, context, expert"):
        ShardingRules(embed="model")


def test_a_residual_stream_that_is_cut_less_than_attention_raises():
    with pytest.raises(ValueError, match="sequence is 'tensor' and sharding.length 'context'"):
        ShardingRules(sequence="tensor")


def test_parse_axes():
    assert parse_axes("data, fsdp") == ("data", "fsdp")
    assert parse_axes("tensor") == "tensor"
    assert parse_axes("") is None


def test_a_constraint_without_a_mesh_raises():
    with pytest.raises(RuntimeError, match="set_mesh"):
        ShardingRules().constrain(jnp.zeros((2, 2)), "batch", "length")


@pytest.mark.parametrize("config", [tiny.GPT, tiny.LLAMA], ids=["gpt", "llama"])
def test_every_weight_has_a_rule_for_every_axis(config):
    for preset in PRESETS.values():
        for weight in jax.tree.leaves(parameters.weights(build(config, preset))):
            assert len(preset.spec(*weight.axes)) == len(weight.shape)


def test_a_size_that_the_mesh_cannot_cut_says_what_would_work():
    weights = parameters.weights(build(tiny.LLAMA))
    with pytest.raises(
        ValueError, match=r"'kv_heads' dimension 2 is not divisible by 8.*mesh axis of 1 or 2.*sharding.kv_heads"
    ):
        parameters.shardings(weights, ShardingRules(heads=None, mlp=None, vocab=None), tiny.mesh(tensor=8))


def test_constraints_are_in_the_lowered_program():
    # Per layer: query, key, value, the heads put together, MLP width, and of two residuals way in, way out and sum;
    # outside: two tables and what is looked up in them, the embeddings, the last norm and the logits.
    model = build(tiny.GPT)
    with jax.set_mesh(tiny.mesh(data=2, tensor=2)):
        params = jax.eval_shape(lambda: jax.tree.map(lambda w: jnp.zeros(w.shape), parameters.weights(model)))
        lowered = jax.jit(lambda p, ids: model.apply({"params": p}, ids).logits).lower(params, jnp.zeros((4, 8), int))
    assert lowered.as_text().count("sdy.sharding_constraint") == 18
