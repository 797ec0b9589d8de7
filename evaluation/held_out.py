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
    token_bytes_V: np.ndarray | None,
) -> Callable[[Any], dict[str, float]]:
    """`evaluate(params)` over a fixed set of batches.

    Returns `eval/loss` (nats per predicted token), `eval/perplexity` (its exponential) and, given the bytes of each
    token, `eval/bits_per_byte`: all nats over ln 2, per UTF-8 byte of the predicted text. The last does not depend on
    the tokeniser, so it compares models with different ones. An end of document costs nats and has no bytes. Where
    tokens are not predicted in order (None), nats are not the length of a text, and there is no such number.
    """

    def size(batch: Mapping[str, np.ndarray]) -> float:
        scored = batch["weights"] > 0
        return float(np.sum(scored if token_bytes_V is None else token_bytes_V[batch["targets"]] * scored))

    predicted = sum(map(size, batches))
    if not predicted:
        raise ValueError("the held-out text has no token to predict: raise data.held_out, or shorten model.max_length")
    sums_of = jax.jit(lambda params, batch: loss_fn(params, batch, None))

    def evaluate(params: Any) -> dict[str, float]:
        loss = weight = 0.0
        for batch in batches:
            sums = jax.device_get(sums_of(params, place(batch)))
            loss, weight = loss + float(sums.loss), weight + float(sums.weight)
        mean = loss / weight
        scores = {"eval/loss": mean, "eval/perplexity": math.exp(min(mean, 700.0))}  # an f64 ends near exp(709)
        if token_bytes_V is not None:
            scores["eval/bits_per_byte"] = loss / math.log(2) / predicted
        return scores

    return evaluate
