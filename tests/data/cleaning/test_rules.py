"""Rules by name: how settings become rules, what is refused, and that rules travel."""

import pickle
import subprocess
import sys

import pytest

from data.cleaning.gopher import GopherQuality
from data.cleaning.rule import Dropped
from data.cleaning.rules import RULES, make_rules


def score():
    return len


def test_each_rule_is_made_by_its_name_with_a_source():
    settings = {"perplexity": {"scorer": score}}
    rules = make_rules(list(RULES), settings)
    assert [rule.name for rule in rules] == list(RULES)
    assert all(len(rule.source) > 10 for rule in rules)


def test_the_order_of_rules_is_the_order_of_their_names_and_settings_change_fields():
    html, quality = make_rules(["html", "gopher_quality"], {"gopher_quality": {"min_words": 3}})
    assert (html.name, quality) == ("html", GopherQuality(min_words=3))


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["gofer_quality"], {}, "there is no cleaning rule 'gofer_quality': did you mean 'gopher_quality'?"),
        (["zzz"], {}, "there is no cleaning rule 'zzz': there are boilerplate, c4, "),
        (["html", "html"], {}, "the cleaning rule 'html' is named 2 times"),
        (["html"], {"c4": {}}, r"settings for 'c4', which is not among the rules \(html\)"),
        (["c4"], {"c4": {"min_sentence": 1}}, "has no field 'min_sentence': did you mean 'min_sentences'?"),
        (["c4"], {"c4": {"min_sentences": -1}}, "c4.min_sentences = -1 is not allowed: it must be a whole number"),
        (["c4"], {"c4": {"min_sentences": True}}, "c4.min_sentences = True is not allowed"),
        (["c4"], {"c4": {"words": "letters"}}, "c4.words = 'letters' is not allowed: it must be one of auto, spaces"),
        (["c4"], {"c4": {"bad_words": "/no/such/file"}}, "the list of bad words '/no/such/file' does not exist"),
        (
            ["gopher_quality"],
            {"gopher_quality": {"max_words": 9}},
            "max_words = 9 .* must be min_words \\(50\\) or more",
        ),
        (["gopher_quality"], {"gopher_quality": {"min_stop_words": 9}}, "at most 8, as many as there are stop words"),
        (["gopher_quality"], {"gopher_quality": {"min_mean_word_length": 11}}, r"must be min_mean_word_length \(11\)"),
        (["gopher_repetition"], {"gopher_repetition": {"max_top_ngram_characters": (0.1,)}}, "a tuple of 3 values"),
        (["fineweb"], {"fineweb": {"max_short_lines": 67}}, "max_short_lines = 67 .* a number from 0 to 1"),
        (["fineweb"], {"fineweb": {"max_short_lines": True}}, "max_short_lines = True .* a number from 0 to 1"),
        (["unicode"], {"unicode": {"normalization": "NFD"}}, "unicode.normalization = 'NFD' .* one of NFC, NFKC, none"),
        (["unicode"], {"unicode": {"repair": "yes"}}, "unicode.repair = 'yes' .* True or False"),
        (["language"], {"language": {"keep": ("xx",)}}, r"language.keep = \('xx',\) .* an ISO 639-1 code"),
        (["language"], {"language": {"keep": ("ar",)}}, "among the candidates"),
        (["language"], {"language": {"keep": "en"}}, "language.keep = 'en' .* a tuple of 1 value or more"),
        (["language"], {"language": {"candidates": ("en",)}}, "at least two languages"),
        (["language"], {"language": {"short": "maybe"}}, "one of keep, drop"),
        (["personal"], {"personal": {"kinds": ("NAME",)}}, "one of EMAIL, IP, CN_ID, CARD, PHONE"),
        (["perplexity"], {}, "perplexity.scorer = None is not allowed: .* name a run to score with"),
        (
            ["perplexity"],
            {"perplexity": {"scorer": score, "maximum": 1, "minimum": 2}},
            r"must be minimum \(2\) or more",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_value_and_the_way_out(names, settings, message):
    with pytest.raises(ValueError, match=message):
        make_rules(names, settings)


def test_rules_and_what_they_return_are_the_same_after_pickling():
    rules = make_rules(list(RULES), {"perplexity": {"scorer": score}})
    copies = pickle.loads(pickle.dumps(rules))  # noqa: S301
    assert copies == rules
    text = "Write to me@example.org. It is the best of all times, and the worst of them all to be in.\n" * 7
    assert [copy(text) for copy in copies] == [rule(text) for rule in rules]
    dropped = Dropped("reason", "1 of 2")
    assert pickle.loads(pickle.dumps(dropped)) == dropped  # noqa: S301


def test_importing_the_rules_loads_neither_detector_nor_repair():
    code = (
        "import sys, data.cleaning.rules; print([m for m in ('lingua', 'ftfy', 'jax', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("package", "rule"), [("ftfy", "unicode"), ("lingua", "language")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, package, rule):
    from data.cleaning import language, unicode

    language._languages.cache_clear()
    unicode._repairs.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"the rule {rule} .* pip install 'tessera-lm\[cleaning\]'"):
        make_rules([rule], {})
