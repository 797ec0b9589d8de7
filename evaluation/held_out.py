"""The score of a language model on text that it never saw: loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from model.losses import LossFn


def make_evaluator(
    loss_fn: LossFn,
    batches: Sequence[Mapping[str, np.ndarray]],
    place: Callable[[Mapping[str, np.ndarray]], Any],
    token_bytes_V: np.ndarray,
) -> Callable[[Any], dict[str, float]]:
    """`evaluate(params)` over a fixed set of batches.

    Returns `eval/loss` (nats per predicted token), `eval/perplexity` (its exponential) and `eval/bits_per_byte`: all
    nats over ln 2, per UTF-8 byte of the predicted text. The last does not depend on the tokeniser, so it compares
    models with different ones. An end of document costs nats and has no bytes.
    """
    predicted_bytes = sum(float(np.sum(token_bytes_V[batch["targets"]] * (batch["weights"] > 0))) for batch in batches)
    if not predicted_bytes:
        raise ValueError("the held-out text has no token to predict: raise data.held_out, or shorten model.max_length")
    sums_of = jax.jit(lambda params, batch: loss_fn(params, batch, None))

    def evaluate(params: Any) -> dict[str, float]:
        loss = weight = 0.0
        for batch in batches:
            sums = jax.device_get(sums_of(params, place(batch)))
            loss, weight = loss + float(sums.loss), weight + float(sums.weight)
        mean = loss / weight
        return {
            "eval/loss": mean,
            "eval/perplexity": math.exp(min(mean, 700.0)),  # an f64 ends near exp(709)
            "eval/bits_per_byte": loss / math.log(2) / predicted_bytes,
        }

    return evaluate
