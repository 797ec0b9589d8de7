"""Characters: what is mended, what is taken out, and what looks alike and stays."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.rule import Dropped
from data.cleaning.unicode import Unicode

RULE = Unicode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("schÃ¶n", "schön"),
        ("â€œquotedâ€\x9d", "“quoted”"),
        ("æ–‡å­—åŒ–ã\x81‘", "文字化け"),
        ("it\x92s", "it’s"),  # Windows-1252 in C1
        ("\ud83d\ude00", "😀"),
        ("a\r\nb\rc\x0bd\x0ce\u2028f\u2029g", "a\nb\nc\nd\ne\nf\ng"),
        ("a\x00b\x07c\x7fd\te", "abcd\te"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\ufeffstart, so\u00adft, \u202eoverride\u202c, \u200fmark", "start, soft, override, mark"),
        ("in\u200bvis\u200cib\u200dle\u2060", "invisible"),
        ("tag\U000e0041\U000e0042", "tag"),
        ("no\ufdd0 character\uffff\U0001ffff", "no character"),
        ("private\ue000", "private"),
        ("e\u0301", "é"),
    ],
)
def test_is_mended(before, after):
    assert RULE(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "“curly” quotes, ﬁ, 10³, ½, Ａ，你好！「」……",
        "می‌خواهم",  # a non-joiner in Persian
        "क्‍ष",  # a joiner in Devanagari
        "👨‍👩‍👧 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☎️",  # joiners, variation selectors, tags of a flag
        "ខ្ញុំ\u200bចង់",  # a word end in Khmer
        "葛\U000e0100城",  # an ideographic variant
        "&lt;b&gt; if a < b: return x\n\n\tç",  # ftfy would decode entities elsewhere
        "R&amp;D, ça va",
        "SÃO PAULO, MÃE, ÂNGELO; señor, naïve, Größe",
        "tab\tnewline\n",
        "שלום עולם, مرحبا",
        "lost \ufffd",
    ],
)
def test_stays(text):
    assert RULE(text) == text


def test_text_that_is_left_alone_comes_back_identical(test_data):
    for name in ("zh_novels/红楼梦.txt", "gutenberg/1342.txt"):
        text = test_data(name).read_text(encoding="utf-8").lstrip("\ufeff")[:200_000]
        assert RULE(text) == text


def test_fields():
    assert Unicode(normalization="NFKC")("ﬁ Ａ 10³") == "fi A 103"
    assert Unicode(normalization="none")("e\u0301") == "e\u0301"
    assert Unicode(remove_private_use=False)("private\ue000") == "private\ue000"
    assert Unicode(repair=False)("schÃ¶n\x92") == "schÃ¶n"


def test_a_text_of_nothing_visible_goes_and_one_letter_stays():
    assert RULE("\u200b\ufeff \x00") == Dropped("empty", "nothing is left of 4 characters")
    assert RULE("\u200b\ufeff a\x00") == " a"


def test_endless_marks_on_one_letter_are_made_stream_safe():
    text = "a" + "\u0301\u0323" * 50
    after = RULE(text)
    assert unicodedata.is_normalized("NFC", after)
    assert max(len(run) for run in after.split("\u034f")) <= 31
    assert RULE("a" + "\u0301" * 30) == unicodedata.normalize("NFC", "a" + "\u0301" * 30)  # thirty are allowed


SOUP = st.text(
    st.sampled_from(
        "aÃ©â€œ™\x92\x85\x9d\x00\r\n\u200b\u200c\u200d\u2028\ufeff\u00ad\u0301\u0323中می👨🏴\U000e0067\U000e007f\ue000 "
    )
)


@given(st.text() | SOUP)
@settings(deadline=None)
def test_twice_is_once(text):
    once = RULE(text)
    assert isinstance(once, Dropped) or RULE(once) == once


@given(st.text() | SOUP)
@settings(deadline=None)
def test_twice_is_once_in_compatibility_form(text):
    rule = Unicode(normalization="NFKC")
    once = rule(text)
    assert isinstance(once, Dropped) or rule(once) == once
