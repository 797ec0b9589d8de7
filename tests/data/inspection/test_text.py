"""The report in a terminal and in a file."""

import io
import re
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from data.inspection.examples import CORRUPTED, MASK, SPECIAL, Shown, Side, Token
from data.inspection.html import fragment
from data.inspection.inspection import inspect_data
from data.inspection.text import length_bars, plain, print_inspection


@pytest.fixture(scope="module")
def inspection(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("red [bold]fish[/bold]|\x1b[31mblue fish|blue fish|red [bold]fish[/bold]", encoding="utf-8")
    from data.config import SourceConfig

    return inspect_data(SourceConfig(str(file), document_separator="|"), examples=2, max_length=64)


def shown(*tokens: Token) -> Shown:
    return Shown("an example", [Side("inputs", list(tokens), 3)], {"far": "[1, 2]"})


def last_lines(inspection, example: Shown) -> str:
    text = plain(replace(inspection, examples=[example]))
    return text[text.index("an example\n") + len("an example\n") :]


def test_report_in_plain_characters(inspection):
    text = plain(inspection)
    for line in (
        "documents     4",
        "exact copies  1 (25.00% of the documents repeat another)",
        "unused ids    ",
        "16 to 31  2  ██",
        "red [bold]fish[/bold]  2  ██",
        "fish  4  ██",
    ):
        assert line in re.sub("  +", "  ", text).replace("\n", "  ") or line in text
    assert "\x1b" not in text and "⟨U+001B⟩[31mblue fish" in text


def test_marks_of_segments_prefix_loss_and_corruption(inspection):
    example = shown(
        Token("a", (1,), prefix=True),
        Token("b", (2,), prefix=True, weight=0.0),
        Token("c", (3,), weight=1.0),
        Token("⟨eos⟩", (9,), weight=1.0, kind=SPECIAL),
        Token("x", (4,), segment=2, weight=0.0),
        Token("\n", (5,), segment=2, weight=0.5),
        Token("⟨mask⟩", (6,), segment=2, weight=1.0, kind=MASK, target="y"),
        Token("z", (7,), segment=2, weight=1.0, kind=CORRUPTED, target="w"),
        Token("u", (8,), segment=3, weight=1.0),
        Token("v", (8,), segment=4, weight=1.0),
    )
    assert last_lines(inspection, example) == "⟦ab⟧{c⟨eos⟩}‖x{↵\n}⟨mask⟩→yz→w‖{u}‖{v} (+ 3 empty)\nfar: [1, 2]"


def test_no_braces_where_all_is_predicted(inspection):
    example = shown(Token("a", (1,)), Token("b", (2,), weight=1.0))
    assert last_lines(inspection, example).startswith("ab (+ 3 empty)")


def test_colours_take_the_place_of_marks(inspection):
    example = shown(Token("a", (1,), prefix=True), Token("b", (2,), weight=0.0), Token("c", (3,), weight=1.0))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    print_inspection(replace(inspection, examples=[example]), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[" in text and not set("⟦⟧{}") & set(text) and "\x1b[31mblue" not in text
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    print_inspection(replace(inspection, examples=[example]), console)
    assert isinstance(console.file, io.StringIO)
    assert "⟦a⟧b{c}" in console.file.getvalue()


def test_texts_that_begin_alike_are_told_apart(inspection):
    alike = [("the same beginning", 7), ("the same beginning", 3), ("another", 2)]
    duplicates = replace(inspection.duplicates, most_frequent=alike)
    told = replace(inspection, duplicates=duplicates, ngrams={1: alike}, labels={})
    lines = [line.split("█")[0].split() for line in plain(told).splitlines() if line.startswith("the same")]
    assert lines == [["the", "same", "beginning", number] for number in "7373"]
    chart = fragment(told)
    assert [chart.count(f"<title>the same beginning: {number}</title>") for number in (7, 3)] == [2, 2]


def test_rare_languages_are_told_together(inspection):
    languages = {f"L{n}": 30 - n for n in range(13)}
    text = plain(replace(inspection, languages=languages))
    assert "3 others  57" in text and "L9 " in text and "L10" not in text


def test_bins_are_named_and_nothing_is_drawn_of_nothing(inspection):
    bins = [(0, 0, 2), (1, 1, 0), (2, 3, 5), (1024, 2047, 1)]
    assert length_bars(replace(inspection, lengths=bins)) == {"0": 2, "1": 0, "2 to 3": 5, "1,024 to 2,047": 1}
    empty = plain(replace(inspection, languages={}, labels={}, examples=[]))
    assert "examples" not in empty and Counter(empty)["\x1b"] == 0


def test_approximate_counts_say_by_how_much(inspection):
    text = plain(replace(inspection, ngram_errors={1: 0, 2: 0, 3: 1234}))
    assert "3 words (counts may be up to 1,234 too low)" in text and "\n2 words\n" in text
