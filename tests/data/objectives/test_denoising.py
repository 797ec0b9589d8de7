import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.objectives.denoising import UL2, SpanCorruption, span_corruption_lengths
from data.objectives.examples import assemble

PAD, EOS, START = 0, 1, 2
SENTINELS = tuple(range(5099, 4899, -1))  # downwards, as in T5's vocabulary
IS_SENTINEL = set(SENTINELS)
MODES = (6000, 6001, 6002)
FIRST_TEXT = 10


def corruption(length=64, density=0.15, mean_span=3.0):
    return SpanCorruption(length, PAD, EOS, SENTINELS, START, density, mean_span)


def ul2(length=512, modes=MODES):
    return UL2(length, PAD, EOS, SENTINELS, START, modes)


def block_of(tokens):
    return np.arange(FIRST_TEXT, FIRST_TEXT + tokens, dtype=np.uint16)


def example_of(objective, ids, rng):
    """A row that holds one piece."""
    return assemble([objective(ids, rng)], objective.features, objective.pad_id)


def unpadded(example):
    """Source and targets without padding and eos, which are checked."""
    source = example["source"][example["source_segments"] == 1].tolist()
    targets = example["targets"][example["weights"] == 1].tolist()
    assert source[-1] == targets[-1] == EOS and EOS not in source[:-1] + targets[:-1]
    assert not example["source"][len(source) :].any() and not example["targets"][len(targets) :].any()
    assert example["inputs"][: len(targets)].tolist() == [START, *targets[:-1]]
    return source[:-1], targets[:-1]


def restored(source, targets):
    """The block, from source and targets: each sentinel gives way to what follows it in the targets."""
    spans, used = {}, [id for id in targets if id in IS_SENTINEL]
    assert used == [id for id in source if id in IS_SENTINEL] == list(SENTINELS[: len(used)])
    for id in targets:
        if id in IS_SENTINEL:
            spans[id] = span = []
        else:
            span.append(id)
    assert all(spans.values())
    return [id for shown in source for id in spans.get(shown, [shown])], [len(span) for span in spans.values()]


def test_lengths_are_those_of_t5():
    assert span_corruption_lengths(512, 0.15, 3.0) == (568, 114)


@given(st.integers(3, 400), st.floats(0.02, 0.95), st.floats(1, 30), st.integers(0, 2**30))
@settings(deadline=None, max_examples=200)
def test_any_corruption_is_lossless_and_has_its_lengths(length, density, mean_span, seed):
    raw, targets_length = span_corruption_lengths(length, density, mean_span)
    try:
        objective = corruption(length, density, mean_span)
    except DataError:
        assert round(round(raw * density) / mean_span) > len(SENTINELS)
        return
    assert objective.stride == raw and objective.features["targets"][0] == (targets_length,)
    source, targets = unpadded(example_of(objective, block_of(raw), np.random.default_rng(seed)))
    noise = min(max(round(raw * density), 1), max(raw - 1, 1))
    spans = min(max(round(noise / mean_span), 1), max(raw - noise, 1))
    assert len(targets) == noise + spans == targets_length - 1  # no padding at all
    assert len(source) == raw - noise + spans
    # A block that is one token longer would not fit; this one fills the source, where spans have room.
    assert length - 1 <= len(source) + 1 <= length
    if density / mean_span <= (1 - density) / 2:
        assert len(source) + 1 == length
    block, lengths = restored(source, targets)
    assert block == block_of(raw).tolist() and len(lengths) == spans


@given(st.integers(1, 6) | st.integers(1, 300), st.integers(0, 2**30))
@settings(deadline=None, max_examples=60)
def test_shorter_blocks_are_lossless_too(tokens, seed):
    for objective in (corruption(300), corruption(60, 0.9, 4.0), ul2(300)):
        tokens = min(tokens, objective.stride)
        source, targets = unpadded(example_of(objective, block_of(tokens), np.random.default_rng(seed)))
        if isinstance(objective, UL2):
            source = source[1:]
        if tokens > 1:
            assert source[0] not in IS_SENTINEL
        if not targets or targets[0] not in IS_SENTINEL:
            assert source + targets == block_of(tokens).tolist()
        else:
            assert restored(source, targets)[0] == block_of(tokens).tolist()


def test_spans_are_random_and_neither_first_nor_touching():
    objective, runs, starts, sizes = corruption(64), 1000, Counter(), Counter()
    for seed in range(runs):
        source, targets = unpadded(example_of(objective, block_of(objective.stride), np.random.default_rng(seed)))
        shown = [id in IS_SENTINEL for id in source]
        assert not shown[0] and shown[-1] and not any(a and b for a, b in itertools.pairwise(shown))
        starts[shown.index(True)] += 1
        sizes[restored(source, targets)[1][0]] += 1
    # 10 noise tokens in 3 spans, cut in one of C(9, 2) = 36 ways: 9 - n of them begin with a span of n.
    assert objective.stride == 70 and len(starts) > 30
    for size in range(1, 9):
        p = (9 - size) / 36
        assert abs(sizes[size] - runs * p) < 5 * np.sqrt(runs * p * (1 - p))
    assert sizes.total() == runs == sum(sizes[size] for size in range(1, 9))


def test_too_many_spans_are_refused_with_numbers():
    with pytest.raises(DataError, match=r"a block of 568 tokens has 28 spans .* there are 27 sentinels: use a shorter"):
        SpanCorruption(512, PAD, EOS, SENTINELS[:27], START)
    assert SpanCorruption(512, PAD, EOS, SENTINELS[:28], START).stride == 568
    with pytest.raises(DataError, match=r"has 95 spans \(noise_density 0.5, mean_span 3.0\), and there are 94 sent"):
        UL2(512, PAD, EOS, SENTINELS[:94], START, MODES)
    UL2(512, PAD, EOS, SENTINELS[:95], START, MODES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0.15, 3.0), "length 2 holds no token beside a sentinel and eos: use 3 or more"),
        ((64, 0.0, 3.0), "noise_density 0.0 must be above 0"),
        ((64, 1.0, 3.0), "noise_density 1.0 must be above 0"),
        ((64, 0.15, 0.9), "mean_span 0.9 1 or more"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        span_corruption_lengths(*arguments)


def test_each_denoiser_of_ul2_comes_equally_often_with_its_density():
    objective, runs = ul2(), 3500
    block, tokens = block_of(objective.stride), objective.stride
    # Mode, noise tokens and spans of each line of the paper's table, but for S.
    table = [(0, 0.15, 3), (0, 0.15, 8), (2, 0.5, 3), (2, 0.5, 8), (2, 0.15, 64), (2, 0.5, 64)]
    expected = {(mode, round(tokens * r), round(round(tokens * r) / mean)) for mode, r, mean in table}
    assert len(expected) == 6
    seen, suffixes = Counter(), []
    for seed in range(runs):
        source, targets = unpadded(example_of(objective, block, np.random.default_rng(seed)))
        mode, spans = MODES.index(source[0]), sum(id in IS_SENTINEL for id in source)
        if mode == 1:
            assert source[1:] + targets == block.tolist()
            suffixes.append(len(targets))
            seen["s"] += 1
        else:
            assert restored(source[1:], targets)[0] == block.tolist()
            seen[mode, len(targets) - spans, spans] += 1
    assert set(seen) == {*expected, "s"}
    assert all(abs(count - runs / 7) < 5 * np.sqrt(runs / 7 * 6 / 7) for count in seen.values())
    # Uniform around a quarter.
    spread = max(suffixes) - min(suffixes)
    assert abs(np.mean(suffixes) - tokens / 4) < 5 * spread / np.sqrt(12 * len(suffixes))
    assert abs(np.std(suffixes) - spread / np.sqrt(12)) < 0.15 * spread / np.sqrt(12)


def test_sequential_denoising_asks_for_a_quarter_of_a_short_block_too():
    lengths = set()
    for seed in range(700):
        source, targets = unpadded(example_of(ul2(), block_of(12), np.random.default_rng(seed)))
        if source[0] == MODES[1]:
            lengths.add(len(targets))
    assert lengths == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("modes", [MODES, None])
@pytest.mark.parametrize("length", [8, 9, 40, 512])
def test_ul2_fills_the_source_and_the_targets_of_its_longest_denoisers(length, modes):
    objective = ul2(length, modes)
    longest_source = longest_targets = 0
    for seed in range(500):
        example = example_of(objective, block_of(objective.stride), np.random.default_rng(seed))
        longest_source = max(longest_source, int(example["source_segments"].sum()))
        longest_targets = max(longest_targets, int(example["weights"].sum()))
        assert (example["source"][0] in MODES) == (modes is not None)
    assert longest_source == length
    assert longest_targets == objective.features["targets"][0][0]


@pytest.mark.parametrize("modes", [MODES, None])
@pytest.mark.parametrize("tokens", [1, 2, 9, 30])
def test_the_sizes_of_ul2_are_the_most_that_any_denoiser_takes(tokens, modes):
    objective = ul2(40, modes)
    pieces = [objective(block_of(tokens), np.random.default_rng(seed)) for seed in range(700)]
    assert {side: max(len(piece[side]) for piece in pieces) for side in ("source", "inputs")} == objective.sizes(tokens)
