"""Published models into runs and out again, as a user does it; no PyTorch needed."""

import dataclasses
import fnmatch
import json
import re
import shutil
import sys
import types
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest

import tessera
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.sentencepieces import SentencePieceTokenizer
from launch.published import load_published
from model.config import ModelConfig
from model.parameters import named_leaves
from model.pretrained.export import NOT_PUBLISHED
from model.pretrained.folders import open_folder
from tests import tiny
from tests.launch.published_models import CONFIGS, MORE_ROWS, TEXT, edit, make, make_run
from train.records import HARMLESS_MODEL, RunError

PROMPT = "the quick brown"


def same(a, b):
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        assert leaf.dtype == b[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(b[path]), err_msg=path)


def tensors(folder):
    return {name: tensor.read() for name, tensor in open_folder(folder).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The function family -> a published folder and the parameters in it."""
    done = {}

    def get(family):
        if family not in done:
            folder = tmp_path_factory.mktemp("published") / family
            done[family] = folder, make(folder, family)
        return done[family]

    return get


@pytest.fixture(scope="module")
def bert(made, tmp_path_factory):
    """A copy of the BERT that a test may change, and that later ones find as it was."""

    def copy():
        return shutil.copytree(made("bert")[0], tmp_path_factory.mktemp("copy") / "bert")

    return copy


def answers(lm):
    """What a network of any family says, through its tokenizer."""
    if lm.config.architecture == "encoder":
        return lm.logits(**lm.inputs(TEXT)), lm.fill(f"{PROMPT} <mask> jumps")
    if lm.config.architecture == "encoder_decoder":
        ids = [lm.tokenizer.wrap(lm.tokenizer.encode(PROMPT))]
        answer = lm.generate(f"{PROMPT} <extra_0>", max_tokens=9, temperature=0.0, details=True)
        return lm.logits(ids, [[0, 5, 9]]), answer.ids
    answer = lm.generate(PROMPT, max_tokens=9, temperature=0.0, details=True)
    return lm.logits([lm.tokenizer.encode(PROMPT)]), answer.ids


@pytest.mark.parametrize("family", CONFIGS)
def test_import_load_export(family, made, tmp_path, capsys):
    folder, params = made(family)
    run, out = tmp_path / "run", tmp_path / "out"
    assert tessera.main(["import", str(folder), str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{family}, {CONFIGS[family].architecture}" in said and f"loaded   {len(tensors(folder)):>6}" in said

    direct, imported = tessera.load(folder), tessera.load(run)
    assert direct.config == imported.config
    assert direct.config.vocab_size == direct.tokenizer.vocab_size + MORE_ROWS
    same(params, direct.params)
    same(params, imported.params)
    assert imported.tokenizer.fingerprint == direct.tokenizer.fingerprint
    (a_logits, a_said), (b_logits, b_said) = answers(direct), answers(imported)
    np.testing.assert_array_equal(a_logits, b_logits)
    assert a_said == b_said and len(a_said) > 0 and a_logits.std() > 0.1

    assert tessera.main(["export", str(run), f"--to={out}"]) == 0
    assert "no tokeniser" not in capsys.readouterr().err
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    again = load_pretrained_tokenizer(out)
    for text in (TEXT, "a word that is ñot there"):
        assert again.wrap(again.encode(text)) == direct.tokenizer.wrap(direct.tokenizer.encode(text))
    assert again.special_ids == direct.tokenizer.special_ids


def test_a_run_is_exported_without_the_padding_of_its_vocabulary(tmp_path):
    tokenizer = SentencePieceTokenizer.train([TEXT] * 3, 300)
    make_run(tmp_path / "run", dataclasses.replace(CONFIGS["gpt2"], vocab_size=320), tokenizer=tokenizer)
    assert tessera.main(["export", str(tmp_path / "run"), f"--to={tmp_path / 'out'}"]) == 0
    ours, published = tessera.load(tmp_path / "run"), tessera.load(tmp_path / "out")
    assert (ours.config.vocab_size, published.config.vocab_size) == (320, 300)
    assert tensors(tmp_path / "out")["transformer.wte.weight"].shape == (300, 16)
    ids = tokenizer.encode(PROMPT)
    assert published.tokenizer.encode(PROMPT) == ids
    np.testing.assert_allclose(published.logits([ids]), ours.logits([ids])[..., :300], atol=1e-5)
    options = {"max_tokens": 8, "temperature": 0.0, "details": True}
    assert published.generate(PROMPT, **options).ids == ours.generate(PROMPT, **options).ids


def test_how_a_run_was_trained_does_not_keep_it_from_being_exported(tmp_path):
    assert set(HARMLESS_MODEL) <= set(NOT_PUBLISHED) <= {field.name for field in dataclasses.fields(ModelConfig)}
    how = {"pipeline_microbatches": 2, "remat": "full", "scan_unroll": 2, "attention_impl": "reference"}
    make_run(tmp_path / "run", dataclasses.replace(tiny.LLAMA, vocab_size=257, **how))
    assert tessera.main(["export", str(tmp_path / "run"), f"--to={tmp_path / 'out'}"]) == 0


def test_a_tokenizer_without_a_published_form_is_missed_aloud(tmp_path, capsys):
    run = make_run(tmp_path / "run", dataclasses.replace(tiny.GPT, vocab_size=264))
    assert tessera.main(["export", str(run), f"--to={tmp_path / 'out'}"]) == 0
    assert "has no tokeniser: a 'byte' tokenizer" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert tensors(tmp_path / "out")["transformer.wte.weight"].shape == (257, 32)


def test_a_new_head_is_random_by_seed_and_said_to_be(bert, made):
    folder = bert()
    with pytest.warns(UserWarning) as caught:
        lm = tessera.load(folder, head="classification", num_labels=3)
    said = " ".join(str(warning.message) for warning in caught)
    assert "tensors were not used: cls.predictions.bias" in said
    assert re.search("new, random weights for head/classifier/bias, head/classifier/kernel, .*: train them", said)
    assert all(warning.filename == __file__ for warning in caught)  # the line that called
    assert lm.logits(**lm.inputs(["one two", "three"])).shape == (2, 3)
    same(lm.params["encoder"], made("bert")[1]["encoder"])

    def kernel(seed):
        params = load_published(folder, head="classification", num_labels=3, seed=seed).params
        return np.asarray(params["head"]["classifier"]["kernel"])

    np.testing.assert_array_equal(kernel(0), lm.params["head"]["classifier"]["kernel"])
    assert np.abs(kernel(0) - kernel(1)).max() > 1e-3 and kernel(0).std() > 1e-3
    with pytest.raises(ValueError, match="num_labels is 0: with head 'classification'"):
        tessera.load(folder, head="classification")


def test_beside_a_new_head_nothing_is_made_twice(bert, monkeypatch):
    made, jit = [], jax.jit

    def spy(function, **options):
        compiled = jit(function, **options)

        def call(*arguments):
            out = compiled(*arguments)
            made.extend(jax.tree.leaves(out))
            return out

        return call if "out_shardings" in options else compiled

    monkeypatch.setattr(jax, "jit", spy)
    loaded = load_published(bert(), head="classification", num_labels=3)
    fresh = named_leaves(loaded.params)
    assert loaded.report.missing and len(made) == len(loaded.report.missing)
    assert all(any(leaf is fresh[path] for leaf in made) for path in loaded.report.missing)


def test_the_encoder_alone(bert):
    folder = bert()
    with pytest.warns(UserWarning, match="tensors were not used"):
        lm = tessera.load(folder, head="none")
    assert lm.hidden(**lm.inputs(TEXT)).shape[2] == 16 and "head" not in lm.params


def test_bfloat16_halves_the_weights_and_is_exported_as_such(made, tmp_path):
    folder, _ = made("llama")
    half = tessera.load(folder, param_dtype="bfloat16")
    assert half.config.compute_dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(ml_dtypes.bfloat16)}
    ids = [half.tokenizer.encode(PROMPT)]
    whole = tessera.load(folder).logits(ids)
    error = np.linalg.norm(half.logits(ids) - whole) / np.linalg.norm(whole)
    assert 1e-4 < error < 3e-2  # bfloat16 has 8 bits
    assert tessera.main(["import", str(folder), str(tmp_path / "run"), "--param_dtype=bfloat16"]) == 0
    assert tessera.main(["export", str(tmp_path / "run"), f"--to={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    for name, array in tensors(folder).items():
        np.testing.assert_array_equal(tensors(tmp_path / "out")[name], array.astype(ml_dtypes.bfloat16), err_msg=name)


def pool(folder, **modes):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))


def test_embeddings_of_sentence_transformers(bert):
    mean, cls, both = bert(), bert(), bert()
    pool(mean, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    pool(cls, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    pool(both, pooling_mode_cls_token=True, pooling_mode_mean_tokens=True)
    for folder in (cls, both):
        with pytest.warns(UserWarning, match="not means over tokens"):
            tessera.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = tessera.load(mean)
    texts = ["one two three", "dog"]
    for text, vector in zip(texts, lm.embed(texts), strict=True):  # padding of the shorter one is no part of its mean
        ids = [lm.tokenizer.wrap(lm.tokenizer.encode(text))]
        np.testing.assert_allclose(vector, lm.hidden(ids)[0].mean(0), atol=2e-6)


def test_modules_of_sentence_transformers_that_embed_leaves_out(bert):
    folder = bert()
    pool(folder, pooling_mode_mean_tokens=True)
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]

    def modules(count):
        listed = [{"idx": i, "path": f"{i}_{kinds[i]}", "type": f"a.models.{kinds[i]}"} for i in range(count)]
        (folder / "modules.json").write_text(json.dumps(listed))

    modules(4)
    with pytest.warns(UserWarning, match="end in Dense, Normalize, which `embed` leaves out"):
        tessera.load(folder)
    modules(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tessera.load(folder)
    (folder / "modules.json").write_text('{"type": 1}')
    with pytest.raises(ValueError, match="modules.json: is no list of modules"):
        tessera.load(folder)


def test_a_rotary_run_reads_further_than_it_was_trained(tmp_path):
    run = make_run(tmp_path / "run", dataclasses.replace(CONFIGS["llama"], vocab_size=257))
    short, long = tessera.load(run), tessera.load(run, max_length=80)
    assert (short.config.max_length, long.config.max_length) == (32, 80)
    same(short.params, long.params)
    text = TEXT[:60]
    with pytest.raises(ValueError, match="60 tokens, the context has 32"):
        short.generate(text, max_tokens=1)
    answer = long.generate(text, max_tokens=9, temperature=0.0, details=True)
    ids = [256, *long.tokenizer.encode(text), *answer.ids]  # behind the end of another document
    scores = long.logits([ids[:-1]])[0]
    assert scores[60:].argmax(1).tolist() == answer.ids  # no window has moved
    np.testing.assert_allclose(short.logits([ids[:32]])[0], scores[:32], atol=1e-4)


def test_a_published_model_reads_further_where_its_positions_are_no_table(made):
    short, long = tessera.load(made("llama")[0]), tessera.load(made("llama")[0], max_length=80)
    assert (short.config.max_length, long.config.max_length) == (32, 80)
    same(short.params, long.params)
    with pytest.raises(ValueError, match="the context has 32"):
        short.generate(TEXT, max_tokens=1)
    answer = long.generate(TEXT, max_tokens=9, temperature=0.0, details=True)
    ids = [*long.tokenizer.encode(TEXT), *answer.ids]
    assert 32 < len(ids) <= 80
    scores = long.logits([ids[:-1]])[0]
    assert scores[-len(answer.ids) :, : long.tokenizer.vocab_size].argmax(1).tolist() == answer.ids
    t5 = tessera.load(made("t5")[0], max_length=80)
    assert t5.config.max_length == 80
    answer = t5.generate("dog", max_tokens=40, min_tokens=40, temperature=0.0, details=True)
    assert len(answer.ids) == 40


def test_options_of_the_other_kind_are_refused(made, tmp_path):
    folder, _ = made("gpt2")
    run = make_run(tmp_path / "run", dataclasses.replace(tiny.GPT, vocab_size=257))
    with pytest.raises(RunError, match="step is for runs"):
        tessera.load(folder, step=8)
    with pytest.raises(RunError, match="max_length is 64, but its positions are a learned table of 32 rows"):
        tessera.load(folder, max_length=64)
    with pytest.raises(ValueError, match="num_labels is 3, but no head is given"):
        tessera.load(made("bert")[0], num_labels=3)
    for options in ({"head": "none"}, {"param_dtype": "bfloat16"}, {"num_labels": 2}):
        with pytest.raises(RunError, match="is no published model"):
            tessera.load(run, **options)
    with pytest.raises(ValueError, match="decoder/positions/embedding"):  # a table has the rows that it has
        tessera.load(run, max_length=64)


class Hub:
    """A huggingface_hub whose answer is what a test says."""

    def __init__(self, monkeypatch, answer):
        self.answer, self.asked = answer, []
        hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
        hub.snapshot_download = self.download
        for name in ("HfHubHTTPError", "LocalEntryNotFoundError", "RepositoryNotFoundError"):
            setattr(errors, name, type(name, (Exception,), {}))
        self.errors = errors
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)

    def download(self, name, *, allow_patterns):
        self.asked.append((name, allow_patterns))
        if isinstance(self.answer, str):
            raise getattr(self.errors, self.answer, OSError)("no")
        return str(self.answer)


def test_a_name_of_the_hub_is_fetched_without_pickles_and_code(made, monkeypatch, tmp_path):
    hub = Hub(monkeypatch, made("gpt2")[0])
    monkeypatch.chdir(tmp_path)
    same(tessera.load("someone/tiny-gpt2").params, made("gpt2")[1])
    ((name, patterns),) = hub.asked
    assert name == "someone/tiny-gpt2"
    fetched = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    fetched += ["tokenizer.json", "merges.txt", "vocab.txt", "tokenizer.model", "1_Pooling/config.json", "modules.json"]
    left = ["consolidated.safetensors", "adapter.safetensors", "pytorch_model.bin", "code.py", "a.pt", "tf_model.h5"]
    left += ["2_Dense/model.safetensors", "flax_model.msgpack", "model.onnx"]
    wanted = {name for name in fetched + left if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert wanted == set(fetched)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("RepositoryNotFoundError", "nor the name of a model of the hub"),
        ("HfHubHTTPError", "hub cannot be reached .*copy the folder here and give its path"),
        ("LocalEntryNotFoundError", "hub cannot be reached"),
        ("OSError", "hub cannot be reached"),
        (None, r"pip install 'tessera-lm\[hub\]'"),
    ],
)
def test_a_name_that_cannot_be_fetched(answer, says, monkeypatch, tmp_path, capsys):
    hub = Hub(monkeypatch, answer)
    if answer is None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    assert tessera.main(["import", "someone/tiny", "run"]) == 78
    err = capsys.readouterr().err
    assert re.match(f"tessera: someone/tiny is not the folder of a run or a model.*{says}.*\n$", err)
    assert not list(tmp_path.iterdir()) and len(hub.asked) == (answer is not None)


def test_a_mistyped_run_is_not_looked_for_on_the_hub(monkeypatch, tmp_path, capsys):
    hub = Hub(monkeypatch, "OSError")
    make_run(tmp_path / "mine", dataclasses.replace(tiny.GPT, vocab_size=257))
    monkeypatch.chdir(tmp_path.parent)
    assert tessera.main(["generate", f"--run={tmp_path.name}/mime", "--prompt=a"]) == 78
    assert "; runs in" in (err := capsys.readouterr().err) and "mine" in err and not hub.asked


def test_a_config_of_another_size_is_told_by_name(made, tmp_path):
    folder = shutil.copytree(made("gpt2")[0], tmp_path / "gpt2")
    edit(folder, n_positions=16)
    with pytest.raises(ValueError, match=r"wpe.weight has shape \(32, 16\)"):
        tessera.load(folder)
