"""Configs: each leaf is read, each leaf that is read exists, each shipped file is a valid experiment."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import jax
import pytest

from configs import defaults
from data.config import DataConfig
from data.objectives.objectives import ObjectiveConfig, special_names
from launch import experiment
from launch.leaves import flat
from model import parameters
from model.build import build
from model.config import ModelConfig, flops_per_sequence
from model.sharding import ShardingRules
from train.checkpoint import CheckpointConfig
from train.checks import ChecksConfig
from train.loop import TrainConfig
from train.mesh import MeshConfig
from train.optimizers import OptimizerConfig
from train.records import RunConfig

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "defaults"))
SECTIONS = {
    "run": RunConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "checks": ChecksConfig,
    "mesh": MeshConfig,
}


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_leaf_is_a_field_and_every_field_a_leaf(section):
    assert set(defaults.get_config()[section]) == {f.name for f in dataclasses.fields(SECTIONS[section])}


def test_sharding_leaves_are_the_rules():
    assert set(defaults.get_config().sharding) == {f.name for f in dataclasses.fields(ShardingRules)} | {"preset"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_read_outside_its_own_checks(section):
    cls = SECTIONS[section]
    read: set[str] = set()
    for folder in ("model", "data", "train", "evaluation", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(_without_post_init(ast.parse(path.read_text(encoding="utf-8")))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    by_axis_name = {"mesh": set(SECTIONS["mesh"].__dataclass_fields__)}  # MeshConfig.sizes reads them by MESH_AXES
    unread = {f.name for f in dataclasses.fields(cls)} - read - by_axis_name.get(section, set())
    assert not unread


def _without_post_init(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own_checks = ("__post_init__", "_check")
            node.body = [n for n in node.body if not getattr(n, "name", "").startswith(own_checks)] or [ast.Pass()]
    return tree


def test_model_defaults_stand_in_one_voice():
    config = dict(defaults.get_config().model)
    config["vocab_size"] = ModelConfig().vocab_size  # 0 there: the tokeniser's
    assert ModelConfig(**config) == ModelConfig()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_is_a_valid_experiment(name):
    config = load(name)
    read = experiment.read(config)
    assert config.run.dir == f"runs/{name}"
    leaves = {leaf for leaf in flat(config) if not leaf.startswith("data.mixture.")}  # those of `defaults.source`
    assert leaves == set(flat(defaults.get_config()))
    model = dataclasses.replace(read.model, vocab_size=read.model.vocab_size or 1).resolved()
    assert read.model.head_dim or model.head_dim * model.num_heads == model.embed_dim


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_the_command_and_the_expectation(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"tessera train --config=configs/{name}.py" in module.__doc__
    expect = load(name).expect
    for value in (expect.loss, expect.bits_per_byte):
        assert value is None or f"{value:.2f}" in module.__doc__
    if name.endswith("_demo") or name == "gpt_char":  # the small ones were run, and say where
        assert expect.machine and expect.minutes and (expect.loss or expect.bits_per_byte)
    if not expect.machine:
        assert "ot run" in module.__doc__  # and the others say that they were not


@pytest.mark.parametrize(
    ("name", "published", "vocab"),
    [
        ("gpt2_124m", 124_439_808, 50_257),
        ("gpt2_355m", 354_823_168, 50_257),
        ("gpt2_774m", 774_030_080, 50_257),
        ("gpt2_1558m", 1_557_611_200, 50_257),
        ("gpt_7b", 6_738_415_616, 32_000),
        ("gpt_13b", 13_015_864_320, 32_000),
        ("gpt_70b", 68_976_648_192, 32_000),
        ("llama3_8b", 8_030_261_248, 128_256),
        ("bert_base", 109_514_298, 30_522),  # with the masked-LM head
        ("bert_large", 335_174_458, 30_522),
        ("bert_chinese", 102_290_312, 21_128),
        ("t5_small", 76_961_152, 32_128),
        ("t5_base", 247_577_856, 32_128),
        ("t5_large", 783_150_080, 32_128),
        ("t5_1_0_base", 222_903_552, 32_128),
    ],
)
def test_parameter_counts_are_the_published_ones(name, published, vocab):
    model = experiment.read(load(name)).model
    model = dataclasses.replace(model, vocab_size=model.vocab_size or vocab)
    weights = jax.tree.leaves(parameters.weights(build(model)))
    padding = (model.vocab_size - vocab) * model.embed_dim
    assert sum(weight.size for weight in weights) - padding == published


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_trained_by_default_fits_the_model(name):
    read = experiment.read(load(name))
    if read.data.tokenizer == "sentencepiece" and read.model.vocab_size:
        new = [special for special in special_names(read.objective) if special not in ("eos", "unk")]
        assert read.data.tokenizer_vocab + len(new) <= read.model.vocab_size


def test_flops_per_sequence_of_gpt2():
    # 6 * (12 * 12 * 768^2 + 50304 * 768) + 12 * 12 * 768 * 1024 a token, by hand
    assert flops_per_sequence(ModelConfig(), 1024) == 1024 * (6 * (84_934_656 + 38_633_472) + 113_246_208)


def test_flops_per_sequence_of_an_encoder_decoder():
    model = ModelConfig(
        architecture="encoder_decoder", vocab_size=10, num_layers=1, embed_dim=4, num_heads=2, mlp_dim=8
    )
    # Encoder, 3 tokens: 4 D^2 + 2 D F; decoder, 5 tokens: the same, query and output of cross-attention, the output;
    # keys and values of cross-attention: 3 tokens. Attended: 3^2 + 5^2 + 3 * 5.
    products = 3 * (64 + 64) + 5 * (64 + 64 + 32 + 40) + 3 * 32
    assert flops_per_sequence(model, 5, 3) == 6 * products + 12 * 4 * (9 + 25 + 15)


def test_flops_per_sequence_of_an_lstm():
    model = ModelConfig(architecture="lstm", vocab_size=10, num_layers=2, embed_dim=4, num_heads=1)
    assert flops_per_sequence(model, 3) == 6 * 3 * (2 * 2 * 4 * 16 + 40)


@pytest.mark.parametrize(
    ("leaf", "value", "says"),
    [
        ("model.num_heads", 7, r"embed_dim 768 is not divisible by model.num_heads 7.*\b6, 8\b"),
        ("model.positions", "learnt", "learned, sinusoidal, relative, rotary, alibi, none"),
        ("model.dropout", 1.0, "below 1"),
        ("model.num_kv_heads", 5, r"num_heads 12 is not divisible by model.num_kv_heads 5"),
        ("optimizer.name", "adam", "adamw, sgd, adafactor, lion"),
        ("optimizer.schedule", "cosin", "cosine"),
        ("train.global_batch", 0, "at least 1"),
        ("checkpoint.keep_last", 0, "cannot resume"),
        ("sharding.embed", "tensr", "the mesh axes are data, stage, fsdp, tensor"),
        ("sharding.preset", "zero3", "data_parallel, fsdp, tensor, fsdp_tensor"),
        ("seed", -1, "0 to 4294967295"),
        ("data.held_out", 1.5, "held_out"),
    ],
)
def test_bad_values_say_what_would_work(leaf, value, says):
    config = defaults.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({leaf: value})
    with pytest.raises(ValueError, match=says):
        experiment.read(config)


def test_wrong_type_names_field_value_and_type():
    with pytest.raises(ValueError, match=re.escape("train.steps is '5', a str: it must be int")):
        experiment.section(TrainConfig, "train", {**defaults.get_config().train, "steps": "5"})
