"""What an objective is: a piece of text in, arrays out; and how pieces stand side by side in a row of fixed shape."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from data.objectives.many import Many

Example = dict[str, np.ndarray]
Features = dict[str, tuple[tuple[int, ...], type]]

# Features that tell where the pieces of a row stand, with the side they belong to: the decoder's or the encoder's.
PLACES = {"segments": "inputs", "positions": "inputs", "source_segments": "source", "source_positions": "source"}
IDS = ("inputs", "targets", "source")


class Objective(Protocol):
    """Makes an example of each piece of text, of up to stride + overlap tokens.

    Names of features: `inputs`, `targets` and `weights` (of each target in the loss) always; `segments` (0 is padding)
    and `prefix` (1 is seen by all) belong to the inputs, `source` and `source_segments` to the encoder of an
    encoder-decoder.
    """

    @property
    def stride(self) -> int: ...  # tokens from one full piece to the next

    @property
    def overlap(self) -> int: ...  # 1 where the last token of a piece is only a target, else 0

    @property
    def pad_id(self) -> int: ...

    @property
    def features(self) -> Features: ...  # shape and type of each array of a row with one piece

    def sizes(self, num_tokens: int) -> dict[str, int]:
        """Slots that a piece takes on each side, "inputs" and perhaps "source": the most, where they are drawn."""
        ...

    @property
    def is_random(self) -> bool: ...  # whether anything is drawn

    def many(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> "Many":
        """The examples of P pieces, of overlap < lengths_P <= stride + overlap tokens; their ids one after another.

        Of each piece, they are a function of its ids and of its own random numbers, 64 bits for each token (none, where
        nothing is drawn): which pieces are made together changes nothing.
        """
        ...

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        """`many` of a single piece (N,), its random numbers drawn by `rng`."""
        ...


def assemble(pieces: Sequence[Example], features: Features, pad_id: int) -> Example:
    """Examples of pieces side by side in a row of `features`, in their order: first come, first placed.

    Segments count the pieces from 1; positions begin at 0 in each. Padding comes last: pad_id, with weight and segment
    0. Raises ValueError for pieces that are longer than the row.
    """
    row = {name: np.full(shape, pad_id if name in IDS else 0, dtype) for name, (shape, dtype) in features.items()}
    places = [(row[name], side, name.endswith("positions")) for name, side in PLACES.items() if name in row]
    filled = {"inputs": 0, "source": 0}
    for number, piece in enumerate(pieces, 1):
        for name, values in piece.items():
            start = filled["source" if name == "source" else "inputs"]
            row[name][start : start + len(values)] = values
        for values, side, is_position in places:
            start, size = filled[side], len(piece[side])
            values[start : start + size] = np.arange(size) if is_position else number
        for side in filled.keys() & piece.keys():
            filled[side] += len(piece[side])
    return row


def packed_features(features: Features) -> Features:
    """Those of a row with many pieces: each side of it says which piece a slot is of, and where in the piece it is."""
    sides: Mapping[str, str] = {name: side for name, side in PLACES.items() if side in features}
    return features | {name: (features[side][0], np.int32) for name, side in sides.items()}
