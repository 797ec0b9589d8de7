import json

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import load_tokenizer
from tests.data.pretrained_folders import HARD, make

TEXTS = [
    "👩‍👩‍👧 naïve e\u0301 ﬁ 3.14",
    "  two\t\ttabs\n\n\x01 שלום don't",
    "漢字 你好，世界 <|endoftext|>[MASK]</s><extra_id_3> x",
]
# Recorded with transformers 5.23 (GPT2Tokenizer, BertTokenizer, T5Tokenizer, add_special_tokens=False) and, for
# Llama, with sentencepiece 0.2.3 on the same files: the ids of TEXTS.
# fmt: off
GOLDEN = {
    "gpt2": [
        [41840, 102, 447, 235, 41840, 102, 447, 235, 41840, 100, 41492, 304, 136, 223, 27332, 105, 223, 513, 13, 1415],
        [220, 734, 197, 197, 8658, 82, 198, 198, 189, 14360, 102, 40010, 27072, 147, 251, 836, 470],
        [162, 120, 95, 27764, 245, 220, 19526, 254, 25001, 121, 171, 120, 234, 10310, 244, 45911, 234, 220, 50256, 58,
         31180, 42, 60, 3556, 82, 6927, 26086, 62, 312, 62, 18, 29, 2124],
    ],
    "bert": [
        [100, 15743, 1041, 1984, 1017, 1012, 2403],
        [2048, 21628, 2015, 1266, 29799, 29792, 29800, 2123, 1005, 1056],
        [1904, 100, 100, 100, 1989, 1745, 100, 1026, 1064, 2203, 15794, 10288, 2102, 1064, 1028, 103, 1026, 1013, 1055,
         1028, 1026, 4469, 1035, 8909, 1035, 1017, 1028, 1060],
    ],
    "bert_chinese": [
        [100, 11469, 8857, 147, 100, 124, 119, 8122],
        [10380, 10476, 8118, 100, 9524, 112, 162],
        [4031, 2099, 872, 1962, 8024, 686, 4518, 133, 170, 9931, 10150, 11816, 170, 135, 103, 133, 120, 161, 135, 133,
         9577, 9808, 142, 8231, 142, 124, 135, 166],
    ],
    "t5": [
        [3, 2, 3, 2, 3, 2, 3, 22, 5, 2, 25, 4, 3, 2, 3, 2, 8, 3, 2],
        [3, 24, 19, 7, 3, 24, 5, 2, 6, 3, 2, 3, 21, 7, 22, 2, 24],
        [3, 2, 3, 2, 3, 2, 4, 22, 21, 7, 2, 16, 2, 24, 2, 1, 122, 3, 2],
    ],
    "llama": [
        [28705, 243, 162, 148, 172, 29274, 243, 162, 148, 172, 29274, 243, 162, 148, 170, 1879, 28920, 333, 317, 28949,
         28705, 30160, 28705, 28770, 28723, 28740, 28781],
        [259, 989, 12, 12, 24856, 13, 13, 29534, 28705, 29155, 29077, 29006, 29398, 949, 28742, 28707],
    ],
}
# fmt: on
SIZES = {"gpt2": 50257, "bert": 30522, "bert_chinese": 21128, "t5": 126, "llama": 32000}
SPECIAL = {
    "gpt2": {"bos": 50256, "eos": 50256, "unk": 50256},
    "bert": {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103},
    "bert_chinese": {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103},
    "t5": {"pad": 0, "eos": 1, "unk": 2} | {f"extra_{number}": 125 - number for number in range(100)},
    "llama": {"unk": 0, "bos": 1, "eos": 2},
}
ONE = {"gpt2": [7, 8], "bert": [101, 7, 8, 102], "bert_chinese": [101, 7, 8, 102], "t5": [7, 8, 1], "llama": [1, 7, 8]}
BEGIN = {"bert": (101,), "bert_chinese": (101,), "llama": (1,)}
TWO = {
    "gpt2": [7, 8, 9],
    "bert": [101, 7, 8, 102, 9, 102],
    "bert_chinese": [101, 7, 8, 102, 9, 102],
    "t5": [7, 8, 1, 9, 1],
    "llama": [1, 7, 8, 1, 9],
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A function that loads the tokenizer of a family, once."""
    made = {}

    def load(family, test_data):
        if family not in made:
            made[family] = load_pretrained_tokenizer(make(tmp_path_factory.mktemp("a") / family, test_data, family))
        return made[family]

    return load


@pytest.mark.parametrize("family", GOLDEN)
def test_ids_are_those_recorded(family, loaded, test_data):
    tokenizer = loaded(family, test_data)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("huggingface", SIZES[family])
    assert tokenizer.special_ids == SPECIAL[family]
    assert tokenizer.eos_id == SPECIAL[family].get("eos")
    assert tokenizer.eos_ids == tuple(SPECIAL[family][role] for role in ("eos",) if role in SPECIAL[family])
    assert tokenizer.begin_ids == BEGIN.get(family, ())
    for text, ids in zip(TEXTS, GOLDEN[family], strict=False):
        assert tokenizer.encode(text) == ids
    batch = tokenizer.encode_batch(["", *TEXTS])
    assert [ids.tolist() for ids in batch[1:]][: len(GOLDEN[family])] == GOLDEN[family]
    assert batch[0].size == 0 and all(ids.dtype == np.int32 for ids in batch)


@pytest.mark.parametrize("family", GOLDEN)
def test_wrap_is_the_familys(family, loaded, test_data):
    tokenizer = loaded(family, test_data)
    assert tokenizer.wrap([7, 8]) == tokenizer.wrap(np.array([7, 8])) == ONE[family]
    assert tokenizer.wrap([7, 8], [9]) == TWO[family]
    assert tokenizer.wrap(np.array([9]), np.array([7, 8])) == tokenizer.wrap([9], [7, 8])
    assert all(type(id) is int for id in tokenizer.wrap(np.array([9]), np.array([7, 8])))
    assert tokenizer.wrap([]) == [id for id in ONE[family] if id not in (7, 8)]


@pytest.mark.parametrize("family", GOLDEN)
def test_saved_tokenizers_come_back_the_same(family, loaded, test_data, tmp_path):
    tokenizer = loaded(family, test_data)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    names = (
        "kind",
        "vocab_size",
        "eos_id",
        "eos_ids",
        "begin_ids",
        "special_ids",
        "fingerprint",
        "sentencepiece_model",
    )
    for name in names:
        assert getattr(again, name) == getattr(tokenizer, name)
    assert [again.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]
    assert (again.token_bytes_V == tokenizer.token_bytes_V).all()
    assert again.wrap([7, 8], [9]) == TWO[family]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@example(text="  \r\n\t \0\x85\u2028\ufffd 🙂e\u0301")
@example(text="\u2581Ġ Ċ")
def test_byte_level_bpe_loses_nothing(text, loaded, test_data):
    assume("<|endoftext|>" not in text)
    tokenizer = loaded("gpt2", test_data)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes_V[ids].sum()) == len(text.encode()) if ids else text == ""


def test_decoding_drops_specials_and_replaces_invalid(loaded, test_data):
    gpt2, bert, t5 = (loaded(family, test_data) for family in ("gpt2", "bert", "t5"))
    assert gpt2.decode([50256, *gpt2.encode("hé"), 50256]) == "hé"
    assert gpt2.decode(np.array([41840])) == "\ufffd"  # three of the four bytes of an emoji
    assert bert.decode([101, *bert.encode("Unaffable, NOT a [MASK]!"), 102, 0]) == "unaffable, not a!"
    assert t5.decode([*t5.encode("this is a <extra_id_0>test"), 1]) == "this is a test"


def test_token_bytes_are_of_the_text_of_each_id(loaded, test_data):
    gpt2, bert, t5, llama = (loaded(family, test_data) for family in ("gpt2", "bert", "t5", "llama"))
    assert all(tokenizer.token_bytes_V.dtype == np.int32 for tokenizer in (gpt2, bert, t5, llama))
    assert gpt2.token_bytes_V[[50256, *gpt2.encode(" Hello")]].tolist() == [0, 6]
    assert bert.token_bytes_V[[101, *bert.encode("unaffable 中é")]].tolist() == [0, 3, 3, 3, 3, 1]
    assert t5.token_bytes_V[[2, 125, *t5.encode("this is")]].tolist() == [0, 0, 3, 1, 1, 1, 1, 1]
    assert llama.token_bytes_V[[1, *llama.encode("Hello 🦜\x01")]].tolist() == [0, 6, 1, 1, 1, 1, 1, 1]


def test_added_tokens_count_their_text_and_holes_nothing():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 4}, []))
    backend.add_tokens(["né"])
    backend.add_special_tokens(["<end>"])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    tokenizer = HuggingFaceTokenizer.of(backend, {"eos": 3}, b"", "small")
    ids = tokenizer.encode("abné<end>aaaa")
    assert ids[:2] == [0, 4] and ids[4:] == [0] * 4  # neither cut nor padded
    assert tokenizer.token_bytes_V[ids[2]] == 3 and tokenizer.token_bytes_V[ids[3]] == 0
    assert tokenizer.vocab_size == len(tokenizer.token_bytes_V) == max(4, *ids) + 1


def test_fingerprints_differ_with_pieces_and_special_ids():
    def small(pieces, special_ids):
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, []))
        return HuggingFaceTokenizer.of(backend, special_ids, b"", "small").fingerprint

    made = [small({"a": 0, "b": 1}, {}), small({"a": 1, "b": 0}, {}), small({"a": 0, "b": 1}, {"eos": 1})]
    assert len(set(made)) == 3
    assert small({"b": 1, "a": 0}, {}) == made[0]
    assert small({"a": 0, "b": 1}, {"eos": 1, "bos": 0}) == small({"a": 0, "b": 1}, {"bos": 0, "eos": 1})


def test_bad_text_ids_and_content_are_refused(loaded, test_data, tmp_path):
    tokenizer = loaded("t5", test_data)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(DataError, match=r"U\+D800\) at position 2"):
            encode("ab\ud800")
    for bad in (-1, 126):
        with pytest.raises(DataError, match=rf"id {bad} at position 1 .* 0 to 125 "):
            tokenizer.decode([0, bad])
    for content in (b"{", b"[]", b'{"tokenizer": "", "special_ids": {}}'):
        with pytest.raises(DataError, match=rf"x is no saved Hugging Face tokenizer \({len(content)} bytes\)"):
            HuggingFaceTokenizer(content, "x")
    fields = {"tokenizer": "{}", "special_ids": {}, "sentencepiece": ""}
    with pytest.raises(DataError, match=r"x is not a tokenizer.json \(2 characters\)"):
        HuggingFaceTokenizer(json.dumps(fields).encode(), "x")
    tokenizer.save(tmp_path)
    file = tmp_path / "huggingface.json"
    file.write_bytes(file.read_bytes().replace(b'"eos": 1', b'"eos": 2'))
    with pytest.raises(DataError, match=tokenizer.fingerprint):
        load_tokenizer(tmp_path)


def test_a_file_without_more_ends_has_one():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2}, []))
    for special_ids, ends in (({"eos": 1}, (1,)), ({}, ())):
        fields = {"tokenizer": backend.to_str(), "special_ids": special_ids, "sentencepiece": ""}
        assert HuggingFaceTokenizer(json.dumps(fields).encode()).eos_ids == ends
    assert HuggingFaceTokenizer.of(backend, {"eos": 1}, b"", "small", [2, 1]).eos_ids == (1, 2)
    assert HuggingFaceTokenizer.of(backend, {}, b"", "small", [2, 0]).eos_ids == (2, 0)


def test_a_post_processor_that_turns_texts_round_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$B:1 $A", special_tokens=[])
    with pytest.raises(DataError, match=r"whole and in order, not make \[1, 0\]"):
        HuggingFaceTokenizer.of(backend, {}, b"", "small")
