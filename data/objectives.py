"""What a block of tokens asks of the model: inputs, targets, and the weight of each target in the loss."""

import numpy as np


def causal_lm(block_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Next-token prediction: block_ids (T+1,) -> inputs (T,) int32, targets (T,) int32, weights (T,) float32, all 1.

    targets[t] is the token that follows inputs[t].
    """
    ids = np.asarray(block_ids, np.int32)
    return {"inputs": ids[:-1], "targets": ids[1:], "weights": np.ones(len(ids) - 1, np.float32)}
