import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.defaults import source
from data.errors import DataError
from data.loader import BatchLoader
from data.mixture import PERIOD, Mixture
from data.objectives.causal import CausalLM
from data.rows import store_rows


class Numbered:
    """Rows whose only input is part * 1e6 + row, and whose targets are drawn."""

    features = {name: ((1,), dtype) for name, dtype in (("inputs", np.int32), ("targets", np.int32))} | {
        "weights": ((1,), np.float32)
    }

    def __init__(self, part, rows):
        self.part, self.rows = part, rows

    def __len__(self):
        return self.rows

    def example(self, row, rng):
        inputs = np.array([self.part * 1_000_000 + row], np.int32)
        return {"inputs": inputs, "targets": rng.integers(0, 2**30, 1, np.int32), "weights": np.ones(1, np.float32)}


@pytest.fixture
def mixture(config):
    """A function that makes a mixture of parts a, b, … from their rows and their weights."""

    def make(rows, weights=None, stages=(), temperature=1.0, max_epochs=1e9, steps=1000, batch=8, seed=0):
        names = [chr(ord("a") + place) for place in range(len(rows))]
        weights = weights or [()] * len(rows)
        limits = max_epochs if isinstance(max_epochs, tuple) else (max_epochs,) * len(rows)
        sources = {
            name: source("python-stdlib", weight=weight, max_epochs=float(limit))
            for name, weight, limit in zip(names, weights, limits, strict=True)
        }
        changes = {"mixture_stages": stages, "mixture_temperature": temperature}
        parts = {name: Numbered(place, count) for place, (name, count) in enumerate(zip(names, rows, strict=True))}
        settings = config(path="", mixture=sources, **changes)
        return Mixture(parts, settings, global_batch=batch, seed=seed, steps=steps)

    return make


def drawn(made, until):
    return made.locate(np.arange(until))


def test_a_period_has_the_shares_to_the_nearest_example(mixture):
    made = mixture([10, 10, 10], [(0.5,), (1.2,), (0.3,)])
    parts, numbers = drawn(made, PERIOD)
    assert np.bincount(parts).tolist() == [4096, 9830, 2458]  # of 9830.4 and 2457.6
    for part in range(3):
        assert numbers[parts == part].tolist() == list(range((parts == part).sum()))
    thirds, _ = drawn(mixture([1, 1, 1]), PERIOD)
    assert sorted(np.bincount(thirds)) == [5461, 5461, 5462]
    assert np.bincount(parts[:1000]).tolist() == pytest.approx([250, 600, 150], abs=60)  # mixed, not one by one


def test_without_weights_a_part_is_drawn_as_often_as_it_has_rows(mixture):
    parts, _ = drawn(mixture([3000, 1000]), PERIOD)
    assert np.bincount(parts).tolist() == [12288, 4096]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_evens_out(mixture, temperature):
    for made in (mixture([9000, 1000], temperature=temperature), mixture([5, 5], [(0.9,), (0.1,)], (), temperature)):
        parts, _ = drawn(made, PERIOD)
        share = 0.9 ** (1 / temperature) / (0.9 ** (1 / temperature) + 0.1 ** (1 / temperature))
        assert abs(np.bincount(parts)[0] - share * PERIOD) <= 0.5


@given(
    weights=st.lists(st.tuples(*[st.floats(0.05, 1)] * 3), min_size=1, max_size=4),
    stages=st.lists(st.integers(1, 9000), min_size=2, max_size=2, unique=True),
    step=st.integers(0, 30_000),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_equal_counting(mixture, weights, stages, step):
    made = mixture([10] * len(weights), weights, tuple(sorted(stages)), steps=30_000, batch=3)
    parts, numbers = drawn(made, step * 3)
    counted = np.bincount(parts, minlength=len(weights)).tolist()
    assert list(made.examples(step).values()) == counted
    for part, count in enumerate(counted):
        assert numbers[parts == part].tolist() == list(range(count))


def test_stages_begin_at_their_steps(mixture):
    made = mixture([10, 10], [(1.0, 0.0, 0.5), (0.0, 1.0, 0.5)], stages=(100, 300), batch=4)
    parts, _ = drawn(made, 4000)
    assert set(parts[:400]) == {0} and set(parts[400:1200]) == {1} and set(parts[1200:]) == {0, 1}
    assert made.examples(300) == {"a": 400, "b": 800} and made.epochs(100) == {"a": 40.0, "b": 0.0}
    later = mixture([10, 10], [(1.0, 0.0, 0.5), (0.0, 1.0, 0.5)], stages=(100, 300), batch=4, steps=10**6)
    assert (drawn(later, 4000)[0] == parts).all()  # whatever the number of steps
    far = 10**12 + np.arange(3)
    _, numbers = made.locate(far)
    assert abs(int(numbers[0]) - 10**12 // 2) < PERIOD


def test_the_mixture_is_the_one_recorded(mixture):
    """A change here changes the data of every run that is resumed."""
    made = mixture([7, 5], [(0.7,), (0.3,)], seed=3)
    batch = BatchLoader(made, global_batch=8, seed=3).batch(2)
    assert batch["inputs"][:, 0].tolist() == GOLDEN


GOLDEN = [0, 1, 3, 2, 1_000_003, 1_000_004, 1_000_000, 4]


def test_each_part_is_read_in_permutations_of_its_own(mixture):
    made = mixture([40, 40], [(0.7,), (0.3,)])
    loader = BatchLoader(made, global_batch=8, seed=0)
    batches = [loader.batch(step) for step in range(60)]
    ids, drawn = (np.concatenate([batch[name][:, 0] for batch in batches]) for name in ("inputs", "targets"))
    assert len(set(drawn.tolist())) == len(drawn)  # also where two parts have come as far
    orders = [ids[ids // 1_000_000 == part] % 1_000_000 for part in (0, 1)]
    for order in orders:
        assert len(order) > 80 and all(sorted(order[at : at + 40]) == list(range(40)) for at in (0, 40))
    assert orders[0][:40].tolist() != orders[1][:40].tolist()


@pytest.mark.parametrize("process_count", [2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(mixture, process_count):
    made = mixture([40, 30, 20], [(0.5, 0.1), (0.3, 0.1), (0.2, 0.8)], stages=(5,))
    whole = BatchLoader(made, global_batch=8, seed=0)
    parts = [
        BatchLoader(
            made, global_batch=8, seed=0, local_rows=range(8)[index * 8 // process_count :][: 8 // process_count]
        )
        for index in range(process_count)
    ]
    for step in (0, 4, 5, 999):
        rows = [part.batch(step) for part in parts]
        for name, values in whole.batch(step).items():
            assert np.concatenate([row[name] for row in rows]).tolist() == values.tolist()


def test_parts_of_stores_are_read_at_once(config, counting_store):
    settings = config(path="", mixture={name: source("python-stdlib", max_epochs=9.0) for name in ("big", "small")})
    rows = {name: store_rows(counting_store(size), CausalLM(4)) for name, size in (("small", 101), ("big", 301))}
    made = Mixture(rows, settings, global_batch=8, seed=0, steps=25)
    assert list(made.parts) == ["big", "small"] and made.examples(25) == pytest.approx(
        {"big": 150, "small": 50}, abs=15
    )
    batch = BatchLoader(made, global_batch=8, seed=0).batch(3)
    assert (batch["targets"] == batch["inputs"] + 1).all() and (batch["weights"] == 1).all()


def test_the_table_says_what_was_asked_and_what_is_drawn(mixture):
    lines = mixture([3000, 1000], [(0.75, 0.0), (0.25, 1.0)], stages=(2048,), steps=4000, batch=8).table().splitlines()
    assert lines[0].split() == ["part", "rows", "asked", "drawn", "examples", "epochs"]
    a, b = (line.split() for line in lines[1:3])
    assert a[:6] == ["a", "3,000", "75.00%", "0.00%", "75.00%", "0.00%"]
    assert b[:6] == ["b", "1,000", "25.00%", "100.00%", "25.00%", "100.00%"]
    assert int(a[6].replace(",", "")) + int(b[6].replace(",", "")) == 32_000
    assert float(b[7]) == pytest.approx(int(b[6].replace(",", "")) / 1000, abs=0.006)
    assert lines[3] == "stages from steps 0, 2048 of 4000"


@pytest.mark.parametrize("stages", [(), (4,)])
def test_the_table_shows_what_this_run_draws(mixture, stages):
    """A run shorter than a period has the shares of its own examples, not of the period's."""
    weights = [(0.8, 0.5)[: 1 + len(stages)], (0.2, 0.5)[: 1 + len(stages)]]
    made = mixture([100, 100], weights, stages, steps=10, batch=16)
    parts, _ = drawn(made, 160)
    split = np.split(parts, [stage * 16 for stage in stages])
    expected = [f"{100 * np.mean(of_stage == 0):.2f}%" for of_stage in split]
    a = made.table().splitlines()[1].split()
    assert a[3 + len(stages) : 4 + 2 * len(stages)] == expected and a[2] == "80.00%"
    assert int(a[4 + 2 * len(stages)]) == (parts == 0).sum()
    assert stages or expected != ["80.00%"]  # 128 of 160 would be a coincidence


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.9, 0.5])
def test_the_ways_out_of_too_many_epochs_work(mixture, weight, temperature):
    def made(weight, limit):
        weights = [(weight,), (0.4,), (0.1,)]
        return mixture([2000, 9000, 9000], weights, (), temperature, (limit, 1.0, 1.0), steps=1000)

    with pytest.raises(DataError, match=r"data.mixture.a: 1000 steps of 8 read \d+ examples of its 2000 rows") as error:
        made(weight, 1.0)
    found = re.search(
        r"([\d.]+) epochs, more than max_epochs 1. Use max_epochs=([\d.]+) or weight=\(([\d.]+),\)", str(error.value)
    )
    assert found
    epochs, limit, lighter = map(float, found.groups())
    assert epochs == pytest.approx(made(weight, limit).epochs(1000)["a"], abs=0.006) and limit - epochs < 0.02
    assert 0.9 < made(lighter, 1.0).epochs(1000)["a"] <= 1.0 and lighter < weight


def test_where_weights_cannot_help_only_max_epochs_is_named(mixture):
    for changes in ({"weights": None}, {"weights": [(0.5, 0.4), (0.5, 0.6)], "stages": (10,)}):
        with pytest.raises(
            DataError, match=r"more than max_epochs 1. Use max_epochs=[\d.]+, fewer steps, or more text"
        ):
            mixture([30, 30], max_epochs=1.0, **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rows": [5, 5], "weights": [(1.0, 0.5), (1.0, 0.5)], "stages": (800,), "steps": 800},
            r"mixture_stages \(800,\): no step of a run of 800 is in the last stage: use fewer stages, or more steps",
        ),
        (
            {"rows": [5, 5], "weights": [(0.999,), (0.001,)], "steps": 4},
            "data.mixture.b: its share is 0.1 % at most, and none of the 32 examples of 4 steps is drawn from it: give",
        ),
        ({"rows": [5000, 5], "steps": 4}, "data.mixture.b: its share is 0.1 % at most, and none of the 32 examples"),
        (
            {"rows": [5, 5], "weights": [(1.0,), (1e-5,)]},
            r"data.mixture.b: its share of 1.00e-05 from step 0 on is less than 1 of 16384 examples \(6.10e-05\)",
        ),
        ({"rows": [10**6, 5]}, "data.mixture.b: its share of 5.00e-06"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_numbers(mixture, options, message):
    with pytest.raises(DataError, match=message):
        mixture(**options)


def test_a_weight_of_zero_leaves_a_part_out(mixture):
    parts, _ = drawn(mixture([5, 5], [(1.0,), (0.0,)]), 1000)
    assert set(parts) == {0}


def test_parts_that_do_not_fit_are_refused(config, counting_store, mixture):
    settings = config(path="", mixture={name: source("python-stdlib") for name in ("a", "b")})
    rows = store_rows(counting_store(101), CausalLM(4))
    with pytest.raises(DataError, match="the mixture is of a, b: the rows are of a"):
        Mixture({"a": rows}, settings, global_batch=8, seed=0, steps=1)
    other = store_rows(counting_store(101), CausalLM(5))
    with pytest.raises(DataError, match="the parts of a mixture share their batches: a has"):
        Mixture({"a": rows, "b": other}, settings, global_batch=8, seed=0, steps=1)
    with pytest.raises(DataError, match="made for global_batch 8 and seed 0: the loader has 4 and 0"):
        BatchLoader(mixture([5, 5]), global_batch=4, seed=0)
