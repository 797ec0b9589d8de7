"""Figures of a tokenizer, counted by hand."""

import json
from dataclasses import replace

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.errors import DataError
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.report import comparison, tokenizer_report
from data.tokenizers.sentencepiece_training import train_model
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer
from tests.data.conftest import PROSE, SOURCE

TEXTS = {"en": ["one two", "x\u00e9"], "zh": ["\u4f60\u597d \u4f60"]}


def test_counts_are_those_made_by_hand():
    report = tokenizer_report(ByteTokenizer(), TEXTS)
    en, zh = report.languages["en"], report.languages["zh"]
    assert (en.documents, en.bytes, en.words, en.tokens, en.unknown, en.partial, en.exact) == (2, 10, 3, 10, 0, 2, 2)
    assert (zh.documents, zh.bytes, zh.words, zh.tokens, zh.partial) == (1, 10, 3, 10, 9)  # words: characters
    assert (en.bytes_per_token, en.fertility, zh.fertility) == (1.0, 10 / 3, 10 / 3)
    assert replace(en, seconds=0.001).encode_mb_per_s == pytest.approx(0.01)
    used = set("one twox")  # the other 128 ids hold a part of a character
    assert (report.pieces, report.unused) == (128, 128 - len(used))
    assert report.unused_examples[:3] == ("\0", "\1", "\2")


def test_lost_text_is_counted():
    tokenizer = SentencePieceTokenizer(train_model([PROSE * 500], 100, 0, byte_fallback=False))
    report = tokenizer_report(tokenizer, {"en": ["The fox", "The \u2603 fox \u2603", "a b"]}).languages["en"]
    assert (report.unknown, report.exact, report.documents) == (2, 2, 3)


def test_names_of_special_ids_in_the_text_are_counted():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator([PROSE], trainers.BpeTrainer(special_tokens=["<unk>", "<|endoftext|>", "<pad>"]))
    text = "The fox<|endoftext|><unk><pad><pad>"
    for split, special in ((False, 3), (True, 0)):
        ids = {"unk": 0, "eos": 1, "pad": 2}
        tokenizer = HuggingFaceTokenizer.of(backend, ids, b"", "a test", split_special_tokens=split)
        report = tokenizer_report(tokenizer, {"en": [text]})
        assert report.languages["en"].special == special
        assert ("spells names of special ids: 3 tokens" in report.markdown()) == (not split)


def test_pieces_are_told_from_bytes(pieces):
    # Of the 256 bytes, those beyond ASCII are no characters, and for some of the others there is a piece as well.
    learned = [piece.decode() for piece in pieces._bytes_V[258:]]
    bytes_alone = [id for id in range(2, 130) if chr(id - 2) not in learned]
    report = tokenizer_report(pieces, {"en": [SOURCE]})
    assert 0 < len(bytes_alone) < 128 and report.pieces == len(learned) + len(bytes_alone)
    assert report.unused == len({*bytes_alone, *range(258, 340)} - set(pieces.encode(SOURCE)))
    assert report.longest_pieces[0] == max(learned, key=lambda piece: len(piece.encode()))
    assert report.unused_examples[0] in learned  # bytes come last


def test_a_character_tokenizer_and_replacement_characters():
    report = tokenizer_report(CharTokenizer(" a\ufffd"), {"en": ["a \ufffd a"]})
    assert (report.pieces, report.unused, report.languages["en"].partial) == (3, 0, 0)


def test_markdown_has_a_row_for_each_language_with_numbers_to_the_right():
    text = tokenizer_report(ByteTokenizer(), TEXTS).markdown()
    lines = text.split("\n")
    table = [line for line in lines if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["language", "--------", "en", "zh"]
    assert len({len(line) for line in table}) == 1
    rule = table[1].split("|")[1:-1]
    assert [cell.strip().endswith(":") for cell in rule] == [False] + [True] * 8
    en, zh = ([cell.strip() for cell in line.split("|")[1:-2]] for line in table[2:])
    assert en == ["en", "2", "0.00", "1.00", "3.33", "0.00%", "20.00%", "100.0%"]
    assert zh == ["zh", "1", "0.00", "1.00", "3.33*", "0.00%", "90.00%", "100.0%"]
    assert lines[0].startswith("byte, 257 ids, fingerprint ") and "* zh: tokens/character" in text
    assert 'Never used on this text: 121 of 128 pieces (94.5%): `"\\u0000"`' in text


def test_fields_are_json_with_ratios():
    fields = json.loads(json.dumps(tokenizer_report(ByteTokenizer(), TEXTS).fields()))
    assert fields["vocab_size"] == 257 and fields["languages"]["zh"]["bytes_per_token"] == 1.0
    assert fields["languages"]["en"]["fertility"] == pytest.approx(10 / 3)


def test_comparison_has_a_row_for_each_language_and_tokenizer(pieces):
    texts = {"en": [PROSE, SOURCE], "zh": ["你好世界"]}
    reports = {name: tokenizer_report(one, texts) for name, one in {"byte": ByteTokenizer(), "a|b": pieces}.items()}
    rows = [line.split(" | ") for line in comparison(reports).split("\n") if line.startswith("|")]
    names = [(row[0].strip("| "), row[1].strip()) for row in rows[2:]]
    assert names == [("en", "byte"), ("en", "a\\|b"), ("zh", "byte"), ("zh", "a\\|b")]
    assert [row[2].strip() for row in rows[2:4]] == ["257", "340"]
    other = tokenizer_report(pieces, {"en": [PROSE]})
    with pytest.raises(DataError, match="reports on the same text are compared"):
        comparison({"byte": reports["byte"], "pieces": other})


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "no text to judge"),
        ({"en": []}, "'en' has 0 words and 0 tokens in 0"),
        ({"en": ["\n"]}, "0 words and 1 tok"),
    ],
)
def test_no_text_is_an_error(texts, says):
    with pytest.raises(DataError, match=says):
        tokenizer_report(ByteTokenizer(), texts)
