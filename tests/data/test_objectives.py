import numpy as np

from data.objectives import causal_lm


def test_causal_lm_predicts_the_next_token():
    example = causal_lm(np.array([5, 65_535, 7, 8], np.uint16))
    assert example["inputs"].tolist() == [5, 65_535, 7]
    assert example["targets"].tolist() == [65_535, 7, 8]
    assert example["weights"].tolist() == [1, 1, 1]
    assert [example[name].dtype for name in ("inputs", "targets", "weights")] == [np.int32, np.int32, np.float32]
