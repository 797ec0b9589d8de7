"""Megabytes of one character, or of what a pattern begins with: each rule takes linear time and raises nothing."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.rule import Dropped
from data.cleaning.rules import RULES, make_rules

# Of processor time, ten times what the slowest takes: a pattern that is quadratic in the least takes minutes.
SECONDS_OF_300_KB = 3
SECONDS_OF_5_MB = 40


def zero():
    return lambda text: 0.0


NAMES = [name for name in RULES if name != "language"]
ALL = {rule.name: rule for rule in make_rules(NAMES, {"perplexity": {"scorer": zero}})}


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", " ", "<", "7", "中"])
@pytest.mark.parametrize("name", [name for name in ALL if name != "perplexity"])
def test_megabytes_of_one_character(name, piece):
    _in_time(name, piece * 5_000_000, SECONDS_OF_5_MB)


CHARACTERS = ["a", " ", "<", "7", "中", ".", "!"]
BEGINNINGS = {
    "unicode": ["Ã©", "\u0301\u0323", "\u200d\u200c", "\ufeff\u202e", "\U0001f3f4\U000e0067"],
    "html": [
        "<a ",
        '<a b="',
        "<!--",
        "<script>",
        "<![CDATA[",
        "&amp;",
        "amp;",
        "\n ",
        "</b ",
        "<b>",
        ".a{",
        ".a{color:red;",
    ],
    "boilerplate": ["\n", "share \n", "a | ", "cookie use " * 17 + "\n", "© " * 95 + "\n", "中" * 195 + "\n"],
    "gopher_quality": ["\n", "- \n", "... "],
    "gopher_repetition": ["\n", "a\n\n", "a "],
    "c4": ["a.\n", ". ", "[", "a b c.", "。"],
    "fineweb": ["a\n", ". "],
    "personal": ["a@", "a.", "1.2.3.4.", "+1", "2001:", "4111 ", "138 ", "a@b.c", "a-", "+1 22 ", "1-"],
}
# In a list, each number tells that the next is one too.
PHONES = ["13812345678,", "415-555-2671/", "+13812345678", "(415) 555-2671", "212 555 1234 ", "212 555 1234/"]
BEGINNINGS["personal"] += PHONES
CASES = [(name, piece) for name, pieces in BEGINNINGS.items() for piece in [*CHARACTERS, *pieces]]


@pytest.mark.parametrize(("name", "piece"), CASES)
def test_what_a_pattern_begins_with(name, piece):
    _in_time(name, "x" + piece * (300_000 // len(piece)) + "x", SECONDS_OF_300_KB)


def _in_time(name, text, seconds):
    start = time.process_time()
    result = ALL[name](text)
    assert isinstance(result, str | Dropped)
    assert time.process_time() - start < seconds


def test_a_language_is_told_from_pieces_of_a_long_text():
    pytest.importorskip("lingua")
    (rule,) = make_rules(["language"], {"language": {"candidates": ("en", "zh")}})
    start = time.perf_counter()
    assert isinstance(rule("中" * 5_000_000), Dropped)
    assert time.perf_counter() - start < SECONDS_OF_5_MB


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_no_text_makes_a_rule_fail(text):
    for rule in ALL.values():
        result = rule(text)
        assert isinstance(result, str | Dropped)
        assert not isinstance(result, Dropped) or (result.reason and result.detail)


def test_the_empty_text_fails_nowhere():
    results = {name: rule("") for name, rule in ALL.items()}
    assert {name: found.reason if isinstance(found, Dropped) else found for name, found in results.items()} == {
        "unicode": "empty",
        "html": "empty",
        "boilerplate": "empty",
        "gopher_repetition": "",
        "gopher_quality": "too_few_words",
        "c4": "too_few_sentences",
        "fineweb": "empty",
        "perplexity": "empty",
        "personal": "",
    }
