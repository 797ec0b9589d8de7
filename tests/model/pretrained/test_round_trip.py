"""Published models in and out again: every tensor to the bit, on any sharding; `transformers` reads what we write."""

import dataclasses
import json
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.pretrained.export import export
from model.pretrained.safetensors_files import Tensor, WeightsError
from model.pretrained.weights import load_weights, read_config
from model.sharding import PRESETS, ShardingRules
from tests import tiny
from tests.model.pretrained import models

transformers, torch = models.transformers, models.torch


def load(folder, config=None, rules=None, mesh=None, **options):
    config = config or read_config(folder)[0]
    weights = parameters.weights(build(config))
    shardings = parameters.shardings(weights, rules or ShardingRules(), mesh or tiny.mesh())
    return load_weights(folder, config, weights, shardings, **options)


def same(a, b):
    leaves = parameters.named_leaves(b)
    for path, leaf in parameters.named_leaves(a).items():
        assert leaf.dtype == leaves[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(leaves[path]), err_msg=path)


@pytest.mark.parametrize("kind", models.MODELS)
def test_every_tensor_comes_back(kind, tmp_path):
    model = models.save(kind, tmp_path / "theirs")
    config, _ = read_config(tmp_path / "theirs")
    params, report = load(tmp_path / "theirs")
    published = models.tensors(tmp_path / "theirs")
    assert set(report.loaded) == set(published)
    assert config.tied_output == ("lm_head.weight" not in published)
    assert not any([report.missing, report.unused, report.repeated, report.ignored, report.rounded])
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(x.size for x in published.values())

    export(params, config, tmp_path / "ours", special_ids={"bos": 1, "eos": 2, "pad": 0})
    again = models.tensors(tmp_path / "ours")
    assert again.keys() == published.keys()
    for name, array in published.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)

    read, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, read.state_dict()[name]), name
    config_again, _ = read_config(tmp_path / "ours")
    assert config_again.resolved() == config.resolved()
    same(params, load(tmp_path / "ours")[0])


@pytest.mark.parametrize("rules", ["data_parallel", "fsdp", "tensor", "fsdp_tensor", "stages"])
def test_every_sharding_holds_the_same_weights(rules, tmp_path):
    models.save("llama", tmp_path)
    one, _ = load(tmp_path)
    config = dataclasses.replace(read_config(tmp_path)[0], vocab_size=24)
    meshes = {"fsdp": {"data": 2, "fsdp": 4}, "stages": {"stage": 2, "tensor": 3}}
    mesh = tiny.mesh(**meshes.get(rules, {"data": 2, "tensor": 3}))
    rules = PRESETS["fsdp_tensor" if rules == "stages" else rules]
    params, _ = load(tmp_path, config, rules, mesh)
    table = np.asarray(params["embedding"]["embedding"])
    assert (table[19:] == 0).all() and (np.asarray(params["head"]["output"]["kernel"])[:, 19:] == 0).all()
    params["embedding"]["embedding"] = table[:19]
    params["head"]["output"]["kernel"] = np.asarray(params["head"]["output"]["kernel"])[:, :19]
    same(one, params)


def test_no_more_than_two_tensors_are_in_memory(tmp_path, monkeypatch):
    models.save("llama", tmp_path / "theirs")
    alive, most, read = weakref.WeakSet(), [0], Tensor.read

    class Held:
        """Lives as long as the views of one tensor."""

    def counted(self):
        array = read(self).view(Counted)
        array.held = Held()
        alive.add(array.held)
        most[0] = max(most[0], len(alive))
        return array

    class Counted(np.ndarray):
        def __array_finalize__(self, other):
            self.held = getattr(other, "held", None)

    monkeypatch.setattr(Tensor, "read", counted)
    load(tmp_path / "theirs")
    assert most[0] <= 2  # the one that is read, and the one before it until then


def test_padded_vocabulary_is_cut_again(tmp_path):
    models.save("bert-mlm", tmp_path / "theirs")
    config = dataclasses.replace(read_config(tmp_path / "theirs")[0], vocab_size=32)
    params, _ = load(tmp_path / "theirs", config, mesh=tiny.mesh(fsdp=4, tensor=1))
    export(params, config, tmp_path / "ours", vocab_size=19)
    published, again = models.tensors(tmp_path / "theirs"), models.tensors(tmp_path / "ours")
    assert published.keys() == again.keys() and read_config(tmp_path / "ours")[0].vocab_size == 19
    for name, array in published.items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(WeightsError, match="has 19 tokens, the model 16: set vocab_size to 19"):
        load(tmp_path / "theirs", dataclasses.replace(config, vocab_size=16))
    with pytest.raises(WeightsError, match="vocab_size is 33: use 1 to 32"):
        export(params, config, tmp_path / "no", vocab_size=33)


def test_shards_and_their_index(tmp_path):
    models.save("gpt2", tmp_path / "theirs")
    params, _ = load(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")[0]
    export(params, config, tmp_path / "ours", max_shard_bytes=4_000)
    files = sorted(tmp_path.glob("ours/*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 7_000 for file in files)
    listed = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert listed["metadata"]["total_size"] == sum(x.nbytes for x in models.tensors(tmp_path / "ours").values())
    same(params, load(tmp_path / "ours")[0])
    _, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(WeightsError, match="already holds model-00001-of-"):
        export(params, config, tmp_path / "ours")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_into_f32_is_exact(dtype, tmp_path):
    models.make("t5").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    params, report = load(tmp_path)
    array = np.asarray(params["decoder"]["layers"]["mlp"]["up"]["kernel"][1])
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert array.dtype == np.float32 and not report.rounded
    np.testing.assert_array_equal(array.T, theirs["decoder.block.1.layer.2.DenseReluDense.wi.weight"].numpy())


def test_f32_into_bf16_rounds_and_says_so_and_bf16_comes_back(tmp_path):
    models.save("gpt2", tmp_path / "theirs")
    config = dataclasses.replace(read_config(tmp_path / "theirs")[0], param_dtype="bfloat16")
    params, report = load(tmp_path / "theirs", config)
    assert report.rounded == report.loaded and "rounded" in report.table()
    table = models.tensors(tmp_path / "theirs")["transformer.wte.weight"]
    np.testing.assert_array_equal(np.asarray(params["embedding"]["embedding"]), table.astype(ml_dtypes.bfloat16))
    export(params, config, tmp_path / "ours")
    again, report = load(tmp_path / "ours", config)
    same(params, again)
    assert not report.rounded
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "bfloat16"


def test_f64_and_integers_are_refused(tmp_path):
    models.make("gpt2").double().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is float64: weights are float32, float16, bfloat16"):
        load(tmp_path)


def rewrite(folder, change):
    """Applies `change` to the tensors of a saved model."""
    from safetensors.numpy import save_file

    arrays = models.tensors(folder)
    change(arrays)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})


def test_names_of_old_files(tmp_path):
    models.save("bert-mlm", tmp_path)
    expected, _ = load(tmp_path)

    def change(arrays):
        for name in list(arrays):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            arrays[new] = arrays.pop(name)
        arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
        arrays["bert.embeddings.position_ids"] = np.arange(16)
        arrays["cls.seq_relationship.bias"] = np.zeros(2, np.float32)

    rewrite(tmp_path, change)
    params, report = load(tmp_path)
    same(expected, params)
    assert report.repeated == ["cls.predictions.decoder.weight"]
    assert report.ignored == ["bert.embeddings.position_ids"]
    assert report.unused == ["cls.seq_relationship.bias"]
    assert "unused        1  cls.seq_relationship.bias" in report.table()


def test_a_prefix_may_be_missing_and_masks_are_no_weights(tmp_path):
    models.save("gpt2", tmp_path)
    expected, _ = load(tmp_path)

    def change(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = arrays["h.1.attn.masked_bias"] = np.ones(1, np.float32)

    rewrite(tmp_path, change)
    params, report = load(tmp_path)
    same(expected, params)
    assert report.ignored == ["h.0.attn.bias", "h.1.attn.masked_bias"] and not report.unused


def test_a_repeated_tensor_stands_for_the_one_that_it_repeats(tmp_path):
    models.save("t5", tmp_path)
    expected, _ = load(tmp_path)
    rewrite(tmp_path, lambda arrays: arrays.update({"encoder.embed_tokens.weight": arrays.pop("shared.weight")}))
    same(expected, load(tmp_path)[0])


def test_an_untied_matrix_never_stands_for_the_embedding(tmp_path):
    models.save("llama", tmp_path)
    rewrite(tmp_path, lambda arrays: arrays.pop("model.embed_tokens.weight"))
    with pytest.raises(WeightsError, match=r"lacks 1 tensors.*embedding/embedding \(model.embed_tokens.weight\)"):
        load(tmp_path)


def test_a_tied_matrix_that_differs_is_refused(tmp_path):
    models.save("llama-3", tmp_path)
    rewrite(tmp_path, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"] + 1}))
    with pytest.raises(WeightsError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load(tmp_path)


def test_missing_tensors_are_all_listed(tmp_path):
    models.save("qwen2", tmp_path)

    def change(arrays):
        del arrays["model.norm.weight"], arrays["model.layers.1.self_attn.q_proj.bias"]

    rewrite(tmp_path, change)
    with pytest.raises(WeightsError, match=r"lacks 2 tensors.*layers.1.self_attn.q_proj.bias.*model.norm.weight"):
        load(tmp_path)


def test_a_wrong_shape_is_refused(tmp_path):
    models.save("gpt2", tmp_path)
    config = dataclasses.replace(read_config(tmp_path)[0], mlp_dim=40)
    with pytest.raises(
        WeightsError, match=r"c_proj.weight has shape \(48, 12\).*down/kernel \(2, 40, 12\) needs \(40, 12\)"
    ):
        load(tmp_path, config)


@pytest.mark.parametrize("kind", ["bert-pretraining", "roberta-mlm"])
def test_a_new_head_stays_to_be_initialised(kind, tmp_path):
    models.save(kind, tmp_path)
    config = dataclasses.replace(read_config(tmp_path)[0], head="classification", num_labels=7)
    with pytest.raises(WeightsError, match="head/classifier/kernel"):
        load(tmp_path, config)
    params, report = load(tmp_path, config, allow_missing_head=True)
    new = ["head/classifier/bias", "head/classifier/kernel"]
    assert report.missing == new if kind.startswith("bert") else [*new, "head/pooler/bias", "head/pooler/kernel"]
    assert isinstance(params["head"]["classifier"]["kernel"], jax.ShapeDtypeStruct)
    assert report.unused  # the old head
    with pytest.raises(WeightsError, match="head/transform/kernel"):  # this one is no new head
        load_config = dataclasses.replace(config, head="masked_lm", num_labels=0)
        rewrite(tmp_path, lambda a: [a.pop(name) for name in list(a) if name.startswith(("cls.", "lm_head."))])
        load(tmp_path, load_config, allow_missing_head=True)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"logits_softcap": 30.0}, "model.logits_softcap is 30.0"),
        ({"positions": "alibi"}, "none of the published families"),
        ({"bias": "none"}, "model.bias is 'none'"),
        ({"mlp": "swiglu"}, "model.mlp is 'swiglu'"),
    ],
)
def test_what_no_family_has_is_not_exported(changes, error, tmp_path):
    config = dataclasses.replace(tiny.GPT, **changes)
    params = parameters.weights(build(config))
    with pytest.raises(WeightsError, match=error):
        export(params, config, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_parameters_of_another_config_are_not_exported(tmp_path):
    params = parameters.weights(build(tiny.GPT))
    with pytest.raises(WeightsError, match="not those of the config"):
        export(params, dataclasses.replace(tiny.GPT, num_layers=3), tmp_path / "ours")
