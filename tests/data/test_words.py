"""Words and sentences of several scripts."""

import time

import pytest

from data.words import replaced, sentence_spans, word_spans, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, x-ray! foo_bar 3", ["Don't", "stop", "x-ray", "foo_bar", "3"]),
        ("你好，world。再见", ["你", "好", "world", "再", "见"]),
        ("カタカナ 한국어 हिन्दी", ["カ", "タ", "カ", "ナ", "한국어", "हिन्दी"]),
        ("می‌خواهم café e\u0301t", ["می‌خواهم", "café", "e\u0301t"]),
        (" \n—…，。!? ", []),
    ],
)
def test_words_of_each_script(text, expected):
    assert words(text) == expected
    assert [text[first:last] for first, last in word_spans(text)] == expected


def test_sentences_end_at_marks_quotes_and_empty_lines():
    text = "He said: “Stop.” Then left… 3.5 km?!\nwrapped\nline\n\nTitle\n\n他说：“好。”走了！真的吗？是  \n"
    found = [text[first:last] for first, last in sentence_spans(text)]
    assert found == [
        "He said: “Stop.”",
        "Then left…",
        "3.5 km?!",
        "wrapped\nline",
        "Title",
        "他说：“好。”",
        "走了！",
        "真的吗？",
        "是",
    ]
    assert sentence_spans(" \n ") == []


def test_replaced_keeps_what_lies_between():
    assert replaced("a  b\n c", [(0, 1), (6, 7)], ["XX", ""]) == "XX  b\n "
    assert replaced("abc", [], []) == "abc"


@pytest.mark.parametrize("piece", ["a", " ", "\n", "你", ". ", "-a", "\n \n", "' ", "。", ".", "!”", "?!x"])
def test_a_long_text_takes_linear_time(piece):
    text = "a" + piece * (1_000_000 // len(piece)) + "b"
    began = time.perf_counter()
    assert words(text) and sentence_spans(text)
    assert time.perf_counter() - began < 15  # a quadratic search would take hours
