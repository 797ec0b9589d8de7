"""Each check of FineWeb drops its text alone, and keeps the nearest neighbour."""

import pytest

from data.cleaning.fineweb import FineWeb
from data.cleaning.rule import Dropped

RULE = FineWeb()


def lines(count, length, end="", start=0):
    """Lines of `length` characters, all different, in words of four letters."""
    return [(f"w{i:03d} " * length)[: length - 1 - len(end)] + "x" + end for i in range(start, start + count)]


@pytest.mark.parametrize(
    ("reason", "dropped", "kept"),
    [
        ("punctuated_lines", lines(88, 40) + lines(11, 40, ".", 88), lines(88, 40) + lines(12, 40, ".", 88)),
        ("punctuated_lines", lines(88, 40) + lines(12, 40, ",", 88), lines(88, 40) + lines(12, 40, "。", 88)),
        ("short_lines", lines(68, 29, ".") + lines(32, 41, ".", 68), lines(67, 29, ".") + lines(33, 41, ".", 67)),
        ("short_lines", lines(70, 30, ".") + lines(30, 51, ".", 70), lines(70, 31, ".") + lines(30, 51, ".", 70)),
        (
            "duplicate_line_characters",
            lines(88, 40, ".") + lines(10, 40, ".") + lines(2, 5),
            lines(89, 40, ".") + lines(9, 40, ".") + lines(2, 5),
        ),
        ("newlines", lines(10, 40, ".") + [""] * 16, lines(10, 40, ".") + [""] * 15),
    ],
)
def test_dropped_and_kept(reason, dropped, kept):
    found = RULE("\n".join(dropped))
    assert isinstance(found, Dropped)
    assert found.reason == reason
    assert RULE("\n".join(kept)) == "\n".join(kept)


def test_detail_and_empty_text():
    assert RULE("a list\nof things") == Dropped(
        "punctuated_lines", "0.000 of the lines end a sentence, fewer than 0.12"
    )
    assert RULE(" \n") == Dropped("empty", "2 characters, none of them visible")
    assert RULE("") == Dropped("empty", "0 characters, none of them visible")


def test_newlines_of_chinese_are_counted_by_characters():
    text = "\n".join(
        "山重水复疑无路，柳暗花明又一村" + "好" * i + "。莫笑农家腊酒浑，丰年留客足鸡豚。" for i in range(9)
    )
    assert RULE(text) is text
    found = FineWeb(words="spaces")(text)
    assert isinstance(found, Dropped)
    assert found.reason == "newlines"
