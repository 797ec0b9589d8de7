"""Lines and pages as C4 chooses them."""

import pytest

from data.cleaning.c4 import C4
from data.cleaning.rule import Dropped

RULE = C4()
PAGE = (
    "One line is here. It has two sentences.\nHere is a third one!\nAnd is this the fourth?\nHe said “it is the fifth.”"
)


def test_a_good_page_comes_back_as_it_is():
    assert RULE(PAGE) == PAGE
    assert RULE(PAGE.replace("third one!", "third one")) == Dropped(
        "too_few_sentences", "4 in 3 kept lines, fewer than 5"
    )


@pytest.mark.parametrize(
    ("line", "neighbour"),
    [
        ("No mark at the end", "A mark at the end."),
        ("It goes on...", "It goes on.. ."),
        ("It goes on…", "It goes on.'"),
        ("Two words.", "Three of them."),
        ("Please enable JavaScript in it.", "Please enable Java in it."),
        ("We use cookies on this site.", "We bake cookies on this site."),
        ("Read our privacy policy first.", "Read our privacy rules first."),
        ("A long one: " + "x" * 1001 + " .", "A long one: " + "x" * 1000 + " ."),
    ],
)
def test_the_line_goes_and_its_neighbour_stays(line, neighbour):
    assert RULE(f"{PAGE}\n{line}") == PAGE
    assert RULE(f"{PAGE}\n{neighbour}") == f"{PAGE}\n{neighbour}"


def test_lines_are_stripped_and_lose_citation_marks():
    assert RULE(f"  {PAGE}\n\nIt was so.[12] And so it stayed.[edit]\n") == f"{PAGE}\nIt was so. And so it stayed."


@pytest.mark.parametrize(
    ("reason", "line", "neighbour"),
    [
        ("lorem_ipsum", "Then lorem Ipsum dolor sit amet.", "Then Lorem, ipsum dolor sit amet."),
        ("lorem_ipsum", "Then lorem ipsum dolor.", "Then lorem ipsum dolor"),  # a line that goes anyway is not asked
        ("curly_bracket", "Then x = {1} is set.", "Then x = (1) is set."),
    ],
)
def test_the_page_goes_and_its_neighbour_stays(reason, line, neighbour):
    dropped = RULE(f"{PAGE}\n{line}")
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason
    assert not isinstance(RULE(f"{PAGE}\n{neighbour}"), Dropped)


def test_fields():
    code = "x = {1}\nif x then y\n"
    assert C4(sentence_lines=False, curly_brackets=False, min_sentences=2)(code) == "x = {1}\nif x then y"
    assert C4(min_words_per_line=2)(f"{PAGE}\nTwo words.") == f"{PAGE}\nTwo words."


def test_chinese_lines_count_characters_and_end_in_chinese_marks():
    page = "他说：“今天的天气很好。”\n我们走吧！去哪里呢？\n去山上，看看风景。\n好的，走。"
    assert RULE(page) == page
    assert RULE(f"{page}\n好。\n没有句号的一行") == page
    long_line = "很长的一行" * 300 + "。"
    assert RULE(f"{page}\n{long_line}") == f"{page}\n{long_line}"


def test_bad_words_of_a_file(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("blast\nconfound it\n混蛋\n\n", encoding="utf-8")
    rule = C4(bad_words=str(words))
    for line in ("A Blast! came from it.", "Oh, confound it all.", "他是个大混蛋啊。"):
        assert rule(f"{PAGE}\n{line}") != f"{PAGE}\n{line}"
        assert isinstance(rule(f"{PAGE}\n{line}"), Dropped)
    for line in ("The blastula divides itself.", "They confound items here.", "他是个混血儿啊。"):
        assert rule(f"{PAGE}\n{line}") == f"{PAGE}\n{line}"
    assert rule(f"{PAGE}\nA blast was heard.") == Dropped("bad_word", f"'blast' of {words}")
