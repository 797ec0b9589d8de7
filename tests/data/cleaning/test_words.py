"""What a word is, with spaces and without."""

import pytest

from data.cleaning.words import split_words


@pytest.mark.parametrize(
    ("text", "setting", "words", "spaced"),
    [
        ("Two  words,\nno more", "auto", ["Two", "words,", "no", "more"], True),
        ("你好，世界。", "auto", ["你", "好，", "世", "界。"], False),
        ("你好，世界。", "spaces", ["你好，世界。"], True),
        ("JAX很快。2024年", "characters", ["JAX", "很", "快。", "2024", "年"], False),
        ("これはペン", "auto", ["こ", "れ", "は", "ペ", "ン"], False),
        ("한국어 문장", "auto", ["한국어", "문장"], True),
        ("abc 你好", "auto", ["abc", "你好"], True),  # 2 of 5
        ("abc 你好吗", "auto", ["abc", "你", "好", "吗"], False),  # 3 of 6
        ("只 a", "spaces", ["只", "a"], True),
        ("", "auto", [], True),
        (" \u3000\n", "auto", [], True),
        ("！？", "characters", ["！？"], False),
    ],
)
def test_words(text, setting, words, spaced):
    split = split_words(text, setting)
    assert (split.words, split.spaced) == (words, spaced)
