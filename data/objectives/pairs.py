"""Examples of an encoder-decoder: a source that the encoder reads, targets that the decoder writes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Seq2Seq:
    """A pair of texts, of S and T ids -> `source` (S,) and `inputs`, `targets`, `weights`, each (T,).

    The inputs are the targets shifted right by one, after decoder_start_id (Sutskever et al. 2014; teacher forcing).
    Ids end with the end-of-text id of the tokenizer, and a text that is cut keeps it as its last id. A row holds one
    pair, so the decoder needs no segments: it is causal and its padding comes last.
    """

    source_length: int  # of a row
    target_length: int
    pad_id: int
    decoder_start_id: int
    truncate: bool = False  # cut what is too long; else that is an error

    def __post_init__(self):
        for name in ("source_length", "target_length"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} {getattr(self, name)} must be 1 or more")

    @property
    def features(self) -> Features:
        source, target = (self.source_length,), (self.target_length,)
        return {
            "source": (source, np.int32),
            "source_segments": (source, np.int32),
            "inputs": (target, np.int32),
            "targets": (target, np.int32),
            "weights": (target, np.float32),
        }

    def __call__(self, source_ids: Ids, target_ids: Ids) -> Example:
        """Raises DataError where an end is too long and `truncate` is False."""
        source = self._fitted("source", source_ids, self.source_length)
        targets = self._fitted("target", target_ids, self.target_length)
        start = [self.decoder_start_id] if len(targets) else []
        return {
            "source": source,
            "inputs": np.concatenate([start, targets[:-1]]).astype(np.int32),
            "targets": targets,
            "weights": np.ones(len(targets), np.float32),
        }

    def _fitted(self, name: str, ids: Ids, length: int) -> np.ndarray:
        array = np.asarray(ids, np.int32)
        if len(array) <= length:
            return array
        if not self.truncate:
            raise DataError(f"a {name} of {len(array)} tokens exceeds {length}: raise {name}_length, or set truncate")
        return np.concatenate([array[: length - 1], array[-1:]])
