"""Documents by their language."""

import pytest

from data.cleaning.rule import Dropped

pytest.importorskip("lingua")

from data.cleaning.language import Language

RULE = Language(candidates=("de", "en", "zh"))
ENGLISH = "The river was wide and slow, and nobody had crossed it since the war."
GERMAN = "Der Fluss war breit und langsam, und niemand hatte ihn seit dem Krieg überquert."
CHINESE = "这条河又宽又慢，自从战争以来，没有人渡过它，也没有人想渡过它。"


def test_the_language_asked_for_is_kept_and_its_neighbour_goes():
    assert RULE(ENGLISH) is ENGLISH
    for text, code in ((GERMAN, "de"), (CHINESE, "zh")):
        found = RULE(text)
        assert isinstance(found, Dropped)
        assert found.reason == "language"
        assert found.detail.startswith(f"{code} with a confidence of ")
        assert "en at 0.0" in found.detail
        assert Language(keep=(code,), candidates=RULE.candidates)(text) is text


def test_several_languages_can_be_kept():
    rule = Language(keep=("en", "zh"), candidates=RULE.candidates)
    assert rule(CHINESE) is CHINESE
    assert rule(ENGLISH) is ENGLISH
    assert isinstance(rule(GERMAN), Dropped)


def test_confidence_is_that_of_the_languages_to_keep_together():
    mixed = "Sie sagt: the band plays in der Bar, und alle warten on the land."
    both = Language(keep=("de", "en"), candidates=RULE.candidates, min_confidence=0.99)
    assert both(mixed) is mixed
    alone = [Language(keep=(code,), candidates=RULE.candidates, min_confidence=0.99)(mixed) for code in ("de", "en")]
    assert all(isinstance(found, Dropped) for found in alone)


def test_a_language_that_is_no_candidate_is_none_of_them():
    arabic = "مرحبا بالعالم كيف حالك اليوم يا صديقي العزيز"
    assert RULE(arabic) == Dropped("language", "none of de, en, zh")
    assert Language(candidates=RULE.candidates, min_confidence=0.0)(arabic) == RULE(arabic)


def test_short_texts():
    text = "Das ist ein Satz 123456789."
    assert RULE(text) is text  # 13 letters
    dropping = Language(candidates=RULE.candidates, short="drop")
    assert dropping(text) == Dropped("too_short", "13 letters, fewer than 20: too short to tell the language")
    assert dropping(ENGLISH) is ENGLISH
    assert isinstance(Language(candidates=RULE.candidates, min_letters=13)(text), Dropped)


def test_of_a_long_text_the_start_the_middle_and_the_end_are_read():
    english = ENGLISH * 200
    assert RULE(english + CHINESE * 10) is not None
    assert RULE(english) is english
    assert isinstance(RULE(GERMAN * 100 + english), Dropped)


def test_the_same_text_has_the_same_confidence_each_time():
    assert RULE(GERMAN) == RULE(GERMAN) == Language(candidates=("zh", "en", "de"))(GERMAN)


def test_real_texts(test_data):
    rule = Language(keep=("zh",))
    for name, kept in (("zh_novels/红楼梦.txt", True), ("gutenberg/98.txt", False)):
        paragraphs = [p for p in test_data(name).read_text(encoding="utf-8").split("\n\n") if len(p) > 200][:30]
        assert all(isinstance(rule(p), str) is kept for p in paragraphs)
