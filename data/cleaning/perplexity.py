"""Documents by how well a language model predicts them."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from data.cleaning.rule import NUMBER, Dropped, require

Score = Callable[[str], float]  # a text's mean bits per byte


@dataclass(frozen=True)
class Perplexity:
    """Drops what a model finds too surprising (noise) or not surprising enough (templates), in bits per byte.

    `scorer` makes the function that scores. It is called once in each process, when the first document comes: a model
    need not travel. It has to be picklable, hashable and equal to its own copies: a frozen dataclass, or a function of
    a module; a lambda or a functools.partial is not.
    """

    name: ClassVar[str] = "perplexity"
    source: ClassVar[str] = "Wenzek et al. 2020, CCNet, section 3.3 (perplexity of a language model)"

    maximum: float = math.inf  # bits per byte
    minimum: float = 0.0
    scorer: Callable[[], Score] | None = None

    def __post_init__(self):
        require(self, NUMBER, "maximum", "minimum")
        require(self, (lambda top: top >= self.minimum, f"minimum ({self.minimum:g}) or more"), "maximum")
        require(
            self, (callable, "a function that makes the model's scoring function: name a run to score with"), "scorer"
        )

    def __call__(self, text: str) -> str | Dropped:
        if not text:
            return Dropped("empty", "0 bytes have no bits per byte")
        bits = _scoring(self.scorer)(text)
        if bits > self.maximum:
            return Dropped("too_surprising", f"{bits:.3f} bits per byte, more than {self.maximum:g}")
        if bits < self.minimum:
            return Dropped("too_predictable", f"{bits:.3f} bits per byte, fewer than {self.minimum:g}")
        # Neither holds for NaN.
        return text if math.isfinite(bits) else Dropped("not_a_number", f"the model gives {bits} bits per byte")


@functools.cache
def _scoring(scorer: Callable[[], Score]) -> Score:
    return scorer()
