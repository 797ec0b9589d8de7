"""Duplicates: what counts as a word, as equal and as similar; against datasketch's own index and exact Jaccard."""

import json
import random
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from data.cleaning.duplicates import (
    RIVALS,
    band_keys,
    candidates,
    equal_texts,
    near_duplicates,
    signature,
    text_key,
)
from data.cleaning.shingles import combined, ngram_hashes, word_hashes, word_spans
from tests.data.conftest import REPOSITORY

PERMUTATIONS = 128


def words(text: str) -> list[str]:
    return [text[first:last] for first, last in word_spans(text)]


def shingles(text: str) -> set[tuple[str, ...]]:
    lower = [word.casefold() for word in words(text)]
    return set(zip(*(lower[first:] for first in range(5)), strict=False)) or {tuple(lower)}


def jaccard(first: set, second: set) -> float:
    return len(first & second) / len(first | second)


@pytest.fixture
def paragraphs(test_data) -> list[str]:
    lines = test_data("wikitext2/valid.txt").read_text(encoding="utf-8").split("\n")
    return [line for line in lines if len(line.split()) > 40][:250]


def found(texts: list[str], threshold: float, ngram: int = 5):
    pytest.importorskip("datasketch")
    signatures = np.array([signature(text, ngram, PERMUTATIONS) for text in texts])
    buckets = candidates(band_keys(signatures, threshold), np.zeros(len(texts), bool))
    return near_duplicates(buckets, signatures, threshold), signatures, buckets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 o'clock, ok?", ["It", "s", "3", "5", "o", "clock", "ok"]),
        ("我爱JAX编程。", ["我", "爱", "JAX", "编", "程"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("العَرَبِيّة جميلة", ["العَرَبِيّة", "جميلة"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("👍🏽 — ！", ["👍", "🏽", "—", "！"]),
        (" \n", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected
    assert len(word_hashes(text)) == len(expected)


def test_words_are_equal_whatever_their_case_and_unicode_form():
    assert (word_hashes("CAFÉ ﬁn Straße") == word_hashes("cafe\u0301 fin STRASSE")).all()
    assert (word_hashes("one two") != word_hashes("two one")).all()


def test_ngrams_depend_on_the_order_of_their_words():
    forward, backward = ngram_hashes(word_hashes("a b c"), 3), ngram_hashes(word_hashes("c b a"), 3)
    assert forward.shape == (1,) and forward != backward
    assert ngram_hashes(word_hashes("a b"), 3).shape == (0,)
    one, two = np.array([1], np.uint64), np.array([2], np.uint64)
    assert (combined([one, two]) != combined([two, one])).all()


def test_equal_texts_are_those_with_the_same_key():
    drawn = random.Random(0)
    keys = np.array([[drawn.randrange(2), drawn.randrange(40)] for _ in range(300)], np.uint64)
    first: dict = {}
    expected = [first.setdefault(tuple(key), number) for number, key in enumerate(keys.tolist())]
    expected = [-1 if other == number else other for number, other in enumerate(expected)]
    assert equal_texts(keys).tolist() == expected
    assert expected.count(-1) == len(first) < 100


def test_white_space_and_canonical_form_make_no_text_another():
    same = text_key("a cafe\u0301\r\n b")
    assert (same == text_key(" a café b\n")).all()
    for other in ("a café c", "A café b", "acafé b", "a cafe b"):
        assert (same != text_key(other)).any()


def test_estimates_are_close_to_the_exact_similarity(paragraphs):
    _, signatures, _ = found(paragraphs[:60], 0.5)
    edited = [" ".join(text.split()[: 30 + 5 * (number % 12)]) for number, text in enumerate(paragraphs[:60])]
    others = np.array([signature(text, 5, PERMUTATIONS) for text in edited])
    exact = [jaccard(shingles(a), shingles(b)) for a, b in zip(paragraphs[:60], edited, strict=True)]
    estimated = (signatures == others).mean(axis=1)
    # The deviation of an estimate from 128 numbers is at most 0.044.
    assert abs(np.mean(estimated - exact)) < 0.02 and np.abs(estimated - exact).max() < 0.16
    assert min(exact) < 0.6 < 0.9 < max(exact)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_candidates_are_those_of_datasketch(paragraphs, threshold):
    datasketch = pytest.importorskip("datasketch")
    texts = [text for number, text in enumerate(paragraphs[:80]) for text in (text, text[: -5 * (number % 30) or None])]
    _, signatures, buckets = found(texts, threshold)
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
    sketches = [datasketch.MinHash(hashvalues=values, scheme="affine32") for values in signatures]
    for number, sketch in enumerate(sketches):
        index.insert(number, sketch)
    for number, sketch in enumerate(sketches):
        shared = ((buckets == buckets[number]) & (buckets[number] >= 0)).any(axis=1)
        assert set(np.flatnonzero(shared).tolist()) | {number} == set(index.query(sketch))


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_planted_near_duplicates_are_found_and_nothing_else(paragraphs, threshold):
    drawn, texts = random.Random(1), list(paragraphs)
    for number, text in enumerate(paragraphs[::2]):  # none to one word in ten is another
        rate = (number % 12 / 11) ** 2 / 10
        texts.append(" ".join(f"w{drawn.random()}" if drawn.random() < rate else word for word in text.split()))
    result, _, _ = found(texts, threshold)
    sets = [shingles(text) for text in texts]
    nearest = [max((jaccard(mine, other) for other in sets[:n]), default=0.0) for n, mine in enumerate(sets)]
    sure = [number for number, similar in enumerate(nearest) if similar >= threshold + 0.1]
    wrong = [number for number, similar in enumerate(nearest) if similar < threshold - 0.1]
    dropped = set(np.flatnonzero(result.of_N >= 0).tolist())
    assert len(sure) >= 30 and len(dropped & set(sure)) >= 0.98 * len(sure)
    assert len(wrong) >= 200 and len(dropped & set(wrong)) == 0
    for number in dropped:
        assert jaccard(sets[number], sets[result.of_N[number]]) == pytest.approx(result.jaccard_N[number], abs=0.16)
        assert result.of_N[result.of_N[number]] == -1 and result.of_N[number] < number


def test_chinese_near_duplicates_are_found_by_character(test_data):
    text = test_data("zh_novels/西游记.txt").read_text(encoding="utf-8").replace("\n", "")
    texts = [text[first : first + 400] for first in range(10_000, 50_000, 400)]
    texts += [one[:100] + "新" + one[101:] for one in texts[:20]]
    result, _, _ = found(texts, 0.8)
    assert result.of_N[100:].tolist() == list(range(20))
    assert (result.of_N[:100] == -1).all()


def test_a_chain_of_similar_documents_loses_only_what_a_staying_one_covers():
    alphabet = np.arange(64, dtype=np.uint32)
    steps = [alphabet.copy() for _ in range(3)]
    steps[1][:8] += 1000  # 56 of 64 agree with the first: 0.875
    steps[2][:16] += 1000  # 56 of 64 agree with the second, 48 with the first: 0.75
    buckets = np.zeros((3, 1), np.int32)
    result = near_duplicates(buckets, np.array(steps), 0.8)
    assert result.of_N.tolist() == [-1, 0, -1]
    assert result.jaccard_N[1] == 0.875
    assert near_duplicates(buckets, np.array(steps), 0.75).of_N.tolist() == [-1, 0, 0]


def test_the_most_similar_document_is_named():
    first = np.arange(20, dtype=np.uint32)
    second, third = first.copy(), first.copy()
    second[:10] += 100  # 0.5 of the first
    third[:9] += 100  # 0.55 of the first, 0.95 of the second
    result = near_duplicates(np.zeros((3, 1), np.int32), np.array([first, second, third]), 0.55)
    assert result.of_N.tolist() == [-1, -1, 1] and result.jaccard_N[2] == np.float32(0.95)


def test_documents_of_one_template_are_compared_with_a_bounded_number():
    count = 3 * RIVALS
    signatures = np.random.default_rng(0).integers(0, 2**32, (count + 2, 16), np.uint32)
    signatures[count:] = signatures[count - 1]
    buckets = np.zeros((count + 2, 2), np.int32)  # one that all share
    buckets[:, 1] = -1
    buckets[[count - 1, count + 1], 1] = 0  # and one of the last and its second copy
    told = []
    result = near_duplicates(buckets, _Compared(signatures), 0.8, lambda done, kept: told.append((done, kept)))
    assert result.of_N[count:].tolist() == [-1, count - 1]  # of the first copy, the bucket is full
    assert result.crowded == count + 1 - RIVALS
    assert _Compared.most == RIVALS + 1 and told == [(0, 0)]


class _Compared:
    """Signatures that remember how many were asked for at once."""

    most = 0

    def __init__(self, signatures: np.ndarray):
        self.signatures = signatures

    def __getitem__(self, rows):
        if isinstance(rows, list):
            _Compared.most = max(_Compared.most, len(rows))
        return self.signatures[rows]


@pytest.mark.parametrize("hashed", [text_key, word_hashes])
def test_endless_marks_take_no_endless_time(hashed):
    hashed("e\u0301 first")  # compiles
    start = time.process_time()
    hashed("a" + "\u0301\u0323" * 50_000)
    assert time.process_time() - start < 1


def test_texts_without_words_are_no_duplicates_of_each_other():
    result, _, _ = found(["👍👍👎", "🎉🎉🎉🎉", "—", "👍👍👎"], 0.8)
    assert result.of_N.tolist() == [-1, -1, -1, 0]


MILLION = """
import json, resource, sys, time
from pathlib import Path
from data.cleaning.pipeline import clean
from data.cleaning.gopher import GopherQuality
from data.cleaning.settings import CleanConfig
from data.config import SourceConfig
from tests.peak import peak_memory
if __name__ == "__main__":
    begun = time.monotonic()
    settings = CleanConfig(rules=(GopherQuality(min_words=5, min_stop_words=0),), near_duplicates=0.8)
    total = clean([SourceConfig(sys.argv[1])], sys.argv[2], settings, workers=2).total
    peak = [peak_memory(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
    print(json.dumps([total.documents_in, total.documents_out, *peak, time.monotonic() - begun]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_documents_take_less_than_two_gigabytes(tmp_path):
    pytest.importorskip("datasketch")
    drawn = np.random.default_rng(0)
    vocabulary = np.array([f"word{number}" for number in range(20_000)])
    with open(tmp_path / "million.jsonl", "w") as file:
        for first in range(0, 1_000_000, 10_000):
            ids = drawn.integers(0, len(vocabulary), (10_000, 30))
            ids[1::10] = ids[::10]  # one in ten is its neighbour with the last word changed
            ids[1::10, -1] = 0
            for number, row in enumerate(vocabulary[ids], first):
                file.write(f'{{"id": "{number}", "text": "{" ".join(row)}"}}\n')
    (tmp_path / "run.py").write_text(textwrap.dedent(MILLION))
    command = [sys.executable, tmp_path / "run.py", tmp_path / "million.jsonl", tmp_path / "out"]
    done = subprocess.run(command, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read, kept, own, largest_child, seconds = json.loads(done.stdout)
    print(f"{read:,} documents, {kept:,} kept, {own:.0f} MB + 2 × {largest_child:.0f} MB, {seconds:.0f} s")
    assert (read, kept) == (1_000_000, 900_000)
    assert own + 2 * largest_child < 2000
