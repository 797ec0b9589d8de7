import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.objectives.examples import assemble
from data.objectives.masking import MaskedLM, word_starts
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer

PAD, MASK, CLS, SEP, EOS = range(5)
VOCAB = 1000
ORDINARY = np.arange(VOCAB) >= 5
STARTS = ORDINARY & (np.arange(VOCAB) % 2 == 0)  # even ids begin a word


def masked(length=130, **options):
    return MaskedLM(length, PAD, MASK, ORDINARY, **({"cls_id": CLS, "sep_id": SEP} | options))


def example_of(objective, ids, rng):
    """A row that holds one piece."""
    return assemble([objective(ids, rng)], objective.features, objective.pad_id)


def text(tokens, seed=0):
    return np.random.default_rng(seed).integers(5, VOCAB, tokens).astype(np.uint16)


def test_the_block_lies_between_its_special_ids():
    for options, first, last in (({}, [CLS], [SEP]), ({"cls_id": None}, [], [SEP]), ({"sep_id": None}, [CLS], [])):
        objective = masked(20, **options)
        block = text(objective.stride)
        example = example_of(objective, block, np.random.default_rng(0))
        assert example["targets"].tolist() == [*first, *block, *last]
        assert example["segments"].tolist() == [1] * 20
    short = example_of(masked(20), text(3), np.random.default_rng(0))
    assert short["targets"].tolist() == [CLS, *text(3), SEP, *[PAD] * 15]
    assert short["segments"].tolist() == [1] * 5 + [0] * 15
    assert short["inputs"][5:].tolist() == [PAD] * 15 and short["weights"].sum() == 1


@given(
    tokens=st.integers(1, 128),
    specials=st.integers(0, 128),
    rate=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**30),
    words=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_exactly_the_rate_is_chosen_and_nothing_special(tokens, specials, rate, seed, words):
    """Words of one token, where words are asked for: then their count is exact, too."""
    block = text(tokens, seed)
    block[np.random.default_rng(seed).permutation(tokens)[:specials]] = EOS
    starts = np.ones(VOCAB, bool) if words else None
    example = example_of(masked(rate=rate, starts_word_V=starts), block, np.random.default_rng(seed))
    ordinary = int((block != EOS).sum())
    assert example["weights"].sum() == (max(1, round(rate * ordinary)) if ordinary else 0)
    assert (example["targets"][example["weights"] == 1] >= 5).all()
    changed = example["inputs"] != example["targets"]
    assert not changed[example["weights"] == 0].any()
    assert np.isin(example["inputs"][changed], [MASK, *range(5, VOCAB)]).all()


def test_eighty_percent_masks_ten_random_ten_kept():
    objective, runs = masked(rate=0.5), 400
    inputs, targets = [], []
    for seed in range(runs):
        example = example_of(objective, text(128, seed), np.random.default_rng(10_000 + seed))
        chosen = example["weights"] == 1
        inputs.append(example["inputs"][chosen])
        targets.append(example["targets"][chosen])
    inputs, targets = np.concatenate(inputs), np.concatenate(targets)
    total, drawn = len(inputs), 1 / ORDINARY.sum()  # a random id is the true one so often
    assert total == 64 * runs
    for count, p in (
        ((inputs == MASK).sum(), 0.8),
        ((inputs == targets).sum(), 0.1 + 0.1 * drawn),
        (((inputs != MASK) & (inputs != targets)).sum(), 0.1 - 0.1 * drawn),
    ):
        assert abs(count - total * p) < 5 * np.sqrt(total * p * (1 - p))
    swapped = inputs[(inputs != MASK) & (inputs != targets)]
    # Random ids come from all of the ordinary vocabulary, evenly: mean and spread of a uniform draw.
    assert 5 <= swapped.min() < 20 and swapped.max() > VOCAB - 15
    assert abs(swapped.mean() - (5 + VOCAB - 1) / 2) < 5 * VOCAB / np.sqrt(12 * len(swapped))


@pytest.mark.parametrize("starts", [None, np.ones(VOCAB, bool)])
def test_every_position_is_chosen_equally_often(starts):
    objective, runs = masked(22, rate=0.25, starts_word_V=starts), 2000
    counts = sum(example_of(objective, text(20, s), np.random.default_rng(s))["weights"] for s in range(runs))
    assert counts[[0, -1]].tolist() == [0, 0] and counts.sum() == 5 * runs
    assert (abs(counts[1:-1] - runs / 4) < 5 * np.sqrt(runs / 4 * 3 / 4)).all()


def words_of(block):
    """Positions of each word, by hand: a word goes on while ids are odd and not special."""
    words = []
    for place, id in enumerate(block.tolist()):
        if id < 5:
            continue
        if id % 2 == 0 or place == 0 or block[place - 1] < 5:
            words.append([])
        words[-1].append(place)
    return words


@given(tokens=st.integers(1, 128), specials=st.integers(0, 20), rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**30))
@settings(deadline=None, max_examples=150)
def test_words_are_chosen_whole(tokens, specials, rate, seed):
    block = text(tokens, seed)
    block[np.random.default_rng(seed).permutation(tokens)[:specials]] = EOS
    example = example_of(masked(rate=rate, starts_word_V=STARTS), block, np.random.default_rng(seed))
    weights = example["weights"][1 : 1 + tokens]
    words = words_of(block)
    shares = [weights[word].mean() for word in words]
    assert set(shares) <= {0.0, 1.0}
    count = max(1, round(rate * int((block != EOS).sum())))
    left = [len(word) for word, share in zip(words, shares, strict=True) if share == 0]
    # Full but for less than any word that is left; or one word, where none fits.
    fits = weights.sum() <= count and all(size > count - weights.sum() for size in left)
    assert (fits and sum(shares) >= 1) or not words or (sum(shares) == 1 and min(map(len, words)) > count)


def test_a_word_that_does_not_fit_is_chosen_where_no_other_is():
    example = example_of(masked(starts_word_V=STARTS), np.array([6, 7, 9]), np.random.default_rng(0))
    assert example["weights"][:5].tolist() == [0, 1, 1, 1, 0]


def test_words_are_separated_by_white_space():
    tokenizer = ByteTokenizer()
    found = np.flatnonzero(word_starts(tokenizer, tokenizer.token_bytes_V > 0))
    assert bytes(found.tolist()) == b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "


def test_pieces_of_sentencepiece_begin_words_with_their_space(pieces):
    starts = word_starts(pieces, pieces.token_bytes_V > 0)
    ids = np.array(pieces.encode("the sum of two numbers"))
    bounds = [*np.flatnonzero(starts[ids]).tolist(), len(ids)]
    words = [pieces.decode(ids[a:b]) for a, b in zip([0, *bounds], bounds, strict=False)]
    assert words == ["the", " sum", " of", " two", " numbers"]


def test_a_decoder_that_writes_the_spaces_itself_is_understood():
    class WordPieces:
        def decode(self, ids):
            return " ".join(["[CLS]", "play", "##ing", "dog"][id] for id in ids).replace(" ##", "")

    assert word_starts(WordPieces(), np.array([0, 1, 1, 1], bool)).tolist() == [False, True, False, True]


def test_errors_name_their_numbers():
    with pytest.raises(DataError, match="length 2 has no room for text: use 3 or more"):
        masked(2)
    with pytest.raises(DataError, match="special id 7 is not a special one of the 1000 ids"):
        MaskedLM(20, PAD, 7, ORDINARY)
    with pytest.raises(DataError, match="special id 1000 is not a special one of the 1000 ids"):
        MaskedLM(20, 1000, MASK, ORDINARY)
    with pytest.raises(DataError, match="none of the 1000 ids is text"):
        MaskedLM(20, PAD, MASK, np.zeros(VOCAB, bool))
    with pytest.raises(DataError, match="none of the 2 ids of text begins with white space: use objective.whole_words"):
        word_starts(CharTokenizer("ab"), np.ones(2, bool))
