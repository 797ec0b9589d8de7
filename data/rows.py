"""The rows of a token store: what one epoch of an objective consists of, by number."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features, Objective, packed_features
from data.objectives.many import arrange, counted, draw
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
class ManyRows(Rows, Protocol):
    """Rows of which many can be read at once, which is faster."""

    def examples(self, rows_B: np.ndarray, generators: Iterable[np.random.Generator]) -> Example:
        """What `example` makes of these rows with a generator each, bit for bit, one axis in front."""
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
        self.tokens = _plain(store.tokens)
        self._rows = -(-read // objective.stride)

    def __reduce__(self):
        return type(self), (self.store, self.objective)  # the view stays: pickled, it would hold every token

    def __len__(self) -> int:
        return self._rows

    def example(self, row: int, rng: np.random.Generator) -> Example:
        return _first(self.examples(np.array([row]), [rng]))

    def examples(self, rows_B: np.ndarray, generators: Iterable[np.random.Generator]) -> Example:
        starts_B, longest = rows_B * self.objective.stride, self.objective.stride + self.objective.overlap
        lengths_B = np.minimum(longest, self.store.num_tokens - starts_B)
        return _examples(self, starts_B, lengths_B, np.ones_like(rows_B), generators)

    def document_means(self, values_D: np.ndarray) -> np.ndarray:
        """For each row, the mean of the values of the documents that it holds a token of."""
        starts_R = np.arange(len(self), dtype=np.int64) * self.objective.stride
        ends_R = np.minimum(starts_R + self.objective.stride + self.objective.overlap, self.store.num_tokens)
        return _range_means(self.store.document_starts, values_D, starts_R, ends_R)


class PackedRows:
    """Documents that share rows and do not see each other: segments tell them apart, positions begin anew in each."""

    def __init__(self, store: TokenStore, objective: Objective, plan: Plan):
        self.store, self.objective, self.plan = store, objective, plan
        self.features = packed_features(objective.features)
        self.tokens = _plain(store.tokens)

    def __reduce__(self):
        return type(self), (self.store, self.objective, self.plan)

    def __len__(self) -> int:
        return len(self.plan)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        return _first(self.examples(np.array([row]), [rng]))

    def examples(self, rows_B: np.ndarray, generators: Iterable[np.random.Generator]) -> Example:
        plan, first_B = self.plan, self.plan.row_starts[rows_B]
        pieces_B = plan.row_starts[rows_B + 1] - first_B
        piece_P = np.repeat(first_B, pieces_B) + counted(pieces_B)
        return _examples(self, plan.starts[piece_P], plan.lengths[piece_P].astype(np.int64), pieces_B, generators)

    @property
    def utilisation(self) -> dict[str, float]:
        """Filled slots over all slots, of the decoder's "inputs" and the encoder's "source".

        Where the objective draws how many slots a piece takes, as UL2, these are the slots that are kept for it. Both
        sides of span corruption are full for documents of hundreds of tokens: the eos of shorter ones takes more of the
        targets than of the source, which is then left emptier (about 92 % for 40 tokens).
        """
        needed = slots(self.objective)
        taken_S = needed.taken_NS[self.plan.lengths].sum(axis=0) / (len(self) * needed.room_S)
        return dict(zip(needed.sides, taken_S.tolist(), strict=True))

    def document_means(self, values_D: np.ndarray) -> np.ndarray:
        """For each row, the mean over its pieces of the values of their documents."""
        document_P = np.searchsorted(self.store.document_starts, self.plan.starts, "right") - 1
        sums_R = np.add.reduceat(np.asarray(values_D, np.float64)[document_P], self.plan.row_starts[:-1])
        return sums_R / np.diff(self.plan.row_starts)


StoreRows = ChunkRows | PackedRows


def store_rows(
    store: TokenStore, objective: Objective, packing: str = "chunk", cache: str | Path | None = None
) -> StoreRows:
    """The rows of a store. `packing`: "chunk", or one of `data.packing.METHODS`, whose plan is kept in `cache`."""
    if packing == "chunk":
        return ChunkRows(store, objective)
    return PackedRows(store, objective, make_plan(store, objective, packing, cache))


def row_features(objective: Objective, packing: str) -> Features:
    """The features of `store_rows`, before there is a store."""
    return objective.features if packing == "chunk" else packed_features(objective.features)


def _plain(tokens: Any) -> Any:
    """A map as a plain array: slicing a memmap costs microseconds more."""
    return tokens.view(np.ndarray) if isinstance(tokens, np.ndarray) else tokens


def _examples(
    rows: ChunkRows | PackedRows,
    starts_P: np.ndarray,
    lengths_P: np.ndarray,
    pieces_B: np.ndarray,
    generators: Iterable[np.random.Generator],
) -> Example:
    """Rows of pieces_B pieces each; the numbers of a row are drawn at once, for all its tokens."""
    pieces = [rows.tokens[a:b] for a, b in zip(starts_P.tolist(), (starts_P + lengths_P).tolist(), strict=True)]
    random = [np.empty(0, np.uint64)]
    if rows.objective.is_random:
        tokens_B = np.add.reduceat(lengths_P, np.cumsum(pieces_B) - pieces_B).tolist()
        random = [draw(rows.objective, tokens, rng) for tokens, rng in zip(tokens_B, generators, strict=True)]
    many = rows.objective.many(np.concatenate(pieces).astype(np.int32), lengths_P, np.concatenate(random))
    return arrange(many, pieces_B, rows.features, rows.objective.pad_id)


def _first(examples: Example) -> Example:
    return {name: values[0] for name, values in examples.items()}


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
