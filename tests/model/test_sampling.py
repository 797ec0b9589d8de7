"""Sampling: each filter equals its definition and transformers' own, and draws follow the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.sampling import (
    Sampling,
    candidates,
    choose,
    forbid_repeated_ngrams,
    keep_min_p,
    keep_nucleus,
    keep_typical,
    penalize,
    penalize_repetition,
)

P = np.array([0.4, 0.05, 0.3, 0.25], np.float32)  # of the cases made by hand
LOGITS = jnp.log(jnp.asarray(P))[None] + 3.0


def kept(logits_BV):
    return [np.flatnonzero(row > -np.inf).tolist() for row in np.asarray(logits_BV)]


def masked(logits_BV, sampling):
    """What `candidates` leaves, over the whole vocabulary."""
    sampling = sampling.checked(logits_BV.shape[1])
    logits_BC, ids_BC = jax.jit(candidates)(jnp.asarray(logits_BV), sampling)
    if ids_BC is None:
        return np.asarray(logits_BC)
    whole = np.full(logits_BV.shape, -np.inf, np.float32)
    np.put_along_axis(whole, np.asarray(ids_BC), np.asarray(logits_BC), axis=1)
    return whole


@pytest.mark.parametrize(
    ("filtered", "expected"),
    [
        (keep_nucleus(LOGITS, 0.1), [0]),
        (keep_nucleus(LOGITS, 0.39), [0]),
        (keep_nucleus(LOGITS, 0.41), [0, 2]),
        (keep_nucleus(LOGITS, 0.94), [0, 2, 3]),
        (keep_nucleus(LOGITS, 0.96), [0, 1, 2, 3]),
        (keep_min_p(LOGITS, 0.7), [0, 2]),
        (keep_min_p(LOGITS, 0.1), [0, 1, 2, 3]),
        (keep_min_p(LOGITS, 1.0), [0]),
        # Entropy 1.224 nats; the surprises 0.916, 2.996, 1.204 and 1.386 are 0.308, 1.771, 0.020 and 0.162 from it.
        (keep_typical(LOGITS, 0.29), [2]),
        (keep_typical(LOGITS, 0.31), [2, 3]),
        (keep_typical(LOGITS, 0.56), [0, 2, 3]),
        (keep_typical(LOGITS, 0.96), [0, 1, 2, 3]),
    ],
)
def test_filters_on_a_small_distribution(filtered, expected):
    assert kept(filtered) == [expected]
    np.testing.assert_array_equal(filtered[0, jnp.asarray(expected)], LOGITS[0, jnp.asarray(expected)])


def test_equals_at_the_border_of_the_nucleus_stay_together():
    assert kept(keep_nucleus(jnp.zeros((1, 4)), 0.3)) == [[0, 1, 2, 3]]
    assert kept(keep_nucleus(jnp.asarray([[1.0, 5.0, 1.0, -9.0]]), 0.99)) == [[0, 1, 2]]


def test_top_k_keeps_exactly_k_and_the_nucleus_is_of_what_it_leaves():
    assert kept(masked(jnp.zeros((1, 4)), Sampling(top_k=2))) == [[0, 1]]
    assert kept(masked(LOGITS, Sampling(top_k=3))) == [[0, 2, 3]]
    # 0.4, 0.3 and 0.25 of 0.95: the first two are 0.737 of it, but 0.7 of the whole.
    assert kept(masked(LOGITS, Sampling(top_k=3, top_p=0.72))) == [[0, 2]]
    assert kept(masked(LOGITS, Sampling(top_p=0.72))) == [[0, 2, 3]]


def test_repetition_is_made_less_likely_on_both_sides_of_zero_and_padding_is_not_repetition():
    logits = jnp.asarray([[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]])
    history = jnp.asarray([[-1, -1, 0], [1, 0, 1]])
    expected = [[1.0, -2.0, 1.0, -1.0], [1.0, -4.0, 1.0, -1.0]]
    np.testing.assert_array_equal(penalize_repetition(logits, history, 2.0), expected)


@pytest.mark.parametrize(
    ("history", "n", "expected"),
    [
        ([-1, -1, 1, 2, 1], 2, [0, 1, 3]),  # 1 2 was there
        ([-1, 1, 2, 1, 3], 2, [0, 1, 2, 3]),  # 3 ended nothing yet
        ([1, 2, 3, 1, 2], 3, [0, 1, 2]),
        ([1, 2, 3, 2, 2], 3, [0, 1, 2, 3]),
        ([-1, -1, -1, 0, 3], 1, [1, 2]),
        ([1, 1, 1, 1, 1], 2, [0, 2, 3]),
        ([-1, -1, -1, -1, 1], 3, [0, 1, 2, 3]),  # padding is no token of an n-gram
        ([1, 2, 1, 2, 1], 9, [0, 1, 2, 3]),  # longer than the text
        ([0, 1, 2, 3, 3], 1, [0, 1, 2, 3]),  # nothing would be left
    ],
)
def test_ngrams_that_would_repeat_are_forbidden(history, n, expected):
    assert kept(forbid_repeated_ngrams(jnp.zeros((1, 4)), jnp.asarray([history]), n)) == [expected]


def test_no_end_before_the_minimum():
    sampling = Sampling(min_tokens=3).checked(4)
    assert kept(penalize(jnp.zeros((1, 4)), sampling, None, jnp.int32(2), (1, 3))) == [[0, 2]]
    assert kept(penalize(jnp.zeros((1, 4)), sampling, None, jnp.int32(3), (1, 3))) == [[0, 1, 2, 3]]


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 20_000)

    def frequencies(sampling):
        draws = jax.jit(choose)(jnp.tile(logits, (len(keys), 1)), keys, sampling.checked(4))
        return np.bincount(draws, minlength=4) / len(keys)

    np.testing.assert_allclose(frequencies(Sampling(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(frequencies(Sampling(0.5)), squares / squares.sum(), atol=0.015)
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(Sampling(top_k=3, top_p=0.6)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(Sampling(0.0)), [1, 0, 0, 0])
    logits = 50 * logits[::-1]
    np.testing.assert_allclose(frequencies(Sampling(1e-38)), [0, 0, 0, 1])  # 35 / 1e-38 is no float


def test_what_is_off_is_not_compiled():
    off = Sampling(top_k=5).checked(8)
    assert jax.tree.leaves(off) == [1.0]  # the temperature
    assert jax.tree.leaves(Sampling(0.0).checked(8)) == [] and not off.needs_history
    assert Sampling(repetition_penalty=1.5).checked(8).needs_history
    assert Sampling(no_repeat_ngram=2).checked(8).needs_history
    assert off.checked(8) == off


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (Sampling(-1.0), "temperature is -1.0"),
        (Sampling(float("nan")), "temperature is nan"),
        (Sampling(top_k=65), "top_k is 65.*64"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(top_k=2.5), "top_k is 2.5"),
        (Sampling(top_p=0.0), "top_p is 0.0: use a number above 0"),
        (Sampling(top_p=1.1), "top_p is 1.1"),
        (Sampling(min_p=-0.1), "min_p is -0.1"),
        (Sampling(typical_p=0.0), "typical_p is 0.0"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (Sampling(no_repeat_ngram=-2), "no_repeat_ngram is -2"),
        (Sampling(min_tokens=1.5), "min_tokens is 1.5"),
        (Sampling(0.0, typical_p=0.5), "typical_p is 0.5 and temperature 0"),
    ],
)
def test_errors(sampling, says):
    with pytest.raises(ValueError, match=says):
        sampling.checked(64)


def random_logits(seed):
    """Flat and peaked rows, and rows where many logits are exactly equal or minus infinity."""
    rng = np.random.default_rng(seed)
    scales = np.repeat([0.01, 1.0, 5.0, 60.0], 6)[:, None]
    smooth = (rng.standard_normal((24, 97)) * scales).astype(np.float32)
    holes = np.where(rng.random((6, 97)) < 0.5, -np.inf, rng.standard_normal((6, 97))).astype(np.float32)
    ties = rng.integers(-3, 4, (12, 97)).astype(np.float32)
    return np.concatenate([smooth, holes]), ties


FILTERS = [
    ({"temperature": 0.3}, [("TemperatureLogitsWarper", 0.3)]),
    ({"top_p": 0.01}, [("TopPLogitsWarper", 0.01)]),
    ({"top_p": 0.5}, [("TopPLogitsWarper", 0.5)]),
    ({"top_p": 0.97}, [("TopPLogitsWarper", 0.97)]),
    ({"min_p": 0.05}, [("MinPLogitsWarper", 0.05)]),
    ({"min_p": 0.9}, [("MinPLogitsWarper", 0.9)]),
    ({"typical_p": 0.2}, [("TypicalLogitsWarper", 0.2)]),
    ({"typical_p": 0.95}, [("TypicalLogitsWarper", 0.95)]),
    (
        {"temperature": 1.7, "top_p": 0.8, "min_p": 0.03, "typical_p": 0.7},
        [
            ("TemperatureLogitsWarper", 1.7),
            ("TopPLogitsWarper", 0.8),
            ("MinPLogitsWarper", 0.03),
            ("TypicalLogitsWarper", 0.7),
        ],
    ),
]
TOP_K = [
    ({"top_k": 1}, [("TopKLogitsWarper", 1)]),
    ({"top_k": 97}, [("TopKLogitsWarper", 97)]),
    (
        {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.03, "typical_p": 0.9},
        [
            ("TemperatureLogitsWarper", 0.7),
            ("TopKLogitsWarper", 12),
            ("TopPLogitsWarper", 0.8),
            ("MinPLogitsWarper", 0.03),
            ("TypicalLogitsWarper", 0.9),
        ],
    ),
]


def peers(logits, parts):
    torch = pytest.importorskip("torch")
    generation = pytest.importorskip("transformers.generation")
    scores = torch.from_numpy(logits.copy())
    for name, value in parts:
        scores = getattr(generation, name)(value)(None, scores)
    return scores.numpy()


@pytest.mark.parametrize(("settings", "parts"), FILTERS + TOP_K)
def test_filters_equal_those_of_transformers(settings, parts):
    smooth, ties = random_logits(0)
    with_ties = len(parts) == 1 and parts[0][0] not in ("TopPLogitsWarper", "TopKLogitsWarper")
    logits = np.concatenate([smooth, ties]) if with_ties else smooth
    expected = peers(logits, parts)
    ours = masked(logits, Sampling(**settings))
    np.testing.assert_array_equal(ours > -np.inf, expected > -np.inf)
    np.testing.assert_allclose(jax.nn.softmax(ours), jax.nn.softmax(expected), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("settings", "parts"), [FILTERS[2], TOP_K[0]])
def test_of_equal_logits_theirs_differ_only_at_the_border(settings, parts):
    """transformers cuts through the equals at the border of a nucleus and keeps those at the border of top-k."""
    _, ties = random_logits(1)
    expected, ours = peers(ties, parts) > -np.inf, masked(ties, Sampling(**settings)) > -np.inf
    larger, smaller = (ours, expected) if "top_p" in settings else (expected, ours)
    border = np.where(larger, ties, np.inf).min(axis=1, keepdims=True)
    assert (larger != smaller).any() and (larger >= smaller).all()
    np.testing.assert_array_equal(larger & (ties > border), smaller & (ties > border))
    if "top_k" in settings:
        np.testing.assert_array_equal(smaller.sum(axis=1), settings["top_k"])


def test_penalties_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    generation = pytest.importorskip("transformers.generation")
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((50, 7)).astype(np.float32)
    history = rng.integers(0, 7, (50, 11))
    scores, ids = torch.from_numpy(logits), torch.from_numpy(history)
    theirs = generation.RepetitionPenaltyLogitsProcessor(1.7)(ids, scores.clone()).numpy()
    np.testing.assert_allclose(penalize_repetition(jnp.asarray(logits), jnp.asarray(history), 1.7), theirs, rtol=1e-6)
    padding = rng.integers(0, 11, 50)
    ignored = generation.RepetitionPenaltyLogitsProcessor(1.7, torch.from_numpy(padding))(ids, scores.clone()).numpy()
    left = np.where(np.arange(11) < padding[:, None], -1, history)
    np.testing.assert_allclose(penalize_repetition(jnp.asarray(logits), jnp.asarray(left), 1.7), ignored, rtol=1e-6)
    for n in (2, 3, 4):
        theirs = generation.NoRepeatNGramLogitsProcessor(n)(ids, scores.clone()).numpy()
        np.testing.assert_array_equal(forbid_repeated_ngrams(jnp.asarray(logits), jnp.asarray(history), n), theirs)
    for count, minimum in ((2, 3), (3, 3)):
        theirs = generation.MinNewTokensLengthLogitsProcessor(11 - count, minimum, [1, 4])(ids, scores.clone()).numpy()
        sampling = Sampling(min_tokens=minimum).checked(7)
        np.testing.assert_array_equal(penalize(jnp.asarray(logits), sampling, None, jnp.int32(count), (1, 4)), theirs)
