"""Transforms of text: what they keep, how often they act, and that random numbers depend on seed, id and copy alone."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation import (
    TRANSFORMS,
    BackTranslation,
    CharacterNoise,
    SentenceShuffle,
    Swap,
    TokenDeletion,
    TokenMasking,
    augment,
    compose,
    parse_transforms,
)
from data.sources.documents import Document
from data.words import words

NUM_WORDS = 20_000
DISTINCT = " ".join(f"w{number:05d}" for number in range(NUM_WORDS))
TEXT = "The quick brown fox\tjumps over  the lazy dog.\n\nShe said “no”! 你好，世界。今天很好。\nEnd"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_rate(count: int, of: int, rate: float) -> None:
    """Within five standard deviations of a binomial count: wrong once in 1.7 million."""
    assert abs(count - rate * of) < 5 * np.sqrt(of * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_masking_and_deletion_honour_their_rate(rate):
    masked = TokenMasking(rate, mask="[M]")(DISTINCT, rng()).split(" ")
    assert len(masked) == NUM_WORDS
    assert_rate(masked.count("[M]"), NUM_WORDS, rate)
    assert all(was == now for was, now in zip(DISTINCT.split(), masked, strict=True) if now != "[M]")

    left = TokenDeletion(rate)(DISTINCT, rng()).split(" ")
    assert_rate(NUM_WORDS - len(left), NUM_WORDS, rate)
    assert left == sorted(set(left))  # in order, none changed, no empty word: a space goes with each


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_swap_moves_neighbours_at_its_rate(rate):
    swapped = Swap(rate)(DISTINCT, rng()).split(" ")
    moved = np.array([int(word[1:]) for word in swapped]) - np.arange(NUM_WORDS)
    assert set(np.unique(moved)) <= {-1, 0, 1}
    assert sorted(swapped) == DISTINCT.split()
    # Pairs, not words, are drawn: twice the variance of single words.
    assert abs((moved != 0).sum() - rate * NUM_WORDS) <= 5 * np.sqrt(2 * NUM_WORDS * rate * (1 - rate)) + 1


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_character_noise_acts_at_its_rate_and_by_four_kinds(rate):
    letters = "abcdefghij" * 2000  # neighbours differ
    edits, kinds = 0, Counter()
    for number in range(0, len(letters), 10):  # words on their own, so that edits are few in each
        word = letters[number : number + 10]
        noisy = CharacterNoise(rate)(word, rng(number))
        kinds[len(noisy) - len(word)] += 1
        edits += noisy != word
    assert_rate(edits, 2000, 1 - (1 - rate) ** 10)
    assert kinds[-1] > 50 and kinds[1] > 50


def test_character_noise_counts_each_kind_equally_often():
    text = "ab " * 20_000
    noisy = CharacterNoise(0.02)(text, rng()).split(" ")
    changed = [word for word in noisy if word not in ("ab", "")]
    chosen = 40_000 * 0.02
    swapped = changed.count("ba")
    # The first letter alone can be swapped: an eighth of all, and a few where both letters were chosen.
    assert abs(swapped - chosen / 8) < 5 * np.sqrt(chosen / 8) + 0.02 * chosen
    shorter = sum(len(word) == 1 for word in changed)
    longer = sum(len(word) == 3 for word in changed)
    for count in (shorter, longer):
        assert abs(count - chosen / 4) < 5 * np.sqrt(chosen / 4) + 0.02 * chosen


@pytest.mark.parametrize(("key", "near"), [("G", "TYFHVB"), ("q", "wa"), ("m", "njk"), ("P", "OL")])
def test_character_noise_types_neighbouring_keys_in_the_same_case(key, near):
    found = Counter(CharacterNoise(1.0)(key, rng(seed)) for seed in range(600))
    assert set(found) == {key} | set(near) | {f"{key}{other}" for other in near}
    assert sum(count for text, count in found.items() if len(text) == 2) > 100


def test_character_noise_of_chinese_takes_characters_of_the_text():
    text = "你好，世界。今天很好"
    for seed in range(100):
        noisy = CharacterNoise(0.5)(text, rng(seed))
        assert set(noisy) <= set(text)
        assert re.findall("[，。]", noisy) == ["，", "。"]
    assert CharacterNoise(1.0)("哈哈", rng()) in {"哈哈" * n for n in (1, 2)} | {"哈", "哈哈哈"}


def test_character_noise_swaps_chinese_neighbours():
    text = "一二三四五六七八"
    noisy = [CharacterNoise(0.1)(text, rng(seed)) for seed in range(400)]
    assert sum(sorted(found) == sorted(text) and found != text for found in noisy) > 30


def test_words_of_chinese_are_characters():
    text = "一二三四五六七八九十" * 500
    masked = TokenMasking(0.2, mask="#")(text, rng())
    assert len(masked) == len(text)
    assert_rate(masked.count("#"), len(text), 0.2)
    assert sorted(Swap(0.5)("一二三四五", rng(1))) == sorted("一二三四五") != list(Swap(0.5)("一二三四五", rng(1)))


@pytest.mark.parametrize("kind", [TokenMasking, Swap, CharacterNoise])
def test_what_stands_between_words_stays(kind):
    gaps = re.findall(r"\s+", TEXT)
    for seed in range(20):
        assert re.findall(r"\s+", kind(0.3)(TEXT, rng(seed))) == gaps


def test_deletion_keeps_line_ends_and_one_word():
    for seed in range(20):
        assert TokenDeletion(0.5)(TEXT, rng(seed)).count("\n") == TEXT.count("\n")
        assert len(words(TokenDeletion(1.0)(TEXT, rng(seed)))) == 1
    assert TokenDeletion(1.0)("one", rng()) == "one"


def test_sentences_change_places_whole():
    text = "One is here. Two is there!\nThree? 第四句。第五句！\n\nSix has no mark"
    sentences = ["One is here.", "Two is there!", "Three?", "第四句。", "第五句！", "Six has no mark"]
    seen = set()
    for seed in range(50):
        shuffled = SentenceShuffle(1.0)(text, rng(seed))
        found = sorted(sentences, key=shuffled.index)
        assert sorted(shuffled) == sorted(text) and all(sentence in shuffled for sentence in sentences)
        assert re.split("|".join(map(re.escape, sentences)), shuffled) == ["", " ", "\n", " ", "", "\n\n", ""]
        seen.add(tuple(found))
    assert len(seen) > 40


@settings(max_examples=60, deadline=None)
@given(st.text(), st.sampled_from(sorted(TRANSFORMS)), st.integers(0, 99))
def test_any_text_pure_and_rate_0_is_identity(text, name, seed):
    assert TRANSFORMS[name](0.0)(text, rng(seed)) == text
    once = TRANSFORMS[name](0.5)(text, rng(seed))
    assert TRANSFORMS[name](0.5)(text, rng(seed)) == once
    assert bool(words(once)) == bool(words(text))
    if not words(text) and name != "sentence_shuffle":
        assert once == text


def test_back_translation_goes_there_and_back_by_sentences():
    def there(texts, seed):
        calls.append(list(texts))
        seeds.append(seed)
        return [text.upper() for text in texts]

    calls, seeds = [], []
    transform = BackTranslation(there, lambda texts, seed: [text.replace("DOG", "HOUND") for text in texts])
    assert transform("A dog. A cat!\n\n a dog", rng()) == "A HOUND. A CAT!\n\n A HOUND"
    assert calls == [["A dog.", "A cat!", "a dog"]]
    for seed in (0, 1):
        transform("A dog.", rng(seed))
    assert seeds[0] == seeds[1] != seeds[2]  # of the random numbers, as all that a transform draws
    assert transform(" \n", rng()) == " \n"
    partly = BackTranslation(lambda texts, seed: [texts[0], ""], lambda texts, seed: ["new"] * len(texts))
    assert partly("One. Two.", rng()) == "new Two."
    with pytest.raises(ValueError, match="`back` returned 1 texts for 2"):
        BackTranslation(there, lambda texts, seed: texts[:1])("A. B.", rng())
    (record,) = augment([Document("a", "A dog.")], [transform, Swap(0.0)], original=False)
    assert record["transform"] == "back_translation,swap:0.0" and record["text"] == "A HOUND."


def test_compose_applies_in_order():
    both = compose(TokenMasking(1.0, mask="x"), lambda text, rng: text + "!")
    assert both("a b", rng()) == "x x!"


def test_parse_says_what_is_wrong():
    assert parse_transforms("swap:0.1, token_masking:1") == (Swap(0.1), TokenMasking(1.0))
    for wrong in ("swap", "swop:0.1", "swap:x", "swap:0.1,,", "swap:1e", "swap:-"):
        with pytest.raises(ValueError, match="transform"):
            parse_transforms(wrong)
    with pytest.raises(ValueError, match=r"Swap\.rate is 1\.5: it must be from 0 to 1"):
        parse_transforms("swap:1.5")


def test_records_of_a_document_depend_on_seed_id_and_copy_alone():
    documents = [Document("a", TEXT, 0.5), Document("b", TEXT)]
    transforms = parse_transforms("swap:0.3,character_noise:0.1")
    records = list(augment(documents, transforms, copies=2, seed=3))
    assert [record["id"] for record in records] == ["a", "a#aug1", "a#aug2", "b", "b#aug1", "b#aug2"]
    assert records[0] == {"id": "a", "text": TEXT, "score": 0.5}
    assert {key: records[4][key] for key in ("transform", "seed")} == {
        "transform": "swap:0.3,character_noise:0.1",
        "seed": 3,
    }
    assert records[1]["score"] == 0.5 and "score" not in records[4]
    assert len({record["text"] for record in records}) == 5  # TEXT twice, and four others

    by_id = {record["id"]: record for record in records}
    backwards = list(augment(documents[::-1], transforms, copies=1, seed=3, original=False))
    assert [record["id"] for record in backwards] == ["b#aug1", "a#aug1"]
    assert all(by_id[record["id"]] == record for record in backwards)
    other = next(augment(documents, transforms, seed=4, original=False))
    assert other["text"] != by_id["a#aug1"]["text"]


def test_nothing_to_do_is_an_error():
    with pytest.raises(ValueError, match="0 copies by 1 transforms"):
        list(augment([], [Swap(0.1)], copies=0))
    with pytest.raises(ValueError, match="1 copies by 0 transforms"):
        list(augment([], []))
