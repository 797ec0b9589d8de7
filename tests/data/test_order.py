import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.objectives.causal import CausalLM
from data.order import Order
from data.rows import store_rows


class Count:
    """Rows that are only a number."""

    features = {}  # noqa: RUF012

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows


def store_of(sizes, scores=None):
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = np.zeros(starts[-1], np.uint16)
    scores = None if scores is None else np.array(scores, np.float32)
    return SimpleNamespace(
        folder="somewhere", document_starts=starts, num_tokens=len(tokens), tokens=tokens, scores=scores
    )


def epoch(order, rows, number=0):
    return order(np.arange(number * rows, (number + 1) * rows)).tolist()


@given(
    rows=st.integers(1, 400), seed=st.integers(0, 2**40), number=st.integers(0, 2**40), name=st.sampled_from(["", "a"])
)
@settings(deadline=None, max_examples=25)
def test_every_epoch_is_a_permutation(rows, seed, number, name):
    assert sorted(epoch(Order(Count(rows), seed, name), rows, number)) == list(range(rows))


def test_orders_differ_by_epoch_seed_and_name():
    orders = [(seed, name) for seed in range(3) for name in ("", "a", "b")]
    seen = {tuple(epoch(Order(Count(50), *order), 50, number)) for order in orders for number in range(4)}
    assert len(seen) == 9 * 4


def test_the_order_is_the_one_recorded():
    """A change here changes the data of every run that is resumed."""
    assert Order(Count(11), 0)(np.array([0, 1, 2, 10, 11, 2**40])).tolist() == [3, 7, 1, 2, 8, 3]


def test_any_place_is_looked_up_alone():
    order = Order(Count(2**32 - 1), 3)
    places = np.array([0, 10**9, 2**32 - 2, 2**32 - 1, 2**60])
    assert order(places).tolist() == [int(order(place[None])[0]) for place in places]
    assert (order(places) < 2**32 - 1).all() and len(set(order(places).tolist())) == 5


def test_too_many_rows_are_refused():
    with pytest.raises(DataError, match="4294967296 rows are more than the 4294967295 that can be shuffled"):
        Order(Count(2**32), 0)


def test_a_curriculum_goes_from_short_to_long_documents_in_the_first_epoch_alone():
    rng = np.random.default_rng(0)
    rows = store_rows(store_of(rng.integers(2, 60, 3000)), CausalLM(64), "isolate")
    lengths, count = rows.document_means(np.diff(rows.store.document_starts)), len(rows)
    plain, order = Order(rows, 5), Order(rows, 5, curriculum="length")
    first = epoch(order, count)
    assert count > 500 and sorted(first) == list(range(count))
    buckets = [lengths[first[at : at + 64]] for at in range(0, count, 64)]
    assert all(low.max() <= high.min() for low, high in itertools.pairwise(buckets))
    assert sum((np.diff(bucket) >= 0).all() for bucket in buckets) < len(buckets) / 2  # shuffled inside
    assert epoch(order, count, 1) == epoch(plain, count, 1) and epoch(plain, count) != first
    assert epoch(Order(rows, 6, curriculum="length"), count) != first
    both = order(np.arange(count - 2, count + 2))  # over the end of the epoch
    assert both.tolist() == first[-2:] + epoch(plain, count, 1)[:2]


def test_ties_of_a_curriculum_are_in_random_order():
    rows = store_rows(store_of([9] * 1000, [0.5] * 1000), CausalLM(8), "isolate")
    order = epoch(Order(rows, 0, curriculum="score"), 1000)
    assert sorted(order) == list(range(1000))
    assert np.mean(np.array(order[:64])) > 200  # not the first rows of the store


def test_a_curriculum_of_scores():
    scores = [0.9, 0.1, 0.5, 0.3]
    rows = store_rows(store_of([65 * 8 + 1] * 4, scores), CausalLM(8), "first_fit")  # 65 rows each
    first = np.array(epoch(Order(rows, 0, curriculum="score"), len(rows))) // 65
    assert set(first[:64]) == {1} and set(first[64 * 4 :]) == {0}
    assert (np.diff([np.mean(first == d) > 0 for d in range(4)]) == 0).all()


def test_what_a_curriculum_cannot_sort_is_refused():
    store = store_of([9, 9], [0.5, np.nan])
    for rows, curriculum, message in (
        (store_rows(store, CausalLM(4)), "score", "1 documents of somewhere have no score"),
        (store_rows(store_of([9, 9]), CausalLM(4)), "score", "somewhere has no scores: set data.score_field"),
        (Count(4), "length", "sorts the rows of token stores, and these are Count"),
        (store_rows(store, CausalLM(4)), "size", "the curriculum 'size' is not one of length, score"),
    ):
        with pytest.raises(DataError, match=message):
            Order(rows, 0, curriculum=curriculum)
