import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.tokenizers import files as tokenizer_files
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, WithSpecials, load_tokenizer

any_text = st.text(st.characters(exclude_categories=["Cs"]))


def check_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(int(tokenizer.token_bytes_V[id]) for id in ids) == len(text.encode())
    assert all(isinstance(id, int) for id in ids)
    assert tokenizer.encode_batch(["x", text, ""])[1].tolist() == ids


@given(any_text)
def test_byte_round_trip(text):
    check_lossless(ByteTokenizer(), "x" + text)


@given(any_text)
def test_char_round_trip(text):
    check_lossless(CharTokenizer.train(["x", text]), "x" + text)


def test_byte_ids_are_the_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("hé") == [104, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eos_id, len(tokenizer.token_bytes_V)) == (257, 256, 257)
    assert tokenizer.special_ids == {"eos": 256} and CharTokenizer("ab").special_ids == {}
    assert tokenizer.token_bytes_V[256] == 0 and tokenizer.token_bytes_V.dtype == np.int32


def test_what_ends_and_begins_a_text(pieces):
    both = {tokenizer: (tokenizer.eos_ids, tokenizer.begin_ids) for tokenizer in (ByteTokenizer(), pieces)}
    assert list(both.values()) == [((256,), (256,)), ((1,), (1,))]
    plain = CharTokenizer("ab")
    assert (plain.eos_ids, plain.begin_ids) == ((), ())
    names = ["mask", "cls", "sep", "eos"]
    for base, expected in both.items():
        tokenizer = WithSpecials(base, names)
        assert (tokenizer.eos_ids, tokenizer.begin_ids) == expected
    assert (WithSpecials(plain, names).eos_ids, WithSpecials(plain, names).begin_ids) == ((5,), (5,))


def test_byte_decoding_drops_specials_and_replaces_invalid():
    assert ByteTokenizer().decode(np.array([104, 256, 0xC3, 256, 0xA9])) == "hé"
    assert ByteTokenizer().decode([104, 0xC3]) == "h\ufffd"
    assert ByteTokenizer().decode([]) == ""


def test_char_ids_are_sorted_characters():
    tokenizer = CharTokenizer.train(["ba", "c\n"])
    assert (tokenizer.chars, tokenizer.eos_id, tokenizer.vocab_size) == ("\nabc", None, 4)
    assert tokenizer.encode("cab\n") == [3, 1, 2, 0]
    assert CharTokenizer.train(["é你🙂a"]).token_bytes_V.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("unknown", ["\0", "b", "é"])  # below, between and above the known code points
def test_char_unknown_character_is_named(unknown):
    with pytest.raises(DataError) as error:
        CharTokenizer("ac").encode("aca" + unknown)
    for part in (repr(unknown), f"U+{ord(unknown):04X}", "position 3", "the 2 characters"):
        assert part in str(error.value)


def test_char_refuses_unsorted_or_no_characters():
    for chars in ("ba", "aa", ""):
        with pytest.raises(DataError, match="sorted and distinct"):
            CharTokenizer(chars)


def test_ids_out_of_range_are_refused(pieces):
    for tokenizer in (ByteTokenizer(), CharTokenizer("ab"), pieces):
        for bad in (-1, tokenizer.vocab_size):
            with pytest.raises(DataError, match=rf"id {bad} at position 1 .* 0 to {tokenizer.vocab_size - 1} "):
                tokenizer.decode([0, bad])


def test_half_a_surrogate_pair_is_refused(pieces):
    for tokenizer in (ByteTokenizer(), pieces):
        with pytest.raises(DataError, match=r"U\+D800\) at position 2"):
            tokenizer.encode("ab\ud800")


def test_saved_tokenizers_come_back_the_same(tmp_path, pieces):
    for number, tokenizer in enumerate([ByteTokenizer(), CharTokenizer("\n\r ab你"), pieces]):
        tokenizer.save(tmp_path / str(number))
        loaded = load_tokenizer(tmp_path / str(number))
        assert type(loaded) is type(tokenizer)
        for name in ("kind", "vocab_size", "eos_id", "fingerprint"):
            assert getattr(loaded, name) == getattr(tokenizer, name)
        assert loaded.encode("ab \r\n") == tokenizer.encode("ab \r\n")
        assert (loaded.token_bytes_V == tokenizer.token_bytes_V).all()


def test_fingerprints_differ_between_tokenizers(pieces):
    made = [ByteTokenizer(), CharTokenizer("ab"), CharTokenizer("ac"), pieces]
    assert len({tokenizer.fingerprint for tokenizer in made}) == 4
    assert CharTokenizer("ab").fingerprint == made[1].fingerprint
    assert tokenizer_files.fingerprint("char", b"ab") != tokenizer_files.fingerprint("sentencepiece", b"ab")


def test_changed_data_is_refused_with_both_fingerprints(tmp_path):
    CharTokenizer("ab").save(tmp_path)
    (tmp_path / "characters.txt").write_text("ac")
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path)
    assert CharTokenizer("ab").fingerprint in str(error.value)
    assert CharTokenizer("ac").fingerprint in str(error.value)


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no tessera_tokenizer\.json, nor a published one's files"):
        load_tokenizer(tmp_path)
    CharTokenizer("ab").save(tmp_path)
    (tmp_path / "characters.txt").unlink()
    with pytest.raises(DataError, match=r"characters\.txt is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tessera_tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tessera_tokenizer.json").write_text('{"kind": "words"}')
    with pytest.raises(DataError, match="'words' is unknown: byte, char, sentencepiece"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="did you mean 'sentencepiece'"):
        load_tokenizer("sentencpiece")
