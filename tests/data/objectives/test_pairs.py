import numpy as np
import pytest

from data.errors import DataError
from data.objectives.examples import assemble
from data.objectives.pairs import Seq2Seq

PAD, EOS, START = 0, 1, 9


def test_the_decoder_reads_what_it_wrote():
    pair = Seq2Seq(4, 5, PAD, START)
    example = assemble([pair([11, 12, EOS], np.array([21, 22, EOS]))], pair.features, PAD)
    assert {name: array.tolist() for name, array in example.items()} == {
        "source": [11, 12, EOS, PAD],
        "source_segments": [1, 1, 1, 0],
        "inputs": [START, 21, 22, PAD, PAD],
        "targets": [21, 22, EOS, PAD, PAD],
        "weights": [1, 1, 1, 0, 0],
    }


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_shapes_do_not_depend_on_the_texts(tokens):
    objective = Seq2Seq(4, 4, PAD, START)
    ids = np.arange(20, 20 + tokens)
    example = assemble([objective(ids, ids)], objective.features, PAD)
    assert {name: (array.shape, array.dtype.type) for name, array in example.items()} == objective.features
    assert example["weights"].sum() == example["source_segments"].sum() == tokens
    assert example["inputs"].tolist() == ([START, *ids[:-1]] if tokens else []) + [PAD] * (4 - tokens)


def test_what_is_too_long_is_an_error_unless_cutting_is_asked_for():
    strict, cutting = Seq2Seq(3, 2, PAD, START), Seq2Seq(3, 2, PAD, START, truncate=True)
    with pytest.raises(DataError, match="a source of 4 tokens exceeds 3: raise source_length, or set truncate"):
        strict([11, 12, 13, EOS], [EOS])
    with pytest.raises(DataError, match="a target of 3 tokens exceeds 2: raise target_length"):
        strict([EOS], [11, 12, EOS])
    example = cutting([11, 12, 13, EOS], [11, 12, EOS])
    assert example["source"].tolist() == [11, 12, EOS] and example["source"].dtype == np.int32
    assert (example["inputs"].tolist(), example["targets"].tolist()) == ([START, 11], [11, EOS])


def test_lengths_below_one_are_refused():
    with pytest.raises(DataError, match="source_length 0 must be 1 or more"):
        Seq2Seq(0, 1, PAD, START)
    with pytest.raises(DataError, match="target_length -1 must be 1 or more"):
        Seq2Seq(1, -1, PAD, START)
