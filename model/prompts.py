"""The prompts of a batch: lists of token ids, checked, and padded to arrays."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from model.config import ModelConfig

BUCKET = 32  # prompts and caches are padded to multiples of this: few shapes to compile

Tokens = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The texts so far of all rows and, in an encoder-decoder, their sources (else none)."""

    texts: list[list[int]]
    sources: list[list[int]]

    @classmethod
    def checked(cls, prompts: Tokens, sources: Tokens, config: ModelConfig, limit: int) -> "Prompts":
        """For a network that sees `limit` tokens. The text of an encoder-decoder begins with `decoder_start_id`.

        Raises:
            ValueError: no prompt; sources that are too few or too many; a text that is empty, too long, or has ids
                outside the vocabulary.
        """
        both = config.architecture == "encoder_decoder"
        if not prompts:
            raise ValueError("no prompt was given: pass at least one")
        if len(sources) != (len(prompts) if both else 0):
            need = f"needs one for each of {len(prompts)} prompts" if both else "reads none"
            raise ValueError(f"{len(sources)} sources were given: an architecture {config.architecture!r} {need}")
        checked = cls([[config.decoder_start_id] * both + list(text) for text in prompts], [list(s) for s in sources])
        named = [(f"prompt {number}", text, limit) for number, text in enumerate(checked.texts)]
        bound = limit if config.positions == "learned" else sys.maxsize  # only a table of positions ends somewhere
        named += [(f"source {number}", text, bound) for number, text in enumerate(checked.sources)]
        for name, text, most in named:
            if not text:
                raise ValueError(f"{name} has no tokens: there must be at least one to start from")
            if len(text) > most:
                over = len(text) - most
                raise ValueError(f"{name} has {len(text)} tokens, the context has {most}: shorten it by {over} tokens")
            if not 0 <= min(text) <= max(text) < config.vocab_size:
                raise ValueError(
                    f"{name} has ids from {min(text)} to {max(text)}: the vocabulary is 0 to {config.vocab_size - 1}"
                )
        return checked

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.texts))

    def take(self, rows: Iterable[int]) -> "Prompts":
        """Copies of these rows, in this order."""
        rows = list(rows)
        return Prompts([list(self.texts[row]) for row in rows], [self.sources[row] for row in rows if self.sources])

    def extend(self, tokens_BN: np.ndarray) -> None:
        """Appends new tokens to the texts."""
        for text, row in zip(self.texts, tokens_BN.tolist(), strict=True):
            text.extend(row)

    def newest(self, count: int) -> "Prompts":
        """The last `count` tokens of each text."""
        return Prompts([text[-count:] for text in self.texts], self.sources)

    def arrays(self, width: int) -> dict[str, np.ndarray]:
        """Texts padded on the left to `width`, sources on the right, as `model.transformer.apply` takes them."""
        ids_BT, segments_BT = _left_padded(self.texts, width)
        arrays = {"ids_BT": ids_BT, "segments_BT": segments_BT}
        if self.sources:  # an encoder counts positions from the left
            length = round_up(max(map(len, self.sources)), BUCKET)
            ids_BS, segments_BS = _left_padded([source[::-1] for source in self.sources], length)
            arrays |= {"source_BS": ids_BS[:, ::-1], "source_segments_BS": segments_BS[:, ::-1]}
        return arrays

    def history(self, width: int) -> np.ndarray:
        """Int32 (rows, width): the texts with -1 before their first token."""
        ids, segments = _left_padded(self.texts, width)
        return np.where(segments, ids, -1)


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is at least `n`."""
    return -(-n // multiple) * multiple


def _left_padded(texts: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(texts), width), np.int32)
    segments = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = text
        segments[row, width - len(text) :] = 1
    return ids, segments
