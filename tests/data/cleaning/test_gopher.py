"""Each check of Gopher drops its text alone, and keeps the nearest neighbour."""

import itertools

import pytest

from data.cleaning.gopher import GopherQuality, GopherRepetition
from data.cleaning.rule import Dropped

QUALITY = GopherQuality()
REPETITION = GopherRepetition()
LINE = "the river and that old road of stone lead down to some quiet place"  # 14 words
PROSE = "\n".join([LINE] * 4)  # 56 words


def words(count, length=5, stop="the of"):
    """Stop words and `count - 2` others of `length` letters, all different."""
    letters = itertools.product("abcdefghij", repeat=length)
    return " ".join([*stop.split(), *("".join(next(letters)) for _ in range(count - len(stop.split())))])


@pytest.mark.parametrize(
    ("reason", "dropped", "kept"),
    [
        ("too_few_words", words(49), words(50)),
        ("too_few_words", words(49) + " ... -- !", words(50) + " ... -- !"),  # punctuation is no word
        ("too_many_words", words(100_001), words(100_000)),
        ("mean_word_length", words(100, 3), words(99, 3) + " aaaa"),
        ("mean_word_length", words(100, 11), words(100, 10)),
        ("hash_symbols", PROSE + " #x" * 7, PROSE + " #x" * 6),  # 7 of 63, 6 of 62
        ("ellipsis_symbols", PROSE + " so..." * 7, PROSE + " so..." * 6),
        ("ellipsis_symbols", PROSE + " so…" * 7, PROSE + " so…" * 6),
        ("bullet_lines", "\n- ".join(["", *[LINE] * 10])[1:], "\n- ".join([LINE, *[LINE] * 9])),
        ("bullet_lines", "\n  • ".join(["", *[LINE] * 10])[1:], "\n* ".join(["", *[LINE] * 10])[1:]),
        ("ellipsis_lines", PROSE + ("\n" + LINE + "...") * 2, PROSE + ("\n" + LINE + "...") * 1),
        ("alphabetic_words", PROSE + " 123" * 15, PROSE + " 123" * 14),  # 56 of 71, 56 of 70
        ("stop_words", words(60, stop="the"), words(60)),
        ("stop_words", words(60, stop="the the"), words(60, stop="the have")),
    ],
)
def test_quality(reason, dropped, kept):
    found = QUALITY(dropped)
    assert isinstance(found, Dropped)
    assert found.reason == reason
    assert QUALITY(kept) is kept


def test_quality_detail_has_the_numbers_of_the_text_and_the_limit():
    assert QUALITY(words(49)) == Dropped("too_few_words", "49 words, fewer than 50")
    assert QUALITY(words(60, stop="that")) == Dropped("stop_words", "1 stop words (that), fewer than 2")
    assert QUALITY(PROSE + " 123" * 20) == Dropped(
        "alphabetic_words", "0.737 of the words have a letter, fewer than 0.8"
    )


CHINESE = (
    "滚滚长江东逝水，浪花淘尽英雄。是非成败转头空，青山依旧在，几度夕阳红。"
    "白发渔樵江渚上，惯看秋月春风。一壶浊酒喜相逢，古今多少事，都付笑谈中。"
)


def test_quality_of_chinese_counts_characters_and_asks_for_no_stop_words():
    assert QUALITY(CHINESE) is CHINESE
    short = CHINESE[:56]  # 49 characters and 7 marks
    assert QUALITY(short) == Dropped("too_few_words", "49 words, fewer than 50")
    assert QUALITY(CHINESE[:57]) == CHINESE[:57]
    spaced = GopherQuality(words="spaces")(CHINESE)
    assert spaced == Dropped("too_few_words", "1 words, fewer than 50")


def test_stop_words_can_be_of_another_language():
    german = " ".join(["die Welt ist alles was der Fall sein mag"] * 7)
    assert QUALITY(german) == Dropped("stop_words", "0 stop words, fewer than 2")
    assert GopherQuality(stop_words=("die", "der", "und"))(german) is german
    assert GopherQuality(min_stop_words=0)(german) is german


def unique(count, start=0):
    """So many different words of four letters."""
    return [
        "".join(letters)
        for letters in itertools.islice(itertools.product("abcdefghij", repeat=4), start, start + count)
    ]


def lines(*groups):
    return "\n".join(" ".join(group) for group in groups)


def repeated_lines(times):
    """20 short lines, of which `times` equal an earlier one, and one long one: the characters hardly count."""
    return "\n".join([*(f"{i}!" for i in range(20 - times)), *(["0!"] * times), " ".join(unique(400))])


def repeated_gram(n, copies, others):
    """An n-gram that comes `copies` times between words that are all different, `others` of them in all."""
    gram, rest = unique(n, 9000), unique(others)
    share = others // copies
    return " ".join(w for i in range(copies) for w in [*gram, *rest[i * share : (i + 1) * share]])


@pytest.mark.parametrize(
    ("reason", "dropped", "kept"),
    [
        ("duplicate_paragraphs", repeated_lines(7).replace("\n", "\n\n"), repeated_lines(6).replace("\n", "\n\n")),
        ("duplicate_lines", repeated_lines(7), repeated_lines(6)),
        (
            "duplicate_paragraph_characters",
            "\n\n".join(
                [*(" ".join(unique(20, 20 * i)) for i in range(7)), " ".join(unique(20)), " ".join(unique(20, 20))]
            ),
            "\n\n".join([*(" ".join(unique(20, 20 * i)) for i in range(9)), " ".join(unique(20))]),
        ),
        (
            "duplicate_line_characters",
            lines(*(unique(20, 20 * i) for i in range(7)), unique(20), unique(20, 20)),
            lines(*(unique(20, 20 * i) for i in range(9)), unique(20)),
        ),
        ("top_2_gram", repeated_gram(2, 20, 140), repeated_gram(2, 20, 160)),
        ("top_3_gram", repeated_gram(3, 10, 120), repeated_gram(3, 10, 140)),
        ("top_4_gram", repeated_gram(4, 10, 190), repeated_gram(4, 10, 210)),
    ],
)
def test_repetition(reason, dropped, kept):
    found = REPETITION(dropped)
    assert isinstance(found, Dropped)
    assert found.reason == reason
    assert REPETITION(kept) is kept


@pytest.mark.parametrize(("n", "limit"), [(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)])
def test_repeated_ngrams_of_each_length(n, limit):
    """Three runs of n words that come twice, in a text just too short or just long enough for them."""
    runs = [unique(n, 9000 + 100 * i) for i in range(3)]
    others = int((3 * 4 * n / limit + 1) / 5) - 6 * n  # words and their spaces, so that the fraction is `limit`

    def text(count):
        parts = [unique(count - 5, 5), *([word] for word in unique(5))]
        return " ".join(word for part, run in zip(parts, runs * 2, strict=True) for word in part + run)

    found = REPETITION(text(others - 1))
    assert isinstance(found, Dropped)
    assert found.reason == f"duplicate_{n}_grams"
    kept = text(others + 2)
    assert REPETITION(kept) is kept


def test_a_short_text_in_which_nothing_repeats_is_kept():
    for text in ("Two words", "only", "three or four words", "", " \n"):
        assert REPETITION(text) is text


def test_repetition_of_chinese_characters():
    assert REPETITION(CHINESE) is CHINESE
    found = REPETITION(CHINESE + "哈哈" * 20)
    assert isinstance(found, Dropped)
    assert found.reason == "top_2_gram"
    # 99 pairs of two characters, without spaces between them, in a text of 100
    assert REPETITION("中" * 100) == Dropped("top_2_gram", "1.980 of the characters, more than 0.2")
