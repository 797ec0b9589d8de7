"""Which pieces of which documents share a row: a plan, made once for a store and an objective."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import new_folder, remove_leftovers, write_file
from data.config import PACKING
from data.errors import DataError
from data.json_text import parse_json
from data.objectives.examples import Objective
from data.store.store import TokenStore

METHODS = PACKING[1:]  # chunk cuts the text as it comes, and needs no plan
_VERSION = 1  # of what is kept on disk


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one epoch. Row r holds pieces row_starts[r] to row_starts[r + 1], in the order of the store.

    Piece p is tokens[starts[p] : starts[p] + lengths[p]], of one document. A document of `overlap` tokens or less
    predicts nothing: `unpredicted` of them are in no row.
    """

    starts: np.ndarray  # int64 (pieces,)
    lengths: np.ndarray  # int32 (pieces,)
    row_starts: np.ndarray  # int64 (rows + 1,)
    unpredicted: int
    folder: Path | None = None  # where it is kept

    def __reduce__(self):
        whole = (Plan, (self.starts, self.lengths, self.row_starts, self.unpredicted))
        return whole if self.folder is None else (_load, (self.folder,))  # maps of the disk stay on the disk

    def __len__(self) -> int:
        return len(self.row_starts) - 1


@dataclass(frozen=True, eq=False)
class Slots:
    """What pieces take and what a row has, on each side: the numbers that a plan depends on."""

    sides: tuple[str, ...]  # "inputs", and "source" of an encoder-decoder
    taken_NS: np.ndarray  # int64: slots of a piece of N tokens
    room_S: np.ndarray  # int64: slots of an empty row
    overlap: int

    @property
    def longest(self) -> int:
        """Tokens of the longest piece."""
        return len(self.taken_NS) - 1


def slots(objective: Objective) -> Slots:
    """The numbers of an objective. Raises DataError where its longest piece does not fit its row."""
    sides = tuple(sorted(objective.sizes(1 + objective.overlap)))
    longest = objective.stride + objective.overlap
    taken_NS = np.zeros((longest + 1, len(sides)), np.int64)
    for n in range(objective.overlap + 1, longest + 1):
        taken_NS[n] = [objective.sizes(n)[side] for side in sides]
    room_S = np.array([objective.features[side][0][0] for side in sides], np.int64)
    if (taken_NS > room_S).any():
        n, side = np.argwhere(taken_NS > room_S)[0]
        raise DataError(f"a piece of {n} tokens takes {taken_NS[n, side]} {sides[side]} slots of {room_S[side]}")
    return Slots(sides, taken_NS, room_S, objective.overlap)


def make_plan(store: TokenStore, objective: Objective, method: str, cache: str | Path | None = None) -> Plan:
    """The plan of one of METHODS, the same every time; kept in the folder `cache`, where there is one, and reused.

    isolate: documents in the order of the store, cut wherever a row is full.
    first_fit: whole documents, longest first, each into the first row with room (first-fit decreasing, Johnson 1973).
        A document longer than a row is cut into full rows and a rest.
    best_fit: the same, each into the row that it fills up most (Ding et al. 2024, "Fewer Truncations").

    Raises DataError for another method, and for a store in which nothing is predicted.
    """
    if method not in METHODS:
        raise DataError(f"the packing {method!r} is not one of {', '.join(METHODS)}")
    needed = slots(objective)
    if cache is None:
        return _planned(store, needed, method)
    key = (_VERSION, method, needed.sides, needed.taken_NS.tobytes(), needed.room_S.tobytes(), needed.overlap)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(store.document_starts).tobytes())
    folder = Path(cache).expanduser() / digest.hexdigest()
    if not folder.is_dir():
        remove_leftovers(folder.parent)
        with new_folder(folder) as temporary:
            _save(temporary, _planned(store, needed, method))
    return _load(folder)


def _planned(store: TokenStore, needed: Slots, method: str) -> Plan:
    tokens_D = np.diff(store.document_starts)
    predicting_D = tokens_D > needed.overlap
    unpredicted = int((~predicting_D).sum())
    starts_D, tokens_D = np.asarray(store.document_starts)[:-1][predicting_D], tokens_D[predicting_D]
    if not len(starts_D):
        raise DataError(
            f"{store.folder} holds {unpredicted} document(s), none of more than {needed.overlap} token(s): the first "
            "prediction needs one more"
        )
    if method == "isolate":
        return _in_order(starts_D, tokens_D, needed, unpredicted)
    starts_P, lengths_P = _cut(starts_D, tokens_D, needed)
    row_P, num_rows = _shelve(lengths_P, needed, tightest=method == "best_fit")
    by_row_P = np.argsort(row_P, kind="stable")
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(row_P, minlength=num_rows))])
    return Plan(starts_P[by_row_P], lengths_P[by_row_P], row_starts, unpredicted)


def _cut(starts_D: np.ndarray, tokens_D: np.ndarray, needed: Slots) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the full rows and the rest of each document; each token is a target once."""
    stride = needed.longest - needed.overlap
    pieces_D = -(-(tokens_D - needed.overlap) // stride)
    first_D = np.cumsum(pieces_D) - pieces_D
    offset_P = (np.arange(pieces_D.sum()) - np.repeat(first_D, pieces_D)) * stride
    lengths_P = np.minimum(np.repeat(tokens_D, pieces_D) - offset_P, needed.longest)
    return np.repeat(starts_D, pieces_D) + offset_P, lengths_P.astype(np.int32)


def _shelve(lengths_P: np.ndarray, needed: Slots, tightest: bool) -> tuple[np.ndarray, int]:
    """The row of each piece and the number of rows; longest pieces first.

    Pieces of one length are placed at once. They go where they would go one by one: first fit fills a row before it
    looks at the next, and a row that was the tightest stays the tightest as it fills.
    """
    row_P, num_rows = np.empty(len(lengths_P), np.int64), 0
    room_SR, full_S1 = np.empty((len(needed.sides), 1024), np.int64), needed.room_S[:, None]
    usable_R = np.empty(0, np.int64)  # rows with room for the shortest piece, rising
    least_S1 = needed.taken_NS[lengths_P.min()][:, None]
    for pieces in _by_length(lengths_P):
        taken_S1 = needed.taken_NS[lengths_P[pieces[0]]][:, None]
        usable_R = usable_R[(room_SR[:, usable_R] >= least_S1).all(axis=0)]
        fitting_R = usable_R[(room_SR[:, usable_R] >= taken_S1).all(axis=0)]
        if tightest:
            free_R = (room_SR[:, fitting_R] / full_S1).sum(axis=0)
            fitting_R = fitting_R[np.argsort(free_R, kind="stable")]
        capacity_R = (room_SR[:, fitting_R] // taken_S1).min(axis=0)
        old = np.repeat(fitting_R, capacity_R)[: len(pieces)]
        fresh = num_rows + np.arange(len(pieces) - len(old)) // int((full_S1 // taken_S1).min())
        row_P[pieces] = np.concatenate([old, fresh])
        if len(fresh):
            added = np.arange(num_rows, int(fresh[-1]) + 1)
            num_rows += len(added)
            while room_SR.shape[1] < num_rows:
                room_SR = np.concatenate([room_SR, np.empty_like(room_SR)], axis=1)
            room_SR[:, added] = full_S1
            usable_R = np.concatenate([usable_R, added])
        changed_R, count_R = np.unique(row_P[pieces], return_counts=True)
        room_SR[:, changed_R] -= count_R * taken_S1
    return row_P, num_rows


def _by_length(lengths_P: np.ndarray) -> Iterator[np.ndarray]:
    """The pieces of each length, longest first, each in the order of the store."""
    order_P = np.argsort(-lengths_P, kind="stable")
    changes = np.flatnonzero(np.diff(lengths_P[order_P])) + 1
    yield from np.split(order_P, changes)


def _in_order(starts_D: np.ndarray, tokens_D: np.ndarray, needed: Slots, unpredicted: int) -> Plan:
    """Documents in their order, cut wherever a row is full: of the rest of a row, the most that fits."""
    rising_NS = np.maximum.accumulate(needed.taken_NS, axis=0)
    most_S = [
        (np.searchsorted(rising_NS[:, side], np.arange(room + 1), "right") - 1).tolist()
        for side, room in enumerate(needed.room_S)
    ]
    taken_NS, full, overlap = needed.taken_NS.tolist(), needed.room_S.tolist(), needed.overlap
    starts, lengths, row_starts, room = [], [], [0], full
    for start, left in zip(starts_D.tolist(), tokens_D.tolist(), strict=True):
        while left > overlap:
            length = min(left, *(most[free] for most, free in zip(most_S, room, strict=True)))
            if length <= overlap:  # not a single prediction fits any more
                row_starts.append(len(starts))
                room = full
                continue
            starts.append(start)
            lengths.append(length)
            room = [free - taken for free, taken in zip(room, taken_NS[length], strict=True)]
            start, left = start + length - overlap, left - length + overlap
    row_starts.append(len(starts))
    return Plan(np.array(starts, np.int64), np.array(lengths, np.int32), np.array(row_starts, np.int64), unpredicted)


def _save(folder: Path, plan: Plan) -> None:
    for name in ("starts", "lengths", "row_starts"):
        np.save(folder / f"{name}.npy", getattr(plan, name), allow_pickle=False)
    counts = {"rows": len(plan), "pieces": len(plan.starts), "unpredicted": plan.unpredicted}
    write_file(folder / "plan.json", (json.dumps(counts) + "\n").encode())


def _load(folder: Path) -> Plan:
    """A plan whose arrays are read-only maps of the disk."""
    try:
        counts = parse_json((folder / "plan.json").read_bytes())
        arrays: dict[str, Any] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("starts", "lengths", "row_starts")
        }
        found = {"rows": len(arrays["row_starts"]) - 1, "pieces": len(arrays["starts"])}
        if found | {"unpredicted": counts["unpredicted"]} != counts or len(arrays["lengths"]) != found["pieces"]:
            raise ValueError(f"it holds {found}, plan.json says {counts}")
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise DataError(f"the plan in {folder} cannot be read ({error}): delete the folder to make it again") from error
    return Plan(**arrays, unpredicted=counts["unpredicted"], folder=folder)
