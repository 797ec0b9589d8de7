import json

import numpy as np
import pytest

from data.errors import DataError
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, WithSpecials, load_tokenizer

BERT = ["pad", "cls", "sep", "mask"]
T5 = ["pad", "eos", "extra_0", "extra_1"]


def test_new_ids_follow_the_bases(pieces):
    tokenizer = WithSpecials(pieces, T5)  # which has eos, 1, and unk, 0
    assert tokenizer.special_ids == {"unk": 0, "eos": 1, "pad": 340, "extra_0": 341, "extra_1": 342}
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.kind) == (343, 1, "with_specials")
    assert tokenizer.token_bytes_V[340:].tolist() == [0, 0, 0] and tokenizer.token_bytes_V.dtype == np.int32
    assert (tokenizer.token_bytes_V[:340] == pieces.token_bytes_V).all()
    assert WithSpecials(CharTokenizer("ab"), ["eos"]).eos_id == 2
    assert pieces.special_ids == {"unk": 0, "eos": 1}


def test_text_gives_the_bases_ids_and_new_ids_no_text():
    tokenizer = WithSpecials(ByteTokenizer(), BERT)
    text = "[MASK] é <pad>"
    assert tokenizer.encode(text) == list(text.encode())
    assert [ids.tolist() for ids in tokenizer.encode_batch([text, ""])] == [list(text.encode()), []]
    assert tokenizer.decode([258, 104, 260, 0xC3, 257, 0xA9, 256, 259]) == "hé"
    assert tokenizer.decode(np.array([], np.int32)) == ""
    with pytest.raises(DataError, match="id 261 at position 1 .* 0 to 260 "):
        tokenizer.decode([0, 261])


def test_wrap_follows_the_names():
    base = ByteTokenizer()
    assert WithSpecials(base, BERT).wrap([1, 2]) == [258, 1, 2, 259]
    assert WithSpecials(base, BERT).wrap([1], np.array([2, 3])) == [258, 1, 259, 2, 3, 259]
    assert WithSpecials(base, T5).wrap([1]) == [1, 256]
    assert WithSpecials(base, T5).wrap(np.array([1]), [2, 3]) == [1, 256, 2, 3, 256]
    for same in (base, CharTokenizer("ab"), WithSpecials(base, ["mask"])):
        assert same.wrap([1]) == [1]
        assert same.wrap(np.array([0, 1]), np.array([1, 0])) == [0, 1, 1, 0]


def test_saved_with_its_base(tmp_path, pieces):
    for number, tokenizer in enumerate(
        [WithSpecials(pieces, T5), WithSpecials(CharTokenizer("ab"), []), WithSpecials(WithSpecials(pieces, T5), BERT)]
    ):
        tokenizer.save(tmp_path / str(number))
        again = load_tokenizer(tmp_path / str(number))
        for name in ("kind", "vocab_size", "eos_id", "fingerprint", "special_ids", "names"):
            assert getattr(again, name) == getattr(tokenizer, name)
        assert again.encode("ab") == tokenizer.encode("ab")


def test_fingerprints_differ_with_base_and_names(pieces):
    made = [WithSpecials(base, names) for base in (pieces, ByteTokenizer()) for names in (BERT, T5, BERT[::-1])]
    assert len({tokenizer.fingerprint for tokenizer in [pieces, ByteTokenizer(), *made]}) == 8
    assert WithSpecials(pieces, tuple(BERT)).fingerprint == made[0].fingerprint


def test_another_base_is_refused(tmp_path):
    WithSpecials(CharTokenizer("ab"), BERT).save(tmp_path)
    CharTokenizer("ac").save(tmp_path / "base")
    with pytest.raises(DataError, match=CharTokenizer("ab").fingerprint):
        load_tokenizer(tmp_path)
    (tmp_path / "base" / "tessera_tokenizer.json").write_text(json.dumps({"kind": "words"}))
    with pytest.raises(DataError, match="'words' is unknown"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pad", "mask", "pad"], "'pad' is given twice"),
        (["extra_100"], "'extra_100' is not"),
        (["[CLS]"], "is not"),
    ],
)
def test_names_are_checked(names, message):
    with pytest.raises(DataError, match=message):
        WithSpecials(ByteTokenizer(), names)
