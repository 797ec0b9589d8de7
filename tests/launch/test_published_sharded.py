"""A published model and a run on many devices: each holds its share, and the answers are those of one device."""

import dataclasses

import jax
import numpy as np
import pytest

import tessera
from data.tokenizers.tokenizer import ByteTokenizer
from model.build import build
from model.ngram_table import count_ngrams
from model.parameters import named_leaves, shardings, weights
from model.sharding import ShardingRules
from tests import tiny
from tests.launch.published_models import TEXT, make, make_run
from train.records import RunError

WHOLE_VOCAB = ShardingRules(vocab=None)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Llama whose vocabulary is odd, as that of most published models."""
    folder = tmp_path_factory.mktemp("published") / "llama"
    params = make(folder, "llama", num_kv_heads=2)
    assert params["embedding"]["embedding"].shape[0] % 2
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = dataclasses.replace(tiny.LLAMA, vocab_size=ByteTokenizer().vocab_size + 7, init_std=0.3)
    return make_run(tmp_path_factory.mktemp("runs") / "run", config)


@pytest.mark.parametrize(("source", "rules"), [("run", None), ("published", WHOLE_VOCAB)])
def test_many_devices_hold_their_share_and_say_the_same(source, rules, request):
    folder, mesh = request.getfixturevalue(source), tiny.mesh(fsdp=4, tensor=2)
    one, many = tessera.load(folder), tessera.load(folder, mesh=mesh, rules=rules)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(one.params))

    rules = rules or ShardingRules()
    declared = weights(build(many.config, rules))
    where = named_leaves(shardings(declared, rules, mesh))
    for path, leaf in named_leaves(many.params).items():
        assert leaf.sharding.is_equivalent_to(where[path], leaf.ndim), path
        assert len(leaf.addressable_shards) == 8
    kernel = many.params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size

    ids = np.asarray([many.tokenizer.encode(TEXT)[:12]] * 2)
    logits = one.logits(ids)
    assert logits.std() > 0.1
    np.testing.assert_allclose(many.logits(ids), logits, atol=3e-5, rtol=1e-5)
    options = {"max_tokens": 9, "temperature": 0.0, "details": True}
    said = one.generate("the quick", **options).ids
    assert len(said) == 9 and many.generate("the quick", **options).ids == said


def test_an_encoder_with_a_new_head_on_many_devices(tmp_path):
    make(tmp_path / "bert", "bert")
    options = {"head": "classification", "num_labels": 3}
    with pytest.warns(UserWarning, match="new, random weights"):
        one = tessera.load(tmp_path / "bert", **options)
    with pytest.warns(UserWarning, match="new, random weights"):
        many = tessera.load(tmp_path / "bert", **options, mesh=tiny.mesh(fsdp=4, tensor=2), rules=WHOLE_VOCAB)
    for path, leaf in named_leaves(many.params).items():
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(named_leaves(one.params)[path]), atol=1e-6)
        assert len(leaf.sharding.device_set) == 8
    inputs = one.inputs(["one two", "three"])
    np.testing.assert_allclose(many.logits(**inputs), one.logits(**inputs), atol=3e-5)


def test_a_vocabulary_that_cannot_be_cut_is_told_with_the_way_out(published):
    with pytest.raises(ValueError, match="embedding/embedding .*'vocab' dimension [0-9]+ is not divisible by 2"):
        tessera.load(published, mesh=tiny.mesh(tensor=2))


@pytest.mark.parametrize("architecture", ["lstm", "ngram"])
def test_what_reads_one_token_after_the_other_is_not_cut_along_the_length(architecture, tmp_path):
    config = dataclasses.replace(tiny.GPT, vocab_size=257, architecture=architecture)
    table = count_ngrams(np.arange(50) % 7, 257, 2) if architecture == "ngram" else None
    config = dataclasses.replace(config, ngram_order=2) if architecture == "ngram" else config
    run = make_run(tmp_path / "run", config, table)
    with pytest.raises(ValueError, match=f"'context' cut the length into 2 parts: .*'{architecture}'.*context=1"):
        tessera.load(run, mesh=tiny.mesh(context=2))
    assert tessera.load(run, mesh=tiny.mesh(data=2)).loss(TEXT) == pytest.approx(tessera.load(run).loss(TEXT))


def test_rules_without_a_mesh_are_refused(published):
    with pytest.raises(RunError, match="rules are given without a mesh"):
        tessera.load(published, rules=WHOLE_VOCAB)
