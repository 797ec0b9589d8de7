import numpy as np
import pytest
from grain.experimental import index_shuffle

from data.shuffle import shuffled


@pytest.mark.parametrize(
    "max_index", [0, 10, 4095, 4096, 5000, 2**16 - 1, 2**16 + 1, 2**17, 300_000, 2**18 - 1, 2**31, 2**32 - 2]
)
@pytest.mark.parametrize("seed", [0, 1, 77, 2**32 - 1])
def test_places_are_those_of_grain(max_index, seed):
    rng = np.random.default_rng(max_index)
    places = np.unique([0, max_index, max_index // 2, *rng.integers(0, max_index + 1, 60)])
    alone = [index_shuffle(int(place), max_index=max_index, seed=seed, rounds=4) for place in places]
    assert shuffled(places, max_index, seed).tolist() == alone


@pytest.mark.parametrize("size", [1, 255, 4096, 4097, 2**16, 2**16 + 1])  # 2^16 + 1: 17 bits for the last
def test_every_place_is_taken_once(size):
    assert sorted(shuffled(np.arange(size), size - 1, 5).tolist()) == list(range(size))
