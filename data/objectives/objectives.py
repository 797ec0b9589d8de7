"""Which objective a model is trained on: its settings, the special ids it needs, and the object that makes examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_type_hints

import numpy as np

from data.errors import DataError
from data.objectives.causal import CausalLM
from data.objectives.denoising import UL2, SpanCorruption
from data.objectives.examples import Objective
from data.objectives.masking import MaskedLM, word_starts
from data.tokenizers.tokenizer import Tokenizer

OBJECTIVES = ("causal_lm", "masked_lm", "span_corruption", "prefix_lm", "ul2")
READ_BY = {  # settings that one objective alone reads
    "mask_rate": "masked_lm",
    "whole_words": "masked_lm",
    "noise_density": "span_corruption",
    "mean_span": "span_corruption",
}
_SENTINELS = tuple(f"extra_{number}" for number in range(100))
_MODES = ("mode_r", "mode_s", "mode_x")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of what a block of tokens asks of the model. Raises ValueError with field, value and what is allowed."""

    name: str = "causal_lm"  # causal_lm, masked_lm, span_corruption, prefix_lm, ul2
    mask_rate: float = 0.15  # masked_lm: fraction of the tokens that are predicted
    whole_words: bool = False  # masked_lm: choose words, not tokens
    noise_density: float = 0.15  # span_corruption: fraction of the tokens that are hidden
    mean_span: float = 3.0  # span_corruption: tokens of a hidden span, on average
    label_smoothing: float = 0.0  # fraction of each target that is spread over the vocabulary
    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator in the loss

    def __post_init__(self):
        for name, expected in get_type_hints(ObjectiveConfig).items():
            value = getattr(self, name)
            # An int is a fine float; a bool is an int to Python, never to a reader of a config.
            fits = isinstance(value, (int, float) if expected is float else expected)
            self._require(name, fits and isinstance(value, bool) == (expected is bool), f"of type {expected.__name__}")
        self._require("name", self.name in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}")
        for name in ("mask_rate", "noise_density"):
            self._require(name, 0 < getattr(self, name) < 1, "a fraction, above 0 and below 1")
        self._require("mean_span", 1 <= self.mean_span < float("inf"), "1 or more")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "a fraction, below 1")
        self._require("z_loss", 0 <= self.z_loss < float("inf"), "0 or more")
        for name, reader in READ_BY.items():
            default = type(self).__dataclass_fields__[name].default
            if self.name != reader and getattr(self, name) != default:
                raise ValueError(
                    f"objective.{name} = {getattr(self, name)!r} would change nothing: only {reader} reads it, the "
                    f"objective is {self.name}"
                )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"objective.{name} = {getattr(self, name)!r} is not allowed: it must be {allowed}")


def special_names(config: ObjectiveConfig) -> tuple[str, ...]:
    """The special ids that the objective asks of a tokenizer's `special_ids`."""
    spans = ("pad", "eos", *_SENTINELS)
    needed = {"masked_lm": ("pad", "mask", "cls", "sep"), "span_corruption": spans, "ul2": (*spans, *_MODES)}
    return needed.get(config.name, ())


def make_objective(config: ObjectiveConfig, *, max_length: int, tokenizer: Tokenizer) -> Objective:
    """The objective of `config` for a model that reads `max_length` tokens, in the encoder if it has two stacks.

    As in T5, a decoder beside an encoder starts with the padding id. Raises DataError for a tokenizer that lacks
    special ids that are needed, and for a max_length that does not work out.
    """
    ids = tokenizer.special_ids
    if missing := [name for name in special_names(config) if name not in ids]:
        raise DataError(
            f"objective {config.name} needs special ids that the {tokenizer.kind} tokenizer lacks: "
            f"{', '.join(missing[:6])}{', …' * (len(missing) > 6)}"
        )
    ordinary_V = np.asarray(tokenizer.token_bytes_V) > 0
    ordinary_V[list(ids.values())] = False
    return _made(
        config, max_length, ids, ordinary_V, word_starts(tokenizer, ordinary_V) if config.whole_words else None
    )


def check_objective(config: ObjectiveConfig, max_length: int) -> None:
    """Raises DataError where max_length does not work out with any tokenizer: no room for text, too many spans."""
    ids = {name: number for number, name in enumerate(special_names(config))}
    _made(config, max_length, ids, np.arange(len(ids) + 1) == len(ids), None)


def _made(
    config: ObjectiveConfig,
    max_length: int,
    ids: Mapping[str, int],
    ordinary_V: np.ndarray,
    starts_word_V: np.ndarray | None,
) -> Objective:
    """The objective, from special ids by name and from which ids are text."""
    if config.name in ("causal_lm", "prefix_lm"):
        return CausalLM(max_length, random_prefix=config.name == "prefix_lm")
    if config.name == "masked_lm":
        return MaskedLM(
            max_length,
            pad_id=ids["pad"],
            mask_id=ids["mask"],
            ordinary_V=ordinary_V,
            cls_id=ids["cls"],
            sep_id=ids["sep"],
            rate=config.mask_rate,
            starts_word_V=starts_word_V,
        )
    sentinels = tuple(ids[name] for name in _SENTINELS)
    common = {"pad_id": ids["pad"], "eos_id": ids["eos"], "sentinel_ids": sentinels, "decoder_start_id": ids["pad"]}
    if config.name == "ul2":
        r, s, x = (ids[name] for name in _MODES)
        return UL2(max_length, **common, mode_ids=(r, s, x))
    return SpanCorruption(max_length, **common, noise_density=config.noise_density, mean_span=config.mean_span)
