"""Evaluation texts in training text: against all n-grams of both, compared one by one."""

import random

import numpy as np
import pytest

from data.cleaning.decontaminate import load_overlap, read_evaluation_sets, save_overlap
from data.cleaning.shingles import word_spans
from data.config import SourceConfig
from data.errors import DataError

QUESTION = "Which of the two rivers, the Elbe or the Rhine, is longer from its source down to the sea?"


@pytest.fixture
def overlap(tmp_path):
    def make(*texts: str, n: int = 13):
        (tmp_path / "exam.txt").write_text("|".join(texts), encoding="utf-8")
        separator = "|" if len(texts) > 1 else ""
        return read_evaluation_sets([SourceConfig(str(tmp_path / "exam.txt"), document_separator=separator)], n)

    return make


def planted(count: int) -> str:
    words = ["the", "Elbe", "or", "the", "Rhine", "is", "longer", "from", "its", "source", "down", "to", "the", "sea"]
    return "Before it " + " ".join(words[:count]) + " and after."


def test_thirteen_words_are_found_and_twelve_are_not(overlap):
    index = overlap(QUESTION)
    assert index.find(planted(13)).tolist() == [2]
    assert index.find(planted(14)).tolist() == [2, 3]
    assert index.find(planted(12)).tolist() == []
    assert index.find("Short.").tolist() == index.find("").tolist() == []


def test_case_punctuation_and_line_ends_hide_nothing(overlap):
    hidden = "THE ELBE —\nor (the Rhine)\r\nis longer,\tfrom its source\u00a0down to 'the' Ｓea"
    assert overlap(QUESTION).find(hidden).tolist() == [0, 1]


def test_the_reason_names_the_set_and_the_words(overlap):
    reason = overlap(QUESTION).explain(planted(13), 2)
    assert reason.startswith("13 words of ") and "exam.txt: " in reason
    assert reason.endswith("'the Elbe or the Rhine is longer from its source down to the'")


def test_the_first_set_with_the_words_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text({"a": "one two three four", "b": "zero one two three"}[name])
    index = read_evaluation_sets([SourceConfig(str(tmp_path / f"{name}.txt")) for name in "ab"], 3)
    assert "a.txt: 'one two three'" in index.explain("one two three", 0)
    assert "b.txt: 'zero one two'" in index.explain("zero one two", 0)


def test_cut_takes_out_the_shared_words_alone(overlap):
    index = overlap("a b c d", n=3)
    for text, rest in (
        ("Yes, x A B C y.", "Yes, x \n y."),
        ("x a b c d y", "x \n y"),
        ("a b c y", "y"),
        ("a b c", ""),
        ("a b c a b c d y a b", "y a b"),
        ("x a b c z b c d y", "x \n z \n y"),
    ):
        assert index.cut(text, index.find(text)) == rest


def test_overlapping_ngrams_of_several_texts_are_one_cut(overlap):
    index = overlap("a b c", "c d e", n=3)
    assert index.find("x a b c d e y").tolist() == [1, 3]
    assert index.cut("x a b c d e y", index.find("x a b c d e y")) == "x \n y"


def test_chinese_counts_characters(overlap):
    index = overlap("长江和黄河哪一条从源头到入海口更长？")
    assert len(index.find("他问：“长江和黄河哪一条从源头到入”。")) == 1
    assert len(index.find("他问：“长江和黄河哪一条从源头到海”。")) == 0


def test_texts_that_are_too_short_to_be_found_are_counted(overlap):
    (known,) = overlap(QUESTION, "only three words", "two words").sets
    assert (known.texts, known.too_short) == (3, 2)
    with pytest.raises(DataError, match=r"no text of .*exam.txt has 13 words: use a smaller overlap"):
        overlap("only three words")


def test_every_shared_ngram_is_found_and_no_other(overlap):
    drawn = random.Random(0)
    exam = [" ".join(drawn.choices("abcdef", k=drawn.randrange(3, 9))) for _ in range(30)]
    index = overlap(*exam, n=4)
    known = {tuple(words[i : i + 4]) for words in map(str.split, exam) for i in range(len(words) - 3)}
    hits = 0
    for _ in range(200):
        words = drawn.choices("abcdef", k=drawn.randrange(12))
        expected = [i for i in range(len(words) - 3) if tuple(words[i : i + 4]) in known]
        assert index.find(" ".join(words)).tolist() == expected
        hits += len(expected)
    assert 20 < hits < 600


def test_what_is_saved_is_what_is_loaded(overlap, tmp_path):
    index = overlap(QUESTION, "two words")
    save_overlap(index, tmp_path)
    loaded = load_overlap(tmp_path)
    assert (loaded.n, loaded.sets) == (index.n, index.sets)
    assert loaded.find(planted(14)).tolist() == [2, 3]
    assert np.array_equal(loaded.ngrams_G, np.unique(index.ngrams_G)) and len(word_spans(QUESTION)) == 19
    assert len(loaded.ngrams_G) == 19 - 13 + 1
