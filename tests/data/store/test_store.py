import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.store import places as store_places
from data.store import writer as store_writer
from data.store.store import check_tokenizer, open_store, verify_changed, verify_store
from data.tokenizers.special_tokens import WithSpecials
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer
from tests.data.tiny_stores import write_store


class Wide(ByteTokenizer):
    """A vocabulary that 16 bits do not hold."""

    vocab_size = 70_000


def write(folder, documents=("ab", "c", "dé"), tokenizer=None, source="source", **more):
    tokenizer = tokenizer or ByteTokenizer()
    encoded = [(np.array(tokenizer.encode(text)), len(text.encode())) for text in documents]
    return write_store(folder, encoded, tokenizer=tokenizer, source_fingerprint=source, split="train", **more)


def refuses(folder, *words):
    with pytest.raises(DataError) as error:
        verify_store(open_store(folder))
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def test_store_holds_ids_with_the_end_of_each_document(tmp_path):
    store = write(tmp_path / "store")
    assert store.tokens.tolist() == [97, 98, 256, 99, 256, 100, 0xC3, 0xA9, 256]
    assert store.document_starts.tolist() == [0, 3, 5, 9] and store.document_starts.dtype == np.int64
    assert (store.num_tokens, store.num_bytes) == (9, 6)
    assert isinstance(store.tokens, np.memmap) and store.tokens.dtype == np.dtype("<u2")
    assert (store.num_documents, store.scores) == (3, None)
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 18
    expected = {
        "format_version": 2,
        "split": "train",
        "vocab_size": 257,
        "dtype": "uint16",
        "num_tokens": 9,
        "num_documents": 3,
        "num_bytes": 6,
        "tokenizer_fingerprint": ByteTokenizer().fingerprint,
        "source_fingerprint": "source",
        "has_scores": False,
        "provenance": {},
    }
    assert expected.items() <= store.manifest.items()
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]  # no temporary folder is left


def test_without_an_end_id_documents_follow_each_other(tmp_path):
    store = write(tmp_path / "store", ("ab", "é"), CharTokenizer("abé"))
    assert store.tokens.tolist() == [0, 1, 2]
    assert (store.num_tokens, store.num_bytes) == (3, 4)


def test_large_vocabularies_take_32_bits(tmp_path):
    encoded = [(np.array([69_999, 3]), 2)]
    store = write_store(tmp_path / "s", encoded, tokenizer=Wide(), source_fingerprint="s", split="train")
    assert store.tokens.tolist() == [69_999, 3, 256] and store.tokens.dtype == np.dtype("<u4")
    verify_store(store)


def test_the_largest_16_bit_vocabulary(tmp_path):
    class Edge(ByteTokenizer):
        vocab_size = 65_536

    encoded = [(np.array([65_535]), 1)]
    store = write_store(tmp_path / "s", encoded, tokenizer=Edge(), source_fingerprint="s", split="train")
    assert store.tokens.tolist() == [65_535, 256] and store.tokens.itemsize == 2


def test_ids_outside_the_vocabulary_are_never_stored(tmp_path):
    with pytest.raises(DataError, match=r"document '0': id 257 at position 1 is outside the vocabulary: 0 to 256"):
        write_store(
            tmp_path / "s", [(np.array([1, 257]), 2)], tokenizer=ByteTokenizer(), source_fingerprint="s", split="train"
        )
    assert list(tmp_path.iterdir()) == []


def test_no_tokens_is_an_error(tmp_path):
    with pytest.raises(DataError, match="train split has 0 documents and 0 tokens"):
        write(tmp_path / "s", ())


def test_cut_or_missing_tokens_are_refused_with_sizes(tmp_path):
    write(tmp_path / "store")
    file = tmp_path / "store" / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-2])
    refuses(tmp_path / "store", "tokens.bin has 16 bytes", "expected 18 bytes", "delete the folder")
    file.unlink()
    refuses(tmp_path / "store", "tokens.bin is missing", "expected 18 bytes")


def test_one_flipped_bit_is_found(tmp_path):
    write(tmp_path / "store")
    file = tmp_path / "store" / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[4] ^= 1
    file.write_bytes(content)
    open_store(tmp_path / "store")
    refuses(tmp_path / "store", "tokens.bin was changed")


@pytest.mark.parametrize("name", ["document_starts.bin", "document_ids.bin", "document_id_starts.bin"])
def test_every_file_is_under_size_and_digest(tmp_path, name):
    write(tmp_path / "store")
    file = tmp_path / "store" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    refuses(tmp_path / "store", f"{name} has {len(content) - 1} bytes, expected {len(content)}")
    at = len(content) // 2
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refuses(tmp_path / "store", f"{name} was changed")


def test_starts_go_from_the_first_to_the_last_token(tmp_path):
    write(tmp_path / "store")
    file = tmp_path / "store" / "document_starts.bin"
    np.array([0, 3, 5, 8]).tofile(file)
    refuses(tmp_path / "store", "does not rise from 0 to 9", "found 0 to 8")
    np.array([1, 3, 5, 9]).tofile(file)
    refuses(tmp_path / "store", "found 1 to 9")


def test_verification_names_the_broken_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "CHUNK_BYTES", 4)
    write(tmp_path / "store")  # 9 tokens: 18 bytes, 5 chunks
    monkeypatch.undo()  # the manifest knows
    store = open_store(tmp_path / "store")
    assert [len(digests) for digests in store.manifest["digests"].values()] == [5, 8, 1, 8]
    verify_store(store)
    file = tmp_path / "store" / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[9] ^= 128
    file.write_bytes(content)
    refuses(tmp_path / "store", "tokens.bin was changed: the 4 bytes from 8 on")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(), max_size=8), st.text(max_size=20), st.floats(width=32)), min_size=1))
def test_ids_tokens_and_scores_come_back(tmp_path_factory, documents):
    ids, texts, scores = zip(*documents, strict=True)
    scores = [score if np.isfinite(score) else 0.0 for score in scores]
    folder = tmp_path_factory.mktemp("stores") / "s"
    write(folder, texts, ids=ids, scores=scores)
    store = open_store(folder)
    verify_store(store)
    assert [store.document_id(number) for number in range(store.num_documents)] == list(ids)
    assert np.asarray(store.scores).tolist() == scores and np.asarray(store.scores).dtype == np.float32
    bounds = zip(store.document_starts[:-1], store.document_starts[1:], strict=True)
    assert [ByteTokenizer().decode(store.tokens[start:end]) for start, end in bounds] == list(texts)
    assert store.num_bytes == sum(len(text.encode()) for text in texts)


def test_documents_that_are_not_there_have_no_id(tmp_path):
    ids = ["a", "", "ü\udc80\ud800"]  # names of files may be no Unicode
    store = write(tmp_path / "store", ids=ids)
    assert [store.document_id(number) for number in range(3)] == ids
    for number in (-1, 3):
        with pytest.raises(DataError, match=f"documents 0 to 2, not {number}"):
            store.document_id(number)
    with pytest.raises(DataError, match="3 documents with 2 ids"):
        write(tmp_path / "other", ids=["a", "b"])


@pytest.mark.parametrize(
    ("score", "words"), [(1e39, "score 1e\\+39, which float32"), (float("nan"), "nan"), (None, "no score")]
)
def test_scores_that_cannot_be_kept_are_refused(tmp_path, score, words):
    with pytest.raises(DataError, match=f"document '1' has .*{words}"):
        write(tmp_path / "store", scores=[0.5, score, 1.0])
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_pickled_by_its_place(tmp_path):
    store = write(tmp_path / "store", ["x" * 100_000], scores=[2.0])
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    again = pickle.loads(pickled)  # noqa: S301 (made here)
    assert (again.manifest, again.tokens.tolist()) == (store.manifest, store.tokens.tolist())
    assert (again.document_id(0), again.scores.tolist()) == ("0", [2.0])


@pytest.fixture
def remote(tmp_path):
    """A function that puts a store into fsspec's memory; its URL."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")

    def put(folder):
        files.put(str(folder), f"/stores{tmp_path.name}", recursive=True)
        return f"memory://stores{tmp_path.name}"

    yield put
    if files.exists(f"/stores{tmp_path.name}"):
        files.rm(f"/stores{tmp_path.name}", recursive=True)


def test_a_remote_store_equals_the_local_one(tmp_path, remote, monkeypatch):
    monkeypatch.setattr(store_places, "BLOCK_BYTES", 64)
    texts = ["".join(map(chr, range(40, 40 + number % 80))) + "é" for number in range(50)]
    local = write(tmp_path / "store", texts, ids=[f"id {number}" for number in range(50)], scores=list(range(50)))
    store = open_store(remote(tmp_path / "store"))
    verify_store(store)
    assert (store.manifest, store.num_tokens) == (local.manifest, local.num_tokens)
    assert (len(store.tokens), store.tokens.dtype, store.tokens.shape) == (
        local.num_tokens,
        local.tokens.dtype,
        local.tokens.shape,
    )
    for start, end in (
        (0, 0),
        (0, 1),
        (31, 33),
        (5, 400),
        (100, None),
        (None, 7),
        (-3, None),
        (local.num_tokens, 10**9),
    ):
        found = store.tokens[start:end]
        assert isinstance(found, np.ndarray) and found.dtype == local.tokens.dtype
        assert found.tolist() == local.tokens[start:end].tolist()
    assert (store.tokens[3], store.tokens[-1]) == (local.tokens[3], local.tokens[-1])
    assert store.document_starts.tolist() == local.document_starts.tolist()
    assert np.asarray(store.scores).tolist() == np.asarray(local.scores).tolist()
    assert [store.document_id(number) for number in (0, 7, 49)] == ["id 0", "id 7", "id 49"]
    assert pickle.loads(pickle.dumps(store)).tokens[:9].tolist() == local.tokens[:9].tolist()  # noqa: S301


def test_remote_tokens_are_read_in_ranges_and_kept(tmp_path, remote, monkeypatch):
    monkeypatch.setattr(store_places, "BLOCK_BYTES", 64)
    write(tmp_path / "store", ["a" * 1000])
    store = open_store(remote(tmp_path / "store"))
    asked, read = [], store_places.Remote.read
    monkeypatch.setattr(store_places.Remote, "read", lambda self, *of: asked.append(of) or read(self, *of))
    store.tokens[30:40]  # bytes 60 to 80: blocks 0 and 1
    store.tokens[33:50]
    assert asked == [("tokens.bin", 0, 64), ("tokens.bin", 64, 128)]
    store.tokens[100:900]  # long: one request
    assert asked[2:] == [("tokens.bin", 200, 1800)]
    store.tokens[990:1001]
    assert asked[3:] == [("tokens.bin", 1920, 1984), ("tokens.bin", 1984, 2002)]  # the last block is short


def test_remote_tokens_never_come_whole_by_accident(tmp_path, remote):
    write(tmp_path / "store")
    store = open_store(remote(tmp_path / "store"))
    with pytest.raises(DataError, match=r"tokens\.bin is remote \(18 bytes\): read slices"):
        np.asarray(store.tokens)
    with pytest.raises(DataError, match="slices of step 2"):
        store.tokens[::2]
    with pytest.raises(IndexError):
        store.tokens[9]


def test_remote_stores_say_what_is_wrong(tmp_path, remote, monkeypatch):
    with pytest.raises(DataError, match="memory://nowhere is not a token store"):
        open_store("memory://nowhere")
    with pytest.raises(DataError, match="nosuch://a cannot be read"):
        open_store("nosuch://a")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match="s3://a/b cannot be read here: .*s3fs"):
        open_store("s3://a/b")
    write(tmp_path / "store")
    (tmp_path / "store" / "tokens.bin").write_bytes(b"1")
    with pytest.raises(DataError, match="tokens.bin has 1 bytes, expected 18"):
        open_store(remote(tmp_path / "store"))


def test_a_store_is_verified_again_when_its_files_change(tmp_path, monkeypatch):
    store = write(tmp_path / "store")
    assert verify_changed(store) and not verify_changed(store)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store", "store.verified.json"]
    file = tmp_path / "store" / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[4] ^= 1
    file.write_bytes(content)
    for _ in range(2):  # what is broken is not remembered as good
        with pytest.raises(DataError, match="was changed"):
            verify_changed(store)
    content[4] ^= 1
    file.write_bytes(content)
    assert verify_changed(store) and not verify_changed(store)
    (tmp_path / "store.verified.json").write_text("{")
    assert verify_changed(store) and not verify_changed(store)


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    store = write(tmp_path / "store")
    check_tokenizer(store, ByteTokenizer())
    check_tokenizer(store, WithSpecials(WithSpecials(ByteTokenizer(), ["mask"]), ["pad"]))
    other = CharTokenizer("abcdé")
    for tokenizer in (other, WithSpecials(other, ["mask"])):
        with pytest.raises(
            DataError, match=f"{ByteTokenizer().fingerprint}, not of this char one, {other.fingerprint}"
        ):
            check_tokenizer(store, tokenizer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 1}, ["format 1", "reads 2", "tessera data build"]),
        ({"chunk_bytes": 0}, ["chunk_bytes is 0"]),
        ({"digests": {}}, ["tokens.bin needs a list of 1 digests"]),
        ({"has_scores": True}, ["document_scores.bin needs a list of 1 digests"]),
        ({"num_tokens": -1}, ["num_tokens is -1"]),
        ({"num_tokens": 10}, ["has 18 bytes", "expected 20 bytes"]),
        ({"num_tokens": 0}, ["holds 0 tokens"]),
        ({"num_documents": "3"}, ["num_documents is '3'"]),
        ({"dtype": "uint32"}, ["dtype is 'uint32'", "expected 'uint16'"]),
        ({"split": None}, ["split is None"]),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, change, words):
    write(tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refuses(tmp_path / "store", *words)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    refuses(tmp_path, "is not a token store", "manifest.json")
    for content, word in (("{", "not JSON"), ("[]", "JSON list")):
        (tmp_path / "manifest.json").write_text(content)
        refuses(tmp_path, word)
