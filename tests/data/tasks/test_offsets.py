import unicodedata

import numpy as np
import pytest

from data.errors import DataError
from data.tasks.offsets import encode_with_offsets
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, WithSpecials
from tests.data import pretrained_folders

TEXT = "return 你好 — “naïve” 👩‍👩‍👧 x"


def test_bytes_of_a_character_have_the_whole_of_it():
    ids, spans = encode_with_offsets(WithSpecials(ByteTokenizer(), ("pad",)), ["a你👩"])[0]
    assert ids.tolist() == list("a你👩".encode())
    assert spans.tolist() == [[0, 1], *[[1, 2]] * 3, *[[2, 3]] * 4]
    assert spans.dtype == np.int32


@pytest.mark.parametrize("name", ["byte", "char", "sentencepiece"])
def test_lossless_tokens_lie_end_to_end(pieces, name):
    tokenizer = {"byte": ByteTokenizer(), "char": CharTokenizer.train([TEXT]), "sentencepiece": pieces}[name]
    (ids, spans), (none, no_spans) = encode_with_offsets(tokenizer, [TEXT, ""])
    assert ids.tolist() == tokenizer.encode(TEXT) and none.size == no_spans.size == 0
    assert spans[0, 0] == 0 and spans[-1, 1] == len(TEXT)
    for (start, end), id in zip(spans.tolist(), ids.tolist(), strict=True):
        whole = tokenizer.decode([id])
        assert "\ufffd" in whole or TEXT[start:end] == whole  # U+FFFD: a part of a character
    assert (spans[1:, 0] <= spans[:-1, 1]).all() and (spans[1:, 0] >= spans[:-1, 0]).all()


def plain(text: str) -> str:
    """Without what BERT drops (case and accents), and the marks of pieces."""
    letters = unicodedata.normalize("NFD", text.replace("##", "").strip())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).lower()


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "llama"])
def test_published_tokenizers_tell_the_places(tmp_path, test_data, family):
    tokenizer = load_pretrained_tokenizer(pretrained_folders.make(tmp_path / family, test_data, family))
    text = "Denver  Broncos won, naïvely."
    ids, spans = encode_with_offsets(tokenizer, [text])[0]
    assert ids.tolist() == tokenizer.encode(text)
    # T5 begins a word with a piece that is a space alone, and has the place of the word's first character.
    covered = {at for start, end in spans.tolist() for at in range(start, end)}
    assert {at for at, char in enumerate(text) if char != " "} <= covered
    for (start, end), id in zip(spans.tolist(), ids.tolist(), strict=True):
        piece = plain(tokenizer.decode([id]))
        assert not piece or "\ufffd" in piece or piece == plain(text[start:end])


def test_a_tokenizer_that_loses_the_places_is_refused(test_data):
    lossy = SentencePieceTokenizer(test_data("spm_test_models/test_model.model").read_bytes())
    with pytest.raises(DataError, match="changes text, and does not tell where its pieces stood"):
        encode_with_offsets(lossy, ["Hello  world"])
