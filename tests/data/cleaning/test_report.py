"""The report adds up whichever way the work was divided, and shows texts without executing them."""

import dataclasses
import json
import random
import re

import pytest

from data.cleaning.decontaminate import EvaluationSet
from data.cleaning.report import (
    BUCKETS,
    Recorder,
    Report,
    Step,
    Tally,
    add_tally,
    count_lengths,
    markdown,
    notes,
    report_of,
    report_values,
    tally_of,
)
from data.cleaning.report_html import page
from data.cleaning.rule import Dropped

EVIL = "<script>alert('x')</script> & \"quotes\""


def tally(documents: range, *, examples: int = 3, seed: int = 0) -> Tally:
    """Every third document is dropped, every fourth of the others is changed."""
    recorder = Recorder("thirds", "nowhere", examples=examples, seed=seed)
    found = Tally(languages={"de": len(documents), f"x{documents.start}": 1}, steps=[recorder.step])
    for number in documents:
        text = f"text {number} {EVIL}" * (number + 1)
        result = Dropped(f"why{number % 2}", f"is {number}") if number % 3 == 0 else text
        if number % 4 == 1 and isinstance(result, str):
            result = text.replace("text", "TEXT")
        size = len(text.encode())
        recorder.add(f"id{number}", "here", text, size, result)
        count_lengths(found.lengths_in, size)
        found.documents_in, found.bytes_in = found.documents_in + 1, found.bytes_in + size
        if isinstance(result, str):
            found.documents_out, found.bytes_out = found.documents_out + 1, found.bytes_out + len(result.encode())
            count_lengths(found.lengths_out, len(result.encode()))
    return found


def added(*parts: Tally) -> Tally:
    total = Tally()
    for part in parts:
        add_tally(total, part, 3)
    return total


@pytest.fixture
def report() -> Report:
    total = tally(range(40))
    known = (EvaluationSet("exam<1>", 10, 4),)
    return Report(total, {"<b>here</b>": dataclasses.replace(total, steps=[])}, known, {"seed": 0})


def test_counts_are_what_was_done():
    (step,) = tally(range(40)).steps
    assert (step.documents_in, step.documents_out, step.dropped) == (40, 26, 14)
    assert step.reasons == {"why0": 7, "why1": 7}
    assert step.changed == len([n for n in range(40) if n % 3 and n % 4 == 1])
    assert step.bytes_in == sum(len(f"text {n} {EVIL}") * (n + 1) for n in range(40))


def test_parts_add_up_in_any_division_and_order():
    whole = tally(range(40))
    parts = [tally(range(first, first + 5)) for first in range(0, 40, 5)]
    random.Random(0).shuffle(parts)
    total, languages = added(*parts), {"de": 40} | {f"x{first}": 1 for first in range(0, 40, 5)}
    assert total.languages == languages
    assert dataclasses.replace(total, languages=whole.languages) == added(whole) == whole


def test_examples_are_drawn_by_the_seed():
    drawn = [[example.id for example in tally(range(40), seed=seed).steps[0].dropped_examples] for seed in range(4)]
    assert all(len(ids) == 3 for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) == 4
    assert not tally(range(40), examples=0).steps[0].dropped_examples


def test_an_example_of_a_change_shows_the_place_of_it():
    recorder = Recorder("rule", "nowhere", examples=1, seed=0)
    recorder.add("id", "here", "a" * 5000 + "b" + "c" * 5000, 10_001, "a" * 5000 + "B" + "c" * 5000)
    (example,) = recorder.step.changed_examples
    assert example.before.replace("b", "B") == example.after and "bc" in example.before
    assert example.detail == "from character 4900" and len(example.before) == 300


def test_lengths_are_counted_by_powers_of_two():
    lengths = [0] * BUCKETS
    for size in (1, 2, 3, 4, 1023, 1024, 2**60):
        count_lengths(lengths, size)
    assert {bucket: count for bucket, count in enumerate(lengths) if count} == {0: 1, 1: 2, 2: 1, 9: 1, 10: 1, 40: 1}


def test_json_holds_the_whole_report(report):
    assert report_of(json.loads(json.dumps(report_values(report)))) == report
    assert tally_of(json.loads(json.dumps(dataclasses.asdict(report.total)))) == report.total


def test_markdown_and_page_say_the_numbers_of_the_json(report):
    (step,) = report.total.steps
    text, html = markdown(report), page(report)
    row = next(line for line in text.splitlines() if line.startswith("| thirds | 40"))
    said = [int(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[1:-1]]
    assert said == [40, 26, 14, step.changed, step.bytes_in, step.bytes_out]
    cells = re.search(r"<tr><td>thirds</td>(.*?)</tr>", html)
    assert cells and [int(n.replace(",", "")) for n in re.findall(r">([\d,]+)<", cells[1])] == said
    assert "| thirds | why0 | 7 | 17.50% |" in text
    assert f"26 of 40 documents stay, {step.bytes_out:,} of {step.bytes_in:,} bytes" in text
    assert "6 evaluation texts were looked for; 4 more cannot be found" in text


def test_a_rule_for_english_that_drops_most_documents_is_named():
    step = Step("gopher_quality", "nowhere", 10, 4, reasons={"stop_words": 6})
    report = Report(Tally(10, 4, steps=[step]), {}, (), {})
    assert any("6 of 10 documents for want of English stop words" in note for note in notes(report))
    step.reasons = {"stop_words": 5, "too_few_words": 1}
    assert len(notes(report)) == 1


def test_full_buckets_are_told(report):
    assert not any("12 documents" in note for note in notes(report))
    assert any("12 documents that stay" in note for note in notes(dataclasses.replace(report, crowded=12)))


def test_a_page_escapes_what_it_shows_and_draws(report):
    html = page(report)
    assert "<script" not in html and "<b>here" not in html and "exam<1>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quotes&quot;" in html
    assert html.count("<svg") == html.count("</svg>") == 2 and "documents left" in html
    assert page(report) == html


def test_a_cell_that_begins_with_a_digit_is_escaped_too():
    step = Step("rule", "nowhere", 10, 4, reasons={"1<script>alert(1)</script>": 6})
    html = page(Report(Tally(10, 4, steps=[step]), {}, (), {}))
    assert "<script" not in html and "1&lt;script&gt;" in html


def test_a_report_of_nothing_is_drawn_too():
    empty = Report(Tally(), {"here": Tally()}, (), {})
    assert "0 of 0 documents stay" in page(empty) and "0 of 0 documents stay" in markdown(empty)
