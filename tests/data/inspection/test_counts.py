"""Counting in bounded memory: what is exact, and the bound on what is not."""

import sys
from collections import Counter

import numpy as np
import pytest

from data.inspection import counts as inspection_counts
from data.inspection.counts import LANGUAGE_SAMPLE, PrunedCounter, Reservoir, TextCounts, TokenCounts, joined, script
from data.words import words


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("distribution", ["zipf", "uniform", "rising"])
def test_pruned_counts_are_too_low_by_no_more_than_they_say(distribution):
    draws = {
        "zipf": rng().zipf(1.3, 60_000) % 5000,
        "uniform": rng().integers(0, 5000, 60_000),
        "rising": np.sort(rng().integers(0, 5000, 60_000)),
    }[distribution].tolist()
    pruned, exact = PrunedCounter(capacity=200), Counter(draws)
    for start in range(0, len(draws), 50):
        pruned.update(draws[start : start + 50])
        assert len(pruned.counts) <= 400
    assert pruned.error > 0
    for item, count in exact.items():
        assert count - pruned.error <= pruned.counts[item] <= count
    if distribution == "zipf":
        assert pruned.error < exact.most_common(10)[-1][1] / 5  # the bound tells something


def test_the_error_is_what_a_dropped_item_had():
    pruned = PrunedCounter(capacity=2)
    for items in ("aaabb", "cdeebf", "c"):
        pruned.update(items)
    # Of a 3, b 3, c 1, d 1, e 2, f 1, those of no more than 3, the second highest count, are dropped.
    assert pruned.error == 3 and pruned.counts == Counter("c")


def test_few_items_are_counted_exactly():
    pruned = PrunedCounter(capacity=3)
    pruned.update("abcdefabc")
    assert pruned.error == 0 and pruned.counts == Counter("abcdefabc")


def test_a_reservoir_is_a_uniform_sample():
    drawn = Counter()
    for seed in range(400):
        reservoir = Reservoir(5, rng(seed))
        for item in range(20):
            reservoir.add(item)
        assert len(set(reservoir.items)) == 5
        drawn.update(reservoir.items)
    # Each is in a quarter of 400 samples; five standard deviations.
    assert all(abs(drawn[item] - 100) < 5 * np.sqrt(400 * 0.25 * 0.75) for item in range(20))


def test_numbers_of_known_texts():
    counts = TextCounts(rng())
    for text in ("a b a", "你好 a", "a b a", "x", "a b a"):
        counts.add(text)
    assert (counts.documents, counts.characters, counts.num_bytes) == (5, 3 * 5 + 4 + 1, 3 * 5 + 8 + 1)
    assert counts.top_ngrams(1, 2) == [("a", 7), ("b", 3)]
    assert counts.top_ngrams(2, 2) == [("a b", 3), ("b a", 3)]
    assert dict(counts.top_ngrams(3, 9)) == {"a b a": 3, "你好 a": 1}
    duplicates = counts.duplicates(5)
    assert (duplicates.copies, duplicates.most_frequent) == (2, [("a b a", 3)])


TEXT = "one two, one two. 你好 世界3.14 can't-stop;go:\n一二三 one"


@pytest.mark.parametrize("size", range(0, 12))
def test_ngrams_are_those_of_the_whole_text_whatever_the_slices(monkeypatch, size):
    monkeypatch.setattr(inspection_counts, "_SLICE", size)
    counts, found = TextCounts(rng()), words(TEXT)
    counts.add(TEXT)
    for n, counter in counts.ngrams.items():
        assert counter.counts == Counter(zip(*(found[start:] for start in range(n)), strict=False))


def test_a_long_line_is_counted_and_pruned_in_slices(monkeypatch):
    sizes = []

    class Watched(PrunedCounter):
        def update(self, items):
            items = list(items)
            sizes.append(len(items))
            super().update(items)

    monkeypatch.setattr(inspection_counts, "_SLICE", 50)
    counts = TextCounts(rng())
    counts.ngrams = {3: Watched(capacity=10)}
    counts.add("".join(map(chr, rng().integers(0x4E00, 0x4E40, 1000))))
    assert sum(sizes) == 998 and max(sizes) < 60 and len(counts.ngrams[3].counts) <= 20


def test_a_long_word_counts_by_its_beginning():
    counts = TextCounts(rng())
    counts.add("a" * 1000)
    assert counts.top_ngrams(1, 1) == [("a" * 64 + "…", 1)]


def test_tokens_and_bins_of_lengths():
    counts = TokenCounts(100)
    for ids in ([], [5], [5, 5, 7], [1] * 4, list(range(50))):
        counts.add(np.array(ids, np.int32))
    assert counts.counts_V.sum() == 58
    assert counts.counts_V[[5, 7, 1, 49, 50]].tolist() == [4, 2, 5, 1, 0]
    assert counts.lengths() == [(0, 0, 1), (1, 1, 1), (2, 3, 1), (4, 7, 1), (8, 15, 0), (16, 31, 0), (32, 63, 1)]


def test_joined_as_the_script_writes():
    assert joined(("a", "b")) == "a b"
    assert joined(("世", "界", "a", "한국", "어")) == "世界 a 한국 어"


@pytest.mark.parametrize(
    ("text", "expected"), [("Hello, 世", "LATIN"), ("你好", "CJK"), ("при 1", "CYRILLIC"), ("12", "none")]
)
def test_script_of_most_letters(text, expected):
    assert script(text) == expected


def test_languages_by_lingua_or_by_script(monkeypatch):
    texts = ["This is a sentence that is written in English, as you can see.", "今天天气很好，我们去公园散步吧。"]

    def languages():
        counts = TextCounts(rng())
        for text in texts * 2:
            counts.add(text)
        return counts.languages()

    inspection_counts._detector.cache_clear()  # another test may have made one
    monkeypatch.setitem(sys.modules, "lingua", None)  # as if it were not installed
    found, by = languages()
    assert found == {"LATIN": 2, "CJK": 2}
    assert by.startswith("scripts, as lingua is not installed (pip install 'tessera-lm[cleaning]')")
    monkeypatch.undo()
    pytest.importorskip("lingua")
    found, by = languages()
    assert found == {"English": 2, "Chinese": 2}
    assert by == "languages by lingua: first 1000 characters of 4 of 4 documents"


def test_languages_are_of_a_sample():
    counts = TextCounts(rng())
    for _ in range(LANGUAGE_SAMPLE + 50):
        counts.add("7")
    found, by = counts.languages()
    assert sum(found.values()) == LANGUAGE_SAMPLE and "1,000 of 1,050 documents" in by
