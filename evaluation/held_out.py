"""The score of a language model on text that it never saw: loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from model.losses import LossFn


def make_evaluator(
    loss_fn: LossFn,
    batches: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    place: Callable[[Mapping[str, np.ndarray]], Any],
    token_bytes_V: np.ndarray | None,
) -> Callable[..., dict[str, float]]:
    """`evaluate(params, tick)` over a fixed set of batches, of one text or of several by name; `tick()` at each batch.

    Returns `eval/loss` (nats per predicted token), `eval/perplexity` (its exponential) and, given the bytes of each
    token, `eval/bits_per_byte`: all nats over ln 2, per UTF-8 byte of the predicted text. The last does not depend on
    the tokeniser, so it compares models with different ones. An end of document costs nats and has no bytes. Where
    tokens are not predicted in order (None), nats are not the length of a text, and there is no such number. With
    several texts these are over all of them, and each has an `eval/NAME/loss` beside it.
    """

    def size(batch: Mapping[str, np.ndarray]) -> float:
        scored = batch["weights"] > 0
        return float(np.sum(scored if token_bytes_V is None else token_bytes_V[batch["targets"]] * scored))

    predicted = sum(size(batch) for text in batches.values() for batch in text)
    if not predicted:
        raise ValueError("the held-out text has no token to predict: raise data.held_out, or shorten model.max_length")
    sums_of = jax.jit(lambda params, batch: loss_fn(params, batch, None))

    def evaluate(params: Any, tick: Callable[[], None] = lambda: None) -> dict[str, float]:
        def placed(batch: Mapping[str, np.ndarray]) -> Any:
            tick()
            return place(batch)

        sums = {name: _summed(sums_of, params, map(placed, text)) for name, text in batches.items()}
        loss, weight = (sum(values) for values in zip(*sums.values(), strict=True))
        mean = loss / weight
        scores = {"eval/loss": mean, "eval/perplexity": math.exp(min(mean, 700.0))}  # an f64 ends near exp(709)
        if token_bytes_V is not None:
            scores["eval/bits_per_byte"] = loss / math.log(2) / predicted
        if len(sums) > 1:
            scores |= {f"eval/{name}/loss": loss / weight for name, (loss, weight) in sums.items() if weight}
        return scores

    return evaluate


def _summed(sums_of: Callable[..., Any], params: Any, batches: Iterable[Any]) -> tuple[float, float]:
    """Nats and predicted tokens of some batches."""
    sums = [jax.device_get(sums_of(params, batch)) for batch in batches]
    return sum(float(s.loss) for s in sums), sum(float(s.weight) for s in sums)
