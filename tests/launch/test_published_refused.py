"""Models that are not imported and runs that are not exported: one line says why, and nothing is left behind."""

import dataclasses
import json
import pickle
import re
import shutil
import time

import numpy as np
import pytest

import tessera
from launch import published, train
from model.ngram_table import count_ngrams
from model.pretrained.folders import open_folder
from model.pretrained.safetensors_files import write_file
from tests import tiny
from tests.launch.published_models import edit, make, make_run
from train.records import RunError

USAGE, BAD_DATA, IO, CONFIG, INTERRUPTED = 2, 65, 74, 78, 130
BYTES = dataclasses.replace(tiny.GPT, vocab_size=257)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "gpt2"
    make(folder, "gpt2")
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy of a published model, to be spoiled."""
    return shutil.copytree(good, tmp_path / "model")


@pytest.fixture
def refused(tmp_path, capsys):
    """The function that runs a command, with the code it must return, and returns its one line; leaves no trace."""

    def run(code, *arguments):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        assert tessera.main([str(argument) for argument in arguments]) == code
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        err = capsys.readouterr().err
        assert err.startswith("tessera: ") and err.count("\n") == 1 and err.endswith("\n")
        return err

    return run


def rewrite(folder, **tensors):
    """Writes the weights again with some of them changed."""
    path = folder / "model.safetensors"
    arrays = {name: np.array(tensor.read()) for name, tensor in open_folder(folder).items()}
    arrays |= {name.replace("__", "."): array for name, array in tensors.items()}
    write_file(path, {name: (array.dtype, array.shape) for name, array in arrays.items()}, arrays.__getitem__)


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def too_many_ids(folder):
    ids = json.loads((folder / "vocab.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({f"<new{n}>": len(ids) + n for n in range(40)}))


def no_tokenizer(folder):
    (folder / "merges.txt").unlink()


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def index_that_leads_out(folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").unlink()
    listed = {"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))


def config_that_leads_out(folder):
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


SPOILED = {
    truncated: "model.safetensors",
    too_many_ids: "has ids up to [0-9]+, but config.json has vocab_size",
    no_tokenizer: "no merges.txt",
    only_a_pickle: "pytorch_model.bin but no model.safetensors.*safe_serialization",
    index_that_leads_out: "is not the name of a .safetensors file in the same folder",
    (lambda f: edit(f, model_type="mamba")): "model_type is 'mamba': Tessera has .*gpt2",
    (lambda f: edit(f, n_layer=3)): "lacks 16 tensors that the model needs",
    (lambda f: edit(f, n_layer=3_000_000)): "n_layer is 3000000, more layers than the folder has tensors \\(28\\)",
    (lambda f: edit(f, n_embd=10**12 + 1)): "n_embd is 1000000000001: at most 16777216",
    (lambda f: edit(f, n_inner=2**40)): "n_inner is 1099511627776: at most 16777216",
    (lambda f: edit(f, n_embd=2**24, n_inner=2**24, vocab_size=2**24)): r"c_attn.bias has shape \(48,\)",
    (lambda f: edit(f, layer_norm_epsilon=-1e-5)): "layer_norm_epsilon is -1e-05: it must be positive",
    config_that_leads_out: "config.json is a link out of its folder",
    (lambda f: edit(f, n_head=0)): "num_heads is 0",
    (lambda f: edit(f, n_embd=None)): "config.json has no 'n_embd'",
    (lambda f: edit(f, vocab_size="many")): "vocab_size is 'many': it must be of type int",
    (lambda f: edit(f, n_head=2.0)): r"n_head is 2.0: it must be of type int",
    (lambda f: edit(f, scale_attn_weights=False)): "scale_attn_weights is False",
    (lambda f: rewrite(f, transformer__wpe__weight=np.zeros((32, 16), np.int32))): "wpe.weight is int32",
    (lambda f: rewrite(f, transformer__wpe__weight=np.zeros((16, 32), np.float32))): r"wpe.weight has shape \(16, 32\)",
    (lambda f: (f / "config.json").write_text("{")): "model_type|config.json|no folder",
    (lambda f: (f / "vocab.json").write_text("[]")): "vocab",
    (lambda f: (f / "merges.txt").write_text("a b c\nx")): "line 1 of the merges",
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_model_that_is_not_what_it_says_is_not_imported(spoil, folder, refused, tmp_path):
    spoil(folder)
    start = time.monotonic()
    assert re.search(SPOILED[spoil], refused(BAD_DATA, "import", folder, tmp_path / "run"))
    assert time.monotonic() - start < 5  # whatever sizes it claims


def test_load_refuses_it_too(folder):
    truncated(folder)
    with pytest.raises(ValueError, match="model.safetensors"):
        tessera.load(folder)


def test_where_nothing_is_or_something_is(folder, refused, tmp_path):
    run = make_run(tmp_path / "run", BYTES)
    assert "run exists: give another folder" in refused(CONFIG, "import", folder, run)
    assert "model exists: give another folder" in refused(CONFIG, "export", run, f"--to={folder}")
    assert "there is no folder" in refused(CONFIG, "import", tmp_path / "nothing", tmp_path / "new")
    assert "no config.json" in refused(CONFIG, "export", tmp_path / "nothing", f"--to={tmp_path / 'new'}")
    assert "model_type is None" in refused(BAD_DATA, "import", run, tmp_path / "new")
    assert "is not what a run of Tessera writes" in refused(CONFIG, "export", folder, f"--to={tmp_path / 'new'}")
    assert "step 7" in refused(BAD_DATA, "export", run, f"--to={tmp_path / 'new'}", "--step=7")
    assert "a run and a new folder are needed" in refused(USAGE, "export", run)
    assert "a model and the folder of a new run are needed" in refused(USAGE, "import", folder)


def test_an_imported_model_is_not_trained_in_its_own_folder(folder, tmp_path):
    config = tiny.config(tmp_path)
    assert tessera.main(["import", str(folder), config.run.dir]) == 0
    with pytest.raises(RunError, match="run holds a model imported from .*model: train in another folder"):
        train.run(config)


def test_networks_that_no_family_has_are_not_exported(refused, tmp_path):
    alibi = make_run(tmp_path / "alibi", dataclasses.replace(BYTES, positions="alibi"))
    experts = make_run(tmp_path / "experts", dataclasses.replace(BYTES, experts=4))
    ngram = dataclasses.replace(BYTES, architecture="ngram", ngram_order=2)
    ngram = make_run(tmp_path / "ngram", ngram, count_ngrams(np.arange(50) % 7, 257, 2))
    to = f"--to={tmp_path / 'new'}"
    assert "none of the published families" in refused(BAD_DATA, "export", alibi, to)
    assert "model.experts is 4: a published gpt2 model like this one has 0" in refused(BAD_DATA, "export", experts, to)
    assert "an n-gram model is a table of counts" in refused(BAD_DATA, "export", ngram, to)


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), IO), (KeyboardInterrupt(), INTERRUPTED)]
)
def test_what_fails_half_way_leaves_nothing(error, code, folder, refused, monkeypatch, tmp_path):
    run = make_run(tmp_path / "run", BYTES)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(published, "write_json", fail)  # the last file of a run
    refused(code, "import", folder, tmp_path / "new")
    monkeypatch.setattr(published, "export_tokenizer", fail)  # the last files of a model
    refused(code, "export", run, f"--to={tmp_path / 'new'}")
