"""Security: files that anyone may have made, and what is typed, are data: read as they are, or refused in a line."""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tessera
from data.errors import DataError
from data.store.store import open_store, verify_store
from data.tokenizers import files as tokenizer_files
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import ByteTokenizer, load_tokenizer
from launch.count import TABLE
from launch.saved import load_run, recorded_model
from model.config import ModelConfig
from model.ngram_table import count_ngrams, load_ngram, save_ngram
from model.pretrained.safetensors_files import DTYPES, WeightsError, open_file
from tests.data.tiny_stores import write_store
from tests.launch.published_models import make, make_run, write_tokenizer
from train.records import RunConfig, RunError, read_lines

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's of overflows
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEEP = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECT = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
NO_OBJECTS = (DEEP, DEEP_OBJECT, b"[]", b'"x"', b"null", b"", b"\xff\xfe", b'{"a":' + b"9" * 5000 + b"}")
SMALL = ModelConfig(vocab_size=257, max_length=16, num_layers=1, embed_dim=16, num_heads=2)


def damaged(content: bytes, cut: int, at: int, noise: bytes) -> bytes:
    """`content` cut at one place and overwritten at another, both modulo its length."""
    kept = bytearray(content[: len(content) - cut % (len(content) + 1)])
    start = at % (len(kept) + 1)
    kept[start : start + len(noise)] = noise
    return bytes(kept)


DAMAGE = {"cut": st.just(0) | st.integers(0, 2**16), "at": st.integers(0, 2**16), "noise": st.binary(max_size=6)}


@st.composite
def nearly_safetensors(draw) -> bytes:
    """A safetensors file that is whole, or wrong in the one thing or the other."""
    header, end = {}, 0
    for name in draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3)):
        dtype = draw(st.sampled_from([*DTYPES, "F8_E4M3", "f32", 1]))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 2.0, True, 2**47, 2**62]), max_size=3))
        item = DTYPES[dtype].itemsize if dtype in DTYPES else 1
        need = int(np.prod([size for size in shape if 0 <= size < 4], dtype=np.int64)) * item
        begin = end + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        end = begin + need + draw(st.sampled_from([0, 0, 0, 0, 1, -need]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text = draw(st.sampled_from([text, text, text, text.replace(b'"b"', b'"a"'), DEEP, text[:-1], text + b" "]))
    length = draw(st.sampled_from([len(text)] * 6 + [0, len(text) + 1, 2**62, 2**64 - 1]))
    data = draw(st.binary(min_size=max(end, 0), max_size=max(end, 0))) + draw(st.sampled_from([b"", b"", b"", b"x"]))
    return struct.pack("<Q", length) + text + data


@settings(FEW, max_examples=400)
@given(content=nearly_safetensors())
def test_safetensors_are_read_as_the_reference_reads_them_or_refused(content, tmp_path):
    reference = pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        ours = {name: tensor.read() for name, tensor in open_file(path).items()}
    except WeightsError:
        return
    theirs = dict(reference.deserialize(content))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (DTYPES[theirs[name]["dtype"]], theirs[name]["shape"]) == (array.dtype, list(array.shape))
        assert array.tobytes() == bytes(theirs[name]["data"])


def test_an_empty_tensor_of_endless_dimensions_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightsError, match="is no shape"):
        open_file(tmp_path / "x")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "gpt2"
    make(folder, "gpt2")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", SMALL)
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 8, "loss": 2.5}\n')
    return folder


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must end with 65 or 78, one line, and nothing written."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert tessera.main([str(argument) for argument in arguments]) in (65, 78), arguments
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("tessera: ") and "Traceback" not in "".join(said), said
        assert sorted(tmp_path.rglob("*")) == before

    return call


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_published_model_of_no_objects(name, published, tmp_path, refused):
    folder = shutil.copytree(published, tmp_path / "model")
    for content in NO_OBJECTS:
        (folder / name).write_bytes(content)
        refused("import", folder, tmp_path / "run")


@pytest.mark.parametrize("value", [-1, 0, True, 1.5, 2**62, 10**400, float("nan"), "2", None, [2], {"a": 2}])
def test_sizes_of_a_published_model_that_are_none(value, published, tmp_path, refused):
    folder = shutil.copytree(published, tmp_path / "model")
    keys = json.loads((folder / "config.json").read_text())
    for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "model_type"):
        (folder / "config.json").write_text(json.dumps(keys | {name: value}))
        refused("import", folder, tmp_path / "run")


@pytest.mark.parametrize("content", NO_OBJECTS, ids=lambda content: repr(content[:6]))
def test_a_run_of_no_objects(content, run, tmp_path, refused):
    folder = shutil.copytree(run, tmp_path / "run")
    for name in ("config.json", "tokenizer/tessera_tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        refused("generate", f"--run={folder}", "--prompt=a")
        (folder / name).write_bytes(whole)
    (folder / "metrics.jsonl").write_bytes(content + b"\n{}\n")
    refused("plot", folder, f"--out={tmp_path}/out.png")
    (folder / "config.json").write_bytes(content)
    refused("plot", folder, f"--out={tmp_path}/out.png")


@pytest.mark.parametrize(
    "leaves",
    [{"num_layers": "x"}, {"num_layers": True}, {"embed_dim": 2**62}, {"vocab_size": 1e9}, {"norm_epsilon": None},
     {"param_dtype": "os.system"}, {"architecture": ["ngram"]}, {"unknown": 1}, {"mlp": {"a": 1}}],
    ids=repr,
)  # fmt: skip
def test_the_network_of_a_run_that_is_none(leaves, run):
    record = json.loads((run / "config.json").read_text())
    with pytest.raises(ValueError, match="model"):
        recorded_model(run, {**record, "model": record["model"] | leaves})


@pytest.mark.parametrize("step", ["null", '"1"', "true", "1.0", "-1", "[1]", "1e400", "9" * 400, "9" * 5000])
def test_a_step_that_is_none(step, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{{"step": {step}}}\n{{"step": 3}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2 is no"):
        read_lines(tmp_path)


def test_metrics_that_are_no_numbers(run, tmp_path, refused):
    folder = shutil.copytree(run, tmp_path / "run")
    for record in ('{"step": 1, "tokens": 1, "loss": [1]}', '{"step": 1, "loss": 1}', '{"step": 1, "tokens": "1"}'):
        (folder / "metrics.jsonl").write_text(record + "\n")
        refused("plot", folder, f"--out={tmp_path}/out.png")


FILES = {"gpt2": "merges.txt", "bert": "vocab.txt", "t5": "spiece.model", "llama": "tokenizer.model"}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabularies")
    for family in FILES:
        (root / family).mkdir()
        write_tokenizer(root / family, family)
    (root / "json").mkdir()
    load_pretrained_tokenizer(root / "bert").backend.save(str(root / "json" / "tokenizer.json"))
    return root


def reads_or_refuses(folder: Path) -> None:
    try:
        tokenizer = load_pretrained_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("the dog [MASK] \u00e9\u2581 counts"))
    except DataError:
        pass


@pytest.mark.parametrize(("family", "name"), [*FILES.items(), ("json", "tokenizer.json")])
def test_a_damaged_vocabulary_is_read_or_refused(family, name, vocabularies):
    path = vocabularies / family / name
    whole = path.read_bytes()

    @settings(FEW, max_examples=25)
    @given(**DAMAGE)
    def check(cut, at, noise):
        path.write_bytes(damaged(whole, cut, at, noise))
        reads_or_refuses(path.parent)

    try:
        check()
    finally:
        path.write_bytes(whole)


def test_a_piece_that_is_not_utf8(vocabularies, tmp_path):
    content = (vocabularies / "t5" / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(content.replace(b"\xe2\x96\x81the", b"\xff\x96\x81the"))
    with pytest.raises(DataError, match=r"spiece\.model cannot be used: TypeError"):
        load_pretrained_tokenizer(tmp_path)


def test_a_file_over_which_the_library_panics(vocabularies, tmp_path):
    fields = json.loads((vocabularies / "json" / "tokenizer.json").read_text())
    fields["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match="PanicException"):
        load_pretrained_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind, name in tokenizer_files.DATA_FILES.items() if name])
def test_a_saved_tokenizer_of_garbage(kind, tmp_path):
    ByteTokenizer().save(tmp_path / "base")
    no_names = [json.dumps({"base": ByteTokenizer().fingerprint, "names": names}).encode() for names in (None, [1], 2)]
    for content in (*NO_OBJECTS[:-1], b'{"tokenizer": 1, "special_ids": 2, "sentencepiece": 3}', *no_names):
        manifest = {"kind": kind, "fingerprint": tokenizer_files.fingerprint(kind, content)}
        (tmp_path / (tokenizer_files.DATA_FILES[kind] or "")).write_bytes(content)
        (tmp_path / tokenizer_files.MANIFEST).write_text(json.dumps(manifest))
        if kind == "char" and content in (b"[]", b'"x"', b""):
            continue  # characters, if odd ones
        with pytest.raises(DataError):
            load_tokenizer(tmp_path)
    (tmp_path / tokenizer_files.MANIFEST).write_text(json.dumps({"kind": ["byte"]}))
    with pytest.raises(DataError, match="is unknown"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    encoded = [(np.array([*text.encode(), 256]), len(text)) for text in ("one two " * 9, "three", "four five " * 7)]
    folder = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, encoded, tokenizer=ByteTokenizer(), source_fingerprint="source", split="train")
    return folder


FLAGS = ("--examples=2", "--max_length=8")


@pytest.mark.parametrize("name", ["tokens", "document_starts", "document_ids", "document_id_starts"])
def test_a_store_with_a_damaged_file(name, store, tmp_path, refused):
    """Row 22: also a single bit within a file of the right length."""
    folder = shutil.copytree(store, tmp_path / "store")
    path = folder / f"{name}.bin"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[:-1], b"", whole + b"\0", bytes(len(whole)), b"\xff" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            verify_store(open_store(folder))
        refused("data", "inspect", folder, *FLAGS)


def test_a_store_whose_manifest_is_none(store, tmp_path, refused):
    folder = shutil.copytree(store, tmp_path / "store")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    values = (None, [], "x", True, -1, 1.5, 2**62, 10**400)
    lies = [manifest | {key: value} for key in ("num_tokens", "num_documents", "num_id_bytes") for value in values]
    lies += [manifest | {"digests": digests} for digests in (None, {}, {"tokens.bin": [1]}, [1])]
    lies += [manifest | {"dtype": "object"}, manifest | {"vocab_size": 2**62}, manifest | {"chunk_bytes": 0}]
    for lie in lies:
        path.write_text(json.dumps(lie))
        refused("data", "inspect", folder, *FLAGS)
    for content in (DEEP, DEEP_OBJECT, b"", b"\xff", b"{"):
        path.write_bytes(content)
        refused("data", "inspect", folder, *FLAGS)


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_a_table_of_ngrams_that_lies_takes_no_memory(tmp_path):
    whole = tmp_path / "whole.npz"
    save_ngram(whole, count_ngrams(np.arange(9) % 4, 4, 2))
    assert load_ngram(whole)
    bad = ["(1099511627776,)", "(4611686018427387904,)", "(-1,)", "()", "(1, 1)", "(2,)", "__import__('os')"]
    files = [(header(shape) + b"\0" * 4, zipfile.ZIP_STORED) for shape in bad]
    files += [(header("(1,)", "|O") + b"\0" * 8, zipfile.ZIP_STORED), (b"", zipfile.ZIP_STORED)]
    files += [(header("(1000000,)") + b"\0" * 4_000_000, zipfile.ZIP_DEFLATED)]  # 4 MB out of 4 KB
    for content, packing in files:
        with zipfile.ZipFile(tmp_path / "bad.npz", "w", packing) as file:
            file.writestr("top_mass_1.npy", content)
        with pytest.raises(ValueError, match="is not a table of n-grams"):
            load_ngram(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "folder", ["runs/my run", "runs/<script>", "runs/a;b", "runs/é", "..", "/", ".", "a/b\n", "$(x)"]
)
def test_a_run_has_a_name_that_is_safe_anywhere(folder, tmp_path, monkeypatch, refused):
    with pytest.raises(ValueError, match=r"letters A to Z, digits, '\.', '_' and '-' only"):
        RunConfig(dir=folder, tensorboard=False)
    monkeypatch.chdir(tmp_path)
    refused("train", "--config=gpt_demo", f"--config.run.dir={folder}")


def test_the_parents_of_a_run_may_be_called_anything():
    for folder in ("runs/a", "~/My runs/gpt_2.a-b/", "/é/1e-3"):
        assert RunConfig(dir=folder, tensorboard=False).dir == folder


CODE = '__import__("pathlib").Path("touched").touch()'


@pytest.mark.parametrize(
    ("leaf", "value", "code"),
    [
        ("train.steps", CODE, 2),
        ("train.steps", "9**9**9", 2),
        ("model.dropout", CODE, 2),
        ("run.tensorboard", CODE, 2),
        ("expect.loss", CODE, 2),
        ("data.mixture", CODE, 2),
        ("train", CODE, 2),
        ("data.mixture_stages", CODE, 78),  # a tuple of that text, which is no step
        ("data.mixture_stages", "(1,)*10**9", 78),
        ("data.mixture_stages", "-" * 50_000 + "1", 2),
        ("model.architecture", CODE, 78),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_typed_is_never_run(leaf, value, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tessera.main(["train", "--config=gpt_demo", f"--config.{leaf}={value}"]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_looks_like_code_is_a_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = f"--config.train.sample_prompts={CODE}"
    assert tessera.main(["train", "--config=gpt_demo", flag, "--print_config"]) == 0
    assert repr((CODE,)) in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_ngram_run_without_its_table_names_it_and_the_way_out(tmp_path):
    """Row 12."""
    config = ModelConfig(architecture="ngram", ngram_order=2, vocab_size=256, max_length=8)
    run = make_run(tmp_path / "run", config, count_ngrams(np.arange(64) % 8, 256, 2))
    (run / TABLE).unlink()
    with pytest.raises(RunError, match=r"run/ngram\.npz is not there: its `tessera train`, given again, counts"):
        load_run(run)
