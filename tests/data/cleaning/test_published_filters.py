"""The verdicts of Gopher, C4 and FineWeb beside those of datatrove's filters, on real texts and spoilt ones.

Both are given the same words (what white space parts) and sentences, since datatrove takes those of other packages.
What then differs on purpose:
- A word of punctuation alone: datatrove has a list of marks for that, we ask whether it has a letter or digit.
- The most frequent n-gram: datatrove counts one that occurs once, which drops each text of a few words.
- Duplicate n-grams are joined without spaces by datatrove, so that "ab c" equals "a bc".
- C4: lines may end in typographic quotes and Chinese marks too; the texts here have straight quotes.
- FineWeb: datatrove's default for characters in duplicate lines is 0.01, the paper's 0.1 is set here.
"""

import random

import pytest

from data.cleaning.c4 import C4, _count_sentences
from data.cleaning.fineweb import FineWeb
from data.cleaning.gopher import GopherQuality, GopherRepetition
from data.cleaning.rule import Dropped

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter
from datatrove.pipeline.filters import gopher_quality_filter as quality
from datatrove.pipeline.filters import gopher_repetition_filter as repetition

REASONS = {
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length",
    "gopher_too_many_hashes": "hash_symbols",
    "gopher_too_many_ellipsis": "ellipsis_symbols",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "alphabetic_words",
    "gopher_enough_stop_words": "stop_words",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
    "line_punct_ratio": "punctuated_lines",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_characters",
    "list_ratio": "newlines",
    "too_few_sentences": "too_few_sentences",
    "lorem_ipsum": "lorem_ipsum",
    "curly_bracket": "curly_bracket",
}


@pytest.fixture(autouse=True)
def same_words(monkeypatch):
    def sentences(text, language):
        return [text] * _count_sentences(text)

    for module in (quality, repetition, fineweb_quality_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, language: text.split())
    monkeypatch.setattr(c4_filters, "split_into_sentences", sentences)


@pytest.fixture
def texts(test_data):
    """Paragraphs of an encyclopedia and of a novel, and the same made worse in the ways that the filters look for."""
    rng = random.Random(0)
    paragraphs = [p for p in test_data("wikitext2/valid.txt").read_text(encoding="utf-8").split("\n") if len(p) > 80]
    novel = test_data("gutenberg/98.txt").read_text(encoding="utf-8").split("\n\n")
    found = rng.sample(paragraphs, 150)
    found += ["\n\n".join(novel[i : i + 6]) for i in rng.sample(range(100, len(novel) - 6), 150)]
    found = [text.replace("’", "'").replace("”", '"') for text in found if text.strip()]
    return found + [_spoilt(rng, text) for text in found if len(text.split()) > 20]


def _spoilt(rng, text):
    words, lines = text.split(), text.split("\n")
    start, length = rng.randrange(len(words) - 9), rng.randrange(2, 9)
    some = words[start : start + length]
    ways = [
        lambda: " ".join([*words, *some * rng.randrange(1, 20)]),
        lambda: "\n".join([*lines, *rng.choices(lines, k=rng.randrange(1, len(lines) + 1))]),
        lambda: text + "\n\n" + text[: rng.randrange(len(text))],
        lambda: "\n".join(("- " if rng.random() < 0.95 else "") + line for line in " ".join(words).split(", ")),
        lambda: " ".join(word + ("..." if rng.random() < 0.12 else "") for word in words),
        lambda: "\n".join(line + (" ..." if rng.random() < 0.35 else "") for line in lines),
        lambda: " ".join(word if rng.random() < 0.85 else "1,234" for word in words),
        lambda: " ".join(word[: rng.choice((1, 2, 3, 9))] for word in words),
        lambda: "-".join(words[:30]) + " " + " ".join(words[30:]),
        lambda: " ".join(word for word in words if word not in ("the", "to", "of", "and", "that", "have", "with")),
        lambda: "\n".join(" ".join(words[i : i + 3]) for i in range(0, len(words), 3)),
        lambda: ".\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)),
        lambda: ("." + "\n" * 5).join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)) + ".",
        lambda: text.replace(rng.choice(words), "{", 1) + " Lorem ipsum." * rng.randrange(2),
        lambda: "# " * (len(words) // rng.randrange(8, 12)) + text,
    ]
    return rng.choice(ways)()


@pytest.mark.parametrize(
    ("rule", "filter_of", "reasons"),
    [
        (GopherQuality(words="spaces"), lambda: quality.GopherQualityFilter(), 8),
        (GopherRepetition(words="spaces"), lambda: repetition.GopherRepetitionFilter(), 8),
        (FineWeb(words="spaces"), lambda: fineweb_quality_filter.FineWebQualityFilter(char_duplicates_ratio=0.1), 4),
        (C4(words="spaces"), lambda: c4_filters.C4QualityFilter(), 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_verdicts_are_those_of_datatrove(monkeypatch, texts, rule, filter_of, reasons):
    top = repetition.find_top_duplicate
    monkeypatch.setattr(
        repetition, "find_top_duplicate", lambda grams: top(grams) if len(set(grams)) < len(grams) else 0
    )
    theirs, seen, kept = filter_of(), set(), 0
    for number, text in enumerate(texts):
        document = Document(text=text, id=str(number))
        verdict = theirs.filter(document)
        expected = document.text if verdict is True else REASONS[verdict[1]]
        found = rule(text)
        assert (found.reason if isinstance(found, Dropped) else found) == expected, (number, found, text)
        kept += not isinstance(found, Dropped)
        seen |= {found.reason} if isinstance(found, Dropped) else set()
    assert len(texts) > 400
    assert kept > 20
    assert len(seen) >= reasons, seen


def test_what_differs_on_purpose():
    assert repetition.GopherRepetitionFilter().filter(Document(text="four words, no more", id="")) == (
        False,
        "top_2_gram",
    )
    assert GopherRepetition()("four words, no more") == "four words, no more"
    marks = "the and of " + "word " * 46 + "→ "
    assert quality.GopherQualityFilter().filter(Document(text=marks, id="")) is True
    assert GopherQuality()(marks) == Dropped("too_few_words", "49 words, fewer than 50")
