import numpy as np
import pytest

from data.errors import DataError
from data.objectives.causal import CausalLM
from data.objectives.examples import assemble


def example_of(objective, ids, rng):
    """A row that holds one piece."""
    return assemble([objective(ids, rng)], objective.features, objective.pad_id)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_causal_lm_predicts_the_next_token():
    example = example_of(CausalLM(3), np.array([5, 65_535, 7, 8], np.uint16), rng())
    assert example["inputs"].tolist() == [5, 65_535, 7]
    assert example["targets"].tolist() == [65_535, 7, 8]
    assert example["weights"].tolist() == [1, 1, 1]
    assert [example[name].dtype for name in ("inputs", "targets", "weights")] == [np.int32, np.int32, np.float32]


def test_what_is_missing_of_a_block_weighs_nothing():
    example = example_of(CausalLM(4), np.array([5, 6, 7], np.uint16), rng())
    assert example["weights"].tolist() == [1, 1, 0, 0]
    assert (example["inputs"][:2].tolist(), example["targets"][:2].tolist()) == ([5, 6], [6, 7])


@pytest.mark.parametrize("tokens", [2, 3, 6, 9])
def test_a_prefix_is_seen_and_the_rest_is_predicted(tokens):
    objective, block = CausalLM(8, random_prefix=True), np.arange(10, 10 + tokens)
    cuts = set()
    for seed in range(200):
        example = example_of(objective, block, rng(seed))
        cut = int(example["prefix"].sum())
        predicted = example["targets"][example["weights"] == 1]
        # Prefix and predicted tokens are the block, in order, without overlap: no target is seen by its own query.
        assert [*example["inputs"][example["prefix"] == 1], *predicted] == block.tolist()
        assert example["prefix"].tolist() == [1] * cut + [0] * (8 - cut)
        assert np.flatnonzero(example["weights"]).tolist() == list(range(cut - 1, tokens - 1))
        cuts.add(cut)
    assert cuts == set(range(1, tokens))


def test_prefixes_are_uniform():
    objective = CausalLM(4, random_prefix=True)
    cuts = [int(example_of(objective, np.arange(5), rng(seed))["prefix"].sum()) for seed in range(4000)]
    counts = np.bincount(cuts, minlength=5)[1:]
    assert (abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()


def test_no_length_is_refused():
    with pytest.raises(DataError, match="length 0 must be 1 or more"):
        CausalLM(0)
