import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.objectives.causal import CausalLM
from data.objectives.many import Many, arrange, choose


@given(
    groups=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_the_lowest_of_each_group_are_chosen(groups, seed):
    sizes = np.array([size for size, _ in groups])
    counts = np.minimum(sizes, [count for _, count in groups])
    numbers = np.random.default_rng(seed).integers(0, 2**64, sizes.sum(), np.uint64)
    chosen, start = choose(numbers, sizes, counts), 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        of_group = np.arange(start, start + size)
        lowest = sorted(of_group[np.argsort(numbers[of_group], kind="stable")[:count]].tolist())
        assert np.flatnonzero(chosen[start : start + size]).tolist() == [at - start for at in lowest]
        start += size


def test_of_equal_numbers_the_first_are_chosen():
    numbers = np.array([7, 3, 3, 7], np.uint64) << 40 | np.array([0, 9, 0, 0], np.uint64)  # lower bits do not matter
    assert choose(numbers, np.array([4]), np.array([1])).tolist() == [False, True, False, False]
    assert choose(numbers, np.array([4]), np.array([3])).tolist() == [True, True, True, False]


def test_every_set_is_chosen_equally_often():
    groups, items = 20_000, 5
    numbers = np.random.default_rng(0).integers(0, 2**64, groups * items, np.uint64)
    chosen = choose(numbers, np.full(groups, items), np.full(groups, 2)).reshape(groups, items)
    assert (chosen.sum(axis=1) == 2).all()
    counts = np.bincount(chosen @ (1 << np.arange(items)))
    p = 1 / 10  # two of five
    assert (abs(counts[counts > 0] - groups * p) < 5 * np.sqrt(groups * p * (1 - p))).all() and (counts > 0).sum() == 10


def test_too_much_at_once_is_refused():
    with pytest.raises(
        ValueError, match="1048576 pieces, or tokens of one, are more than the 1048575 that can be drawn"
    ):
        choose(np.zeros(2**20, np.uint64), np.ones(2**20, np.int64), np.ones(2**20, np.int64))


def test_pieces_that_are_longer_than_their_row_are_refused():
    objective = CausalLM(4)
    many = objective.many(np.arange(8), np.array([4, 4]), np.empty(0, np.uint64))
    with pytest.raises(ValueError, match="pieces of 6 inputs slots are longer than their row of 4"):
        arrange(many, np.array([2]), objective.features, 0)
    assert isinstance(many, Many) and arrange(many, np.array([1, 1]), objective.features, 9)["inputs"].tolist() == [
        [0, 1, 2, 9],
        [4, 5, 6, 9],
    ]
