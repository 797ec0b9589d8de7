"""Files that lie, links and indexes that lead elsewhere, pickles: each is a WeightsError, and nothing is read."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.pretrained.folders import open_folder, write_folder
from model.pretrained.safetensors_files import WeightsError, open_file, write_file

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw(path, header, data=b"\0" * 24, length=None):
    """A file of a header (JSON text, or what becomes it) and data, with a length that may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def arrays():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b.weight": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float16),
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
        "flags": np.array([True, False, True]),
        "scalar": np.float32(3.0).reshape(()),
    }


def declared(made):
    return {name: (array.dtype, array.shape) for name, array in made.items()}


def test_what_is_written_is_read_by_us_and_by_the_reference(tmp_path):
    made = arrays()
    write_file(tmp_path / "x.safetensors", declared(made), made.__getitem__)
    ours = {name: tensor.read() for name, tensor in open_file(tmp_path / "x.safetensors").items()}
    theirs = pytest.importorskip("safetensors.numpy").load_file(tmp_path / "x.safetensors")
    assert ours.keys() == theirs.keys() == made.keys()
    for name, array in made.items():
        for read in (ours[name], theirs[name]):
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]
    with pytest.raises(ValueError, match="read-only"):
        ours["a"][0, 0] = 1


def test_files_of_the_reference_are_read_whatever_their_alignment(tmp_path):
    made = {"b": np.arange(3, dtype=np.uint8), "a": np.arange(4, dtype=np.float32), "h": np.ones(2, ml_dtypes.bfloat16)}
    header, data = {}, b""
    for name, code in (("b", "U8"), ("a", "F32"), ("h", "BF16")):
        begin, data = len(data), data + made[name].tobytes()
        header[name] = {"dtype": code, "shape": list(made[name].shape), "data_offsets": [begin, len(data)]}
    for name, tensor in open_file(raw(tmp_path / "x.safetensors", header, data)).items():
        np.testing.assert_array_equal(tensor.read().astype(np.float32), made[name].astype(np.float32))


def entry(**changes):
    return {"a": ENTRY | changes}


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (entry(dtype="F8"), "'F8' is none of"),
        (entry(dtype=["F32"]), "is none of"),
        (entry(shape=[2, -3]), "is no shape"),
        (entry(shape=[2, 3.0]), "is no shape"),
        (entry(shape=[True, 6]), "is no shape"),
        (entry(shape=[2**70, 0], data_offsets=[0, 0]), "is no shape"),
        (entry(shape=[1] * 20), "is no shape"),
        (entry(shape="23"), "is no shape"),
        (entry(shape=[2, 4]), "takes 32 bytes"),
        (entry(shape=[2**40, 2**40]), "takes 4835703278458516698824704 bytes"),
        (entry(data_offsets=[24, 0]), "another length"),
        (entry(data_offsets=[0, 24, 24]), "is no byte range"),
        (entry(data_offsets=[-24, 0]), "is no byte range"),
        (entry(data_offsets=[4, 28]), "begins at byte 4, not 0: gap or overlap"),
        (entry(extra=1), "needs exactly"),
        ({"a": 7}, "needs exactly"),
        ({"a": ENTRY, "b": ENTRY}, "begins at byte 0, not 24: gap or overlap"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}}, "24 bytes of data where the header describes 4"),
        ({}, "24 bytes of data where the header describes 0"),
        ({"a": ENTRY, "__metadata__": {"format": 1}}, "__metadata__"),
        ({"a": ENTRY, "__metadata__": []}, "__metadata__"),
        ([], "the JSON is no object but a list"),
        (b'{"a":1,"a":2}', "a key occurs twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32"}}', "a key occurs twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "unreadable JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "unreadable JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "unreadable JSON"),
        (b"\xff\xfe", "unreadable JSON"),
        (b"", "unreadable JSON"),
    ],
)
def test_headers_that_are_refused(header, error, tmp_path):
    with pytest.raises(WeightsError, match=error) as raised:
        open_file(raw(tmp_path / "x.safetensors", header))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 1_000, 0])
def test_a_length_that_lies_takes_no_memory(length, tmp_path):
    with pytest.raises(WeightsError):
        open_file(raw(tmp_path / "x.safetensors", {"a": ENTRY}, length=length))


def test_every_cut_is_refused(tmp_path):
    whole = raw(tmp_path / "x.safetensors", {"a": ENTRY}).read_bytes()
    assert open_file(tmp_path / "x.safetensors")["a"].read().shape == (2, 3)
    for size in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            open_file(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(whole + b"\0")
    with pytest.raises(WeightsError, match="25 bytes of data where the header describes 24"):
        open_file(tmp_path / "x.safetensors")


NUMBERS = st.one_of(st.integers(-4, 30), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I8", "BOOL", "X", 1]),
        "shape": st.lists(NUMBERS, max_size=4) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
    },
)
JSON = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=4), data=st.binary(max_size=30))
def test_any_header_is_refused_or_covers_its_file_exactly(header, data, tmp_path):
    try:
        tensors = open_file(raw(tmp_path / "x.safetensors", header, data))
    except WeightsError:
        return
    assert sum(tensor.read().nbytes for tensor in tensors.values()) == len(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), bytes_=st.binary(max_size=40))
def test_a_changed_byte_or_noise_never_reads_outside_the_file(at, value, bytes_, tmp_path):
    made = arrays()
    write_file(tmp_path / "x.safetensors", declared(made), made.__getitem__)
    whole = bytearray((tmp_path / "x.safetensors").read_bytes())
    whole[at % len(whole)] = value
    for content in (bytes(whole), bytes_):
        (tmp_path / "x.safetensors").write_bytes(content)
        try:
            tensors = open_file(tmp_path / "x.safetensors")
        except WeightsError:
            continue
        assert sum(tensor.read().nbytes for tensor in tensors.values()) < len(content)


def sharded(folder):
    made = arrays()
    write_folder(folder, declared(made), made.__getitem__, max_shard_bytes=50)
    return made, folder / "model.safetensors.index.json"


def test_shards(tmp_path):
    made, _ = sharded(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 4
    for name, tensor in open_folder(tmp_path).items():
        np.testing.assert_array_equal(tensor.read(), made[name])


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x\\y.safetensors", ".x.safetensors", "x.bin",
     "a\0.safetensors", ""],
)  # fmt: skip
def test_an_index_that_leads_out_of_the_folder(shard, tmp_path):
    _, index = sharded(tmp_path / "in")
    raw(tmp_path / "x.safetensors", {"a": ENTRY})
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match="is not the name of a .safetensors file in the same folder"):
        open_folder(tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"weight_map": {"a": "no.safetensors"}}, "there is no such file"),
        ({"weight_map": {"a": "x" * 300 + ".safetensors"}}, "cannot be opened|no such file"),
        ({"weight_map": {"a": "\ud800.safetensors"}}, "cannot be opened"),
        ({"weight_map": {"nope": "model-00001-of-00004.safetensors"}}, "has no tensor nope"),
        ({"weight_map": {"a": 1}}, "does not name a file"),
        ({"weight_map": []}, "does not name a file"),
        ({}, "does not name a file"),
    ],
)
def test_an_index_that_is_wrong(content, error, tmp_path):
    _, index = sharded(tmp_path)
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=error):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    for name in ("x", "y"):
        raw(tmp_path / f"{name}.safetensors", {"a": ENTRY})
    listed = {"a": "x.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert open_folder(tmp_path).keys() == {"a"}
    raw(tmp_path / "y.safetensors", {"a": ENTRY, "b": ENTRY | {"data_offsets": [24, 48]}}, b"\0" * 48)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed | {"b": "y.safetensors"}}))
    with pytest.raises(WeightsError, match=r"tensor a is in y.safetensors and in another shard"):
        open_folder(tmp_path)


def test_links_lead_to_the_blobs_of_a_cache_and_nowhere_else(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    raw(blobs / "abc", {"a": ENTRY})
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert open_folder(snapshot).keys() == {"a"}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/model.safetensors").symlink_to(blobs / "abc")
    with pytest.raises(WeightsError, match="is a link out of its folder"):
        open_folder(tmp_path / "plain")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(raw(tmp_path / "elsewhere", {"a": ENTRY}))
    with pytest.raises(WeightsError, match="is a link out of its folder"):
        open_folder(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "flax_model.msgpack"])
def test_pickles_are_not_opened(name, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=f"{name} but no model.safetensors.*safe_serialization=True"):
        open_folder(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_under_the_name_of_safetensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": list(range(100))}))
    with pytest.raises(WeightsError, match="a header of [0-9]+ bytes in a file of"):
        open_folder(tmp_path)


def test_an_empty_folder_and_both_kinds(tmp_path):
    with pytest.raises(WeightsError, match="has neither model.safetensors nor"):
        open_folder(tmp_path)
    sharded(tmp_path)
    raw(tmp_path / "model.safetensors", {"a": ENTRY})
    with pytest.raises(WeightsError, match="has both"):
        open_folder(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    made = arrays()
    write_folder(tmp_path, declared(made), made.__getitem__)

    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, declared(made), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    np.testing.assert_array_equal(open_folder(tmp_path)["a"].read(), made["a"])
