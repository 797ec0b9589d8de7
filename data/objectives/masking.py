"""Masked language modelling: an encoder restores tokens that were hidden from it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features
from data.objectives.many import Many, choose, single
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
    is_random = True

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

    def many(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> Many:
        chosen = self._choose(ids_N, lengths_P, random_N)
        # The upper 24 bits of a token's number decide whether it is chosen, the others what becomes of it.
        fate = (random_N[chosen] & np.uint64(2**40 - 1)) / 2**40
        is_replaced = (fate >= 0.8) & (fate < 0.9)
        drawn = self._ordinary_ids[((fate[is_replaced] - 0.8) * (10 * len(self._ordinary_ids))).astype(np.int64)]
        masked_N = ids_N.copy()
        masked_N[chosen[fate < 0.8]] = self.mask_id
        masked_N[chosen[is_replaced]] = drawn
        weights_N = np.zeros(len(ids_N), np.float32)
        weights_N[chosen] = 1
        sizes_P = lengths_P + self.length - self.stride
        last_P = np.cumsum(sizes_P) - 1
        around = [(self.cls_id, last_P - sizes_P + 1), (self.sep_id, last_P)]
        is_text_M = np.ones(sizes_P.sum(), bool)
        for id, at_P in around:
            is_text_M[at_P] &= id is None
        arrays: Example = {}
        for name, values_N in (("inputs", masked_N), ("targets", ids_N), ("weights", weights_N)):
            arrays[name] = np.zeros(len(is_text_M), values_N.dtype)
            arrays[name][is_text_M] = values_N
        for id, at_P in around:
            if id is not None:
                arrays["inputs"][at_P] = arrays["targets"][at_P] = id
        return Many(arrays, {"inputs": sizes_P})

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        return single(self, piece_ids, rng)

    @cached_property
    def _ordinary_ids(self) -> np.ndarray:
        return np.flatnonzero(self.ordinary_V)

    def _choose(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> np.ndarray:
        """Positions of the chosen tokens."""
        ordinary = np.flatnonzero(self.ordinary_V[ids_N])
        ends_P = np.searchsorted(ordinary, np.cumsum(lengths_P))
        ordinary_P = np.diff(ends_P, prepend=0)
        count_P = np.maximum(np.rint(self.rate * ordinary_P), ordinary_P > 0).astype(np.int64)
        if self.starts_word_V is None:
            return ordinary[choose(random_N[ordinary], ordinary_P, count_P)]
        # A special id counts as a beginning, so that no word reaches across it.
        words_N = np.cumsum(self.starts_word_V[ids_N] | ~self.ordinary_V[ids_N])
        chosen = [ordinary[:0]]
        for first, end, count in zip(ends_P - ordinary_P, ends_P, count_P.tolist(), strict=True):
            of_piece = ordinary[first:end]
            _, starts, word_of, sizes = np.unique(
                words_N[of_piece], return_index=True, return_inverse=True, return_counts=True
            )
            order = np.argsort(random_N[of_piece[starts]] >> 40, kind="stable")
            chosen.append(of_piece[np.isin(word_of, _fitting(order.tolist(), sizes.tolist(), count))])
        return np.concatenate(chosen)


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
