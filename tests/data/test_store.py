import json

import numpy as np
import pytest

from data.errors import DataError
from data.store import open_store, verify_store, write_store
from data.tokenizers import ByteTokenizer, CharTokenizer


class Wide(ByteTokenizer):
    """A vocabulary that 16 bits do not hold."""

    vocab_size = 70_000


def write(folder, documents=("ab", "c", "dé"), tokenizer=None, source="source"):
    tokenizer = tokenizer or ByteTokenizer()
    encoded = [(np.array(tokenizer.encode(text)), len(text.encode())) for text in documents]
    return write_store(folder, encoded, tokenizer=tokenizer, source_fingerprint=source, split="train")


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
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 18
    expected = {
        "format_version": 1,
        "split": "train",
        "vocab_size": 257,
        "dtype": "uint16",
        "num_tokens": 9,
        "num_documents": 3,
        "num_bytes": 6,
        "tokenizer_fingerprint": ByteTokenizer().fingerprint,
        "source_fingerprint": "source",
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
    with pytest.raises(DataError, match=r"id 257 at position 1 is outside the vocabulary: 0 to 256"):
        write_store(
            tmp_path / "s", [(np.array([1, 257]), 2)], tokenizer=ByteTokenizer(), source_fingerprint="s", split="train"
        )
    assert list(tmp_path.iterdir()) == []


def test_no_tokens_is_an_error(tmp_path):
    with pytest.raises(DataError, match="train split has 0 documents and 0 tokens"):
        write(tmp_path / "s", ())


def test_an_error_in_mid_write_leaves_nothing(tmp_path):
    def broken():
        yield np.array([1]), 1
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_store(tmp_path / "s", broken(), tokenizer=ByteTokenizer(), source_fingerprint="s", split="train")
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_keeps_the_first_store(tmp_path):
    first = write(tmp_path / "store")
    written = (tmp_path / "store" / "tokens.bin").stat().st_ino
    assert write(tmp_path / "store").manifest == first.manifest
    assert (tmp_path / "store" / "tokens.bin").stat().st_ino == written
    with pytest.raises(DataError, match=r"already holds another store \(different: source_fingerprint\)"):
        write(tmp_path / "store", source="other")


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


def test_document_starts_must_fit_the_manifest(tmp_path):
    write(tmp_path / "store")
    file = tmp_path / "store" / "document_starts.npy"
    np.save(file, np.array([0, 9]))
    refuses(tmp_path / "store", "int64 (2,), expected int64 (4,)")
    np.save(file, np.array([0, 3, 5, 8]))
    refuses(tmp_path / "store", "does not rise from 0 to 9", "found 0 to 8")
    np.save(file, np.array([0, 5, 3, 9]))
    refuses(tmp_path / "store", "does not rise")
    file.write_bytes(file.read_bytes()[:20])
    refuses(tmp_path / "store", "document_starts.npy cannot be read")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, ["format 2", "reads 1"]),
        ({"num_tokens": -1}, ["num_tokens is -1"]),
        ({"num_tokens": 10}, ["has 18 bytes", "expected 20 bytes"]),
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
