"""Byte-level BPE and WordPiece: what they learn, keep and lose, and that training repeats."""

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.tokenizers.bpe_training import END_OF_TEXT, train_byte_bpe, train_word_pieces
from data.tokenizers.tokenizer import load_tokenizer
from tests.data.conftest import PROSE, REPOSITORY, SOURCE

TEXTS = [SOURCE * 3, PROSE * 5, "<a>the<a>" * 30, "你好吗？你好。" * 10]
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def byte_bpe():
    return train_byte_bpe(TEXTS, 370, symbols=["<a>", "\u4f60\u597d\u5440"], sentinels=3)


@pytest.fixture(scope="module")
def word_pieces():
    return train_word_pieces(TEXTS, 150, symbols=["<a>"], sentinels=3)


@given(
    text=st.lists(
        any_text | st.sampled_from([END_OF_TEXT, "<extra_id_0>", "<a>", "\u4f60\u597d\u5440", "\r\n", "  ", "\0"])
    ).map("".join)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(text="  \ttrailing \r\n\r\n  ")
@example(text="ﬁ①Ａe\u0301\u200b\ufeff🙂\u2581\ufffd")
def test_byte_level_bpe_is_lossless(byte_bpe, text):
    ids = byte_bpe.encode(text)
    assert byte_bpe.decode(ids) == text
    assert int(byte_bpe.token_bytes_V[ids].sum()) == len(text.encode())


def test_byte_level_bpe_is_laid_out_as_documented(byte_bpe, tmp_path):
    byte_bpe.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eos_id, loaded.begin_ids, loaded.eos_ids) == (370, 364, (364,), (364,))
    assert loaded.special_ids == {"eos": 364, "extra_0": 365, "extra_1": 366, "extra_2": 367}
    assert loaded.token_bytes_V[364:].tolist() == [0, 0, 0, 0, 3, 9]
    assert set(loaded.token_bytes_V[:256]) == {1}
    assert loaded.encode("<a>\u4f60\u597d\u5440<a>") == [368, 369, 368]
    assert len(loaded.encode(" quick")) == 1  # a word goes with the space before it
    assert loaded.decode([364, 365]) == ""
    assert loaded.wrap([1], [2]) == [1, 2]


def test_nothing_is_learned_across_a_symbol(byte_bpe):
    texts = [byte_bpe.decode([id]) for id in range(364)]
    assert [text for text in texts if "<" in text or ">" in text] == ["<", ">"]  # and not "><" of "<a><a>"


def test_word_pieces_are_laid_out_as_documented(word_pieces, tmp_path):
    word_pieces.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eos_id) == (150, None)
    specials = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "extra_0": 5, "extra_1": 6, "extra_2": 7}
    assert loaded.special_ids == specials
    assert loaded.wrap([50], [60, 70]) == [2, 50, 3, 60, 70, 3]
    assert loaded.encode("<a>[MASK]")[0] == 8 and 4 not in loaded.encode("<a>[MASK]")
    texts = [word_pieces.backend.id_to_token(id) for id in range(150)]
    inside = [piece for piece in texts if piece.startswith("##") and len(piece) == 3]
    assert texts[9 : 9 + len(inside)] == sorted(inside)
    assert loaded.decode(loaded.encode("The quick fox")) == "The quick fox"
    assert loaded.encode("\u2603x y") == [1, word_pieces.backend.token_to_id("y")]  # a word with an unknown character


def test_wordpiece_case_accents_and_chinese_follow_the_settings():
    text = "Élan élan ELAN " * 20 + "你好你好 " * 20 + PROSE * 5
    kept, lower = (train_word_pieces([text], 105, lowercase=lowercase) for lowercase in (False, True))
    assert lower.encode("ÉLAN") == lower.encode("elan") and lower.decode(lower.encode("ÉLAN")) == "elan"
    assert kept.decode(kept.encode("Élan ELAN")) == "Élan ELAN"
    joined = train_word_pieces([text], 130, chinese_characters=False)
    assert len(kept.encode("你好")) == 2 and len(joined.encode("你好")) == 1


@pytest.mark.parametrize("kind", ["train_byte_bpe", "train_word_pieces"])
def test_training_repeats_in_other_processes_and_numbers_of_threads(kind):
    # Each process has its own seed for the hash tables that the library counts with.
    size = 350 if kind == "train_byte_bpe" else 150
    code = f"from data.tokenizers.bpe_training import *; print({kind}({TEXTS!r}, {size}).fingerprint)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "4")
    ]
    printed = {process.communicate()[0] for process in started}
    assert len(printed) == 1 and len(printed.pop().strip()) == 32


@pytest.mark.parametrize(("train", "vocab_size"), [(train_byte_bpe, 290), (train_word_pieces, 85)])
def test_another_text_gives_another_tokenizer(train, vocab_size):
    prose, source, again = (train([text * 3], vocab_size).fingerprint for text in (PROSE, SOURCE, PROSE))
    assert prose == again != source


@pytest.mark.parametrize("train", [train_byte_bpe, train_word_pieces])
def test_a_vocabulary_too_large_names_the_largest_that_works(train):
    with pytest.raises(DataError, match="a vocabulary of 5000 ids is more than this text has pieces for") as error:
        train([PROSE * 2], 5000)
    largest = int(str(error.value).split("use ")[1].split()[0])
    assert train([PROSE * 2], largest).vocab_size == largest


@pytest.mark.parametrize(
    ("train", "settings", "says"),
    [
        (train_byte_bpe, {"vocab_size": 100}, "of 100 ids is too small: 256 bytes, 1 special ids .* need 261 or more"),
        (train_byte_bpe, {"symbols": ["x"]}, "'x', is the name of another id"),
        (train_byte_bpe, {"symbols": [END_OF_TEXT]}, "is the name of another id"),
        (train_byte_bpe, {"symbols": ["é1"]}, "'é1' would not decode to itself in byte-level BPE"),
        (train_byte_bpe, {"symbols": ["<a>", "<a>"]}, "symbol 2 of 2, '<a>', is given twice"),
        (train_byte_bpe, {"texts": []}, "there is no text to train a tokenizer on"),
        (train_byte_bpe, {"texts": ["<a>"], "symbols": ["<a>"]}, "there is no text to train a tokenizer on"),
        (train_word_pieces, {"vocab_size": 8}, "of 8 ids is too small: 5 special ids and 0 symbols, .* need 9 or more"),
        (train_word_pieces, {"vocab_size": 30}, "takes 44 of the 44 characters .* room for 25"),
        (train_word_pieces, {"vocab_size": 60}, "60 ids is too small for the characters of this text: 5 .* need 70 or"),
        (train_word_pieces, {"symbols": ["##a"]}, "'##a', is the name of another id"),
        (train_word_pieces, {"symbols": ["[CLS]"]}, "is the name of another id"),
        (train_word_pieces, {"texts": [" \n\t"]}, "what there is, is white space"),
        (train_word_pieces, {"coverage": 0.0}, "coverage is 0.0: it must be above 0"),
        (train_word_pieces, {"sentinels": -1}, "sentinels is -1: 0 to 100"),
    ],
)
def test_what_cannot_be_trained_says_why(train, settings, says):
    with pytest.raises(DataError, match=says):
        train(**({"texts": [PROSE], "vocab_size": 300} | settings))


def test_both_kinds_equal_transformers_after_export(byte_bpe, word_pieces, tmp_path):
    transformers = pytest.importorskip("transformers")
    from data.tokenizers.export import export_tokenizer

    for tokenizer in (byte_bpe, word_pieces):
        export_tokenizer(tokenizer, tmp_path / str(tokenizer.vocab_size))
        other = transformers.AutoTokenizer.from_pretrained(tmp_path / str(tokenizer.vocab_size))
        text = f"The <a>quick “fox” 你好 1,234{END_OF_TEXT}[MASK]\n"
        assert other.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        again = load_tokenizer(tmp_path / str(tokenizer.vocab_size))
        assert again.encode(text) == tokenizer.encode(text)
