"""The rows of a token store: what one epoch of an objective consists of, by number."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data.errors import DataError
from data.objectives.causal import CausalLM
from data.objectives.examples import Example, Features, Objective, assemble, packed_features
from data.packing import Plan, make_plan, slots
from data.store.store import TokenStore


class Rows(Protocol):
    """Examples of one shape, each of them read once an epoch."""

    @property
    def features(self) -> Features: ...  # shape and type of each array of an example

    def __len__(self) -> int: ...  # rows of one epoch

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """The arrays of one row, as `features` says; what is random in them is drawn by `rng`."""
        ...


@runtime_checkable
class PlainRows(Rows, Protocol):
    """Rows of which nothing is drawn: many of them can be read at once."""

    def examples(self, rows_B: np.ndarray) -> Example:
        """The arrays of these rows, one axis in front of that of `example`."""
        ...


class ChunkRows:
    """The documents as one long text, cut into pieces `objective.stride` tokens apart; one piece a row.

    Tokens see across the ends of documents. The last row is padded where the text does not fill it: each token is in
    the rows of an epoch once. Raises DataError for a store with nothing to predict.
    """

    def __init__(self, store: TokenStore, objective: Objective):
        read, needed = store.num_tokens - objective.overlap, 1 + objective.overlap
        if read < 1:
            raise DataError(f"{store.folder} holds {store.num_tokens} token(s): the first prediction needs {needed}")
        self.store, self.objective, self.features = store, objective, objective.features
        self._tokens = _plain(store.tokens)
        self._rows = -(-read // objective.stride)

    def __reduce__(self):
        return type(self), (self.store, self.objective)  # the view stays: pickled, it would hold every token

    def __len__(self) -> int:
        return self._rows

    def example(self, row: int, rng: np.random.Generator) -> Example:
        start, longest = row * self.objective.stride, self.objective.stride + self.objective.overlap
        piece = self.objective(self._tokens[start : start + longest], rng)
        return assemble([piece], self.features, self.objective.pad_id)

    def document_means(self, values_D: np.ndarray) -> np.ndarray:
        """For each row, the mean of the values of the documents that it holds a token of."""
        starts_R = np.arange(len(self), dtype=np.int64) * self.objective.stride
        ends_R = np.minimum(starts_R + self.objective.stride + self.objective.overlap, self.store.num_tokens)
        return _range_means(self.store.document_starts, values_D, starts_R, ends_R)


class CausalChunkRows(ChunkRows):
    """`ChunkRows` of next-token prediction, which draws nothing: many rows are cut at once."""

    def __init__(self, store: TokenStore, objective: Objective):
        super().__init__(store, objective)
        longest = objective.stride + objective.overlap
        if len(self._tokens) < longest:
            self._pieces_RN = np.empty((0, longest), self._tokens.dtype)
        else:  # a view
            self._pieces_RN = np.lib.stride_tricks.sliding_window_view(self._tokens, longest)[:: objective.stride]

    def examples(self, rows_B: np.ndarray) -> Example:
        if (rows_B >= len(self._pieces_RN)).any():  # the last row, where it is padded
            nothing_drawn = np.random.default_rng(0)
            made = [self.example(int(row), nothing_drawn) for row in rows_B]
            return {name: np.stack([example[name] for example in made]) for name in self.features}
        pieces_BN = self._pieces_RN[rows_B]
        weights = np.ones((len(rows_B), self.objective.stride), np.float32)
        inputs, targets = pieces_BN[:, :-1].astype(np.int32), pieces_BN[:, 1:].astype(np.int32)
        return {"inputs": inputs, "targets": targets, "weights": weights}


class PackedRows:
    """Documents that share rows and do not see each other: segments tell them apart, positions begin anew in each."""

    def __init__(self, store: TokenStore, objective: Objective, plan: Plan):
        self.store, self.objective, self.plan = store, objective, plan
        self.features = packed_features(objective.features)
        self._tokens = _plain(store.tokens)

    def __reduce__(self):
        return type(self), (self.store, self.objective, self.plan)

    def __len__(self) -> int:
        return len(self.plan)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        first, end = self.plan.row_starts[row : row + 2].tolist()
        starts, lengths = self.plan.starts[first:end].tolist(), self.plan.lengths[first:end].tolist()
        pieces = [self.objective(self._tokens[s : s + n], rng) for s, n in zip(starts, lengths, strict=True)]
        return assemble(pieces, self.features, self.objective.pad_id)

    @property
    def utilisation(self) -> dict[str, float]:
        """Filled slots over all slots, of the decoder's "inputs" and the encoder's "source".

        Where the objective draws how many slots a piece takes, these are the slots that are kept for it.
        """
        needed = slots(self.objective)
        taken_S = needed.taken_NS[self.plan.lengths].sum(axis=0) / (len(self) * needed.room_S)
        return dict(zip(needed.sides, taken_S.tolist(), strict=True))

    def document_means(self, values_D: np.ndarray) -> np.ndarray:
        """For each row, the mean over its pieces of the values of their documents."""
        document_P = np.searchsorted(self.store.document_starts, self.plan.starts, "right") - 1
        sums_R = np.add.reduceat(np.asarray(values_D, np.float64)[document_P], self.plan.row_starts[:-1])
        return sums_R / np.diff(self.plan.row_starts)


class CausalPackedRows(PackedRows):
    """`PackedRows` of next-token prediction, which draws nothing: the pieces of many rows are placed at once."""

    def examples(self, rows_B: np.ndarray) -> Example:
        plan, (length,) = self.plan, self.features["inputs"][0]
        first_B = plan.row_starts[rows_B]
        pieces_B = plan.row_starts[rows_B + 1] - first_B
        number_P = _counted(pieces_B)  # of a piece in its row
        piece_P = np.repeat(first_B, pieces_B) + number_P
        slots_P = plan.lengths[piece_P].astype(np.int64) - 1
        row_P = np.repeat(np.arange(len(rows_B)), pieces_B)
        before_B = np.concatenate([[0], np.cumsum(np.bincount(row_P, slots_P))[:-1]]).astype(np.int64)
        position_N = _counted(slots_P)  # of a filled slot in its piece
        slot_N = np.arange(len(position_N)) + np.repeat((np.arange(len(rows_B)) * length - before_B)[row_P], slots_P)
        token_N = np.repeat(plan.starts[piece_P], slots_P) + position_N
        batch = {name: np.zeros((len(rows_B), length), dtype) for name, (_, dtype) in self.features.items()}
        for name, values in (
            ("inputs", self._tokens[token_N]),
            ("targets", self._tokens[token_N + 1]),
            ("weights", 1),
            ("segments", np.repeat(number_P + 1, slots_P)),
            ("positions", position_N),
        ):
            batch[name].ravel()[slot_N] = values
        return batch


StoreRows = ChunkRows | PackedRows


def store_rows(
    store: TokenStore, objective: Objective, packing: str = "chunk", cache: str | Path | None = None
) -> StoreRows:
    """The rows of a store. `packing`: "chunk", or one of `data.packing.METHODS`, whose plan is kept in `cache`."""
    # Many rows are read at once where nothing is drawn and the tokens are mapped: of a URL, they come slice by slice.
    plain = isinstance(objective, CausalLM) and not objective.random_prefix and isinstance(store.tokens, np.ndarray)
    if packing == "chunk":
        return (CausalChunkRows if plain else ChunkRows)(store, objective)
    return (CausalPackedRows if plain else PackedRows)(store, objective, make_plan(store, objective, packing, cache))


def row_features(objective: Objective, packing: str) -> Features:
    """The features of `store_rows`, before there is a store."""
    return objective.features if packing == "chunk" else packed_features(objective.features)


def _plain(tokens: Any) -> Any:
    """A map as a plain array: slicing a memmap costs microseconds more."""
    return tokens.view(np.ndarray) if isinstance(tokens, np.ndarray) else tokens


def _counted(sizes_N: np.ndarray) -> np.ndarray:
    """0, 1, … for each size: (2, 3) -> 0 1 0 1 2."""
    return np.arange(sizes_N.sum()) - np.repeat(np.cumsum(sizes_N) - sizes_N, sizes_N)


def _range_means(
    document_starts: np.ndarray, values_D: np.ndarray, starts_R: np.ndarray, ends_R: np.ndarray
) -> np.ndarray:
    """Means of the values of the documents that have a token in each range."""
    there_D = np.diff(document_starts) > 0
    starts_D = np.asarray(document_starts)[:-1][there_D]
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values_D, np.float64)[there_D])])
    first_R = np.searchsorted(starts_D, starts_R, "right") - 1
    end_R = np.searchsorted(starts_D, ends_R, "left")
    return (sums[end_R] - sums[first_R]) / (end_R - first_R)
