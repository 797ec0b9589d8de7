"""Masked language modelling: an encoder restores tokens that were hidden from it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """The masking of BERT (Devlin et al. 2019, section 3.1 and appendix A.1), drawn anew whenever a piece is read.

    piece (N,) -> `inputs`, `targets`, `weights`, each (N + 2,): the piece between cls_id and sep_id, if there are such
    ids. Of its ordinary tokens, round(rate * their number) are chosen, 1 or more: they have weight 1, and 80 % of them
    become mask_id in the inputs, 10 % a random ordinary token, 10 % stay. Targets are the tokens that were there.
    Special ids, also those inside the piece, are never chosen and never drawn.

    With starts_word_V, whole words are chosen, in random order, as long as they fit into that number: it may then
    be missed by less than a word. Where no word fits, one is chosen nevertheless.
    """

    length: int  # of a row, with the ids around the text
    pad_id: int
    mask_id: int
    ordinary_V: np.ndarray  # bool: ids that are text
    cls_id: int | None = None
    sep_id: int | None = None
    rate: float = 0.15
    starts_word_V: np.ndarray | None = None  # bool: ids that begin a word; None: each token is chosen for itself

    overlap = 0

    def __post_init__(self):
        if self.stride < 1:
            raise DataError(f"length {self.length} has no room for text: use {self.length - self.stride + 1} or more")
        special = [id for id in (self.pad_id, self.mask_id, self.cls_id, self.sep_id) if id is not None]
        if wrong := [id for id in special if not 0 <= id < len(self.ordinary_V) or self.ordinary_V[id]]:
            raise DataError(f"special id {wrong[0]} is not a special one of the {len(self.ordinary_V)} ids")
        if not self.ordinary_V.any():
            raise DataError(f"none of the {len(self.ordinary_V)} ids is text")

    @property
    def stride(self) -> int:
        return self.length - (self.cls_id is not None) - (self.sep_id is not None)

    @property
    def features(self) -> Features:
        return {name: ((self.length,), np.int32) for name in ("inputs", "targets", "segments")} | {
            "weights": ((self.length,), np.float32)
        }

    def sizes(self, num_tokens: int) -> dict[str, int]:
        return {"inputs": num_tokens + self.length - self.stride}

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        targets = self._wrapped(piece_ids)
        inputs, weights = targets.copy(), np.zeros(len(targets), np.float32)
        chosen = self._choose(targets, rng)
        fate = rng.random(len(chosen))
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        inputs[chosen[fate < 0.8]] = self.mask_id
        inputs[replaced] = rng.choice(self._ordinary_ids, len(replaced))
        weights[chosen] = 1
        return {"inputs": inputs, "targets": targets, "weights": weights}

    @cached_property
    def _ordinary_ids(self) -> np.ndarray:
        return np.flatnonzero(self.ordinary_V)

    def _wrapped(self, piece_ids: np.ndarray) -> np.ndarray:
        first, last = ([] if id is None else [id] for id in (self.cls_id, self.sep_id))
        return np.concatenate([first, piece_ids, last]).astype(np.int32)

    def _choose(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions of the chosen tokens."""
        ordinary = np.flatnonzero(self.ordinary_V[ids])
        if not ordinary.size:
            return ordinary
        count = max(1, round(self.rate * len(ordinary)))
        if self.starts_word_V is None:
            return rng.choice(ordinary, count, replace=False, shuffle=False)
        # A special id counts as a beginning, so that no word reaches across it.
        words = np.cumsum(self.starts_word_V[ids] | ~self.ordinary_V[ids])[ordinary]
        sizes = np.bincount(words)
        order = rng.permutation(np.flatnonzero(sizes))
        return ordinary[np.isin(words, _fitting(order.tolist(), sizes.tolist(), count))]


def _fitting(words: list[int], sizes: list[int], room: int) -> list[int]:
    """The words that fill `room`, taken in order, those too long for what is left passed over."""
    taken = []
    for word in words:
        if sizes[word] <= room:
            taken.append(word)
            room -= sizes[word]
        if not room:
            break
    return taken or words[:1]


def word_starts(tokenizer: Tokenizer, ordinary_V: np.ndarray) -> np.ndarray:
    """Bool (V,): whether an id begins a word, for words that white space separates.

    Asked of `decode`, which knows how the tokenizer writes spaces: after a letter, such an id adds white space first.
    Raises DataError for a tokenizer that has no such ids.
    """
    ids = np.flatnonzero(ordinary_V).tolist()
    letter = next((id for id in ids if tokenizer.decode([id])[-1:].isalnum()), ids[0])
    before = len(tokenizer.decode([letter]))
    starts_V = np.zeros(len(ordinary_V), bool)
    starts_V[ids] = [tokenizer.decode([letter, id])[before : before + 1].isspace() for id in ids]
    if not starts_V.any():
        raise DataError(f"none of the {len(ids)} ids of text begins with white space: use objective.whole_words=False")
    return starts_V
