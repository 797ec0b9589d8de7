"""The arrays of many rows, end to end in few bytes: a training set of some hundred thousand texts stays in memory."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.objectives.examples import Example


@dataclass(frozen=True)
class Window:
    """Which tokens of a context a row holds: tokens[first : first + count], from slot `begin` of the row on."""

    spans_N2: np.ndarray  # characters [start, end) of each token of the whole context
    begin: int
    first: int
    count: int


@dataclass(frozen=True)
class Row:
    """What one row holds, before padding."""

    example: int  # its number among the examples
    arrays: Example
    length: int  # tokens it would have without a limit
    cut: bool  # whether a text of it was cut
    lost_tags: int = 0  # of tokens that the tokenizer makes nothing of
    window: Window | None = None  # of a context


class CompactRows:
    """Rows of which ids, labels and places take two bytes each, where none reaches 65,536; weights and types one.

    By row: `example_R`, the number of its example; `length_R`, tokens it would have without a limit; `cut_R`.
    """

    def __init__(self, rows: Iterable[Row]):
        self._parts: dict[str, _Parts] = {}
        self._spans: dict[int, np.ndarray] = {}  # of the context of an example: one array, whoever shares it
        example_R, length_R, cut_R, windows_R3 = array("q"), array("q"), array("b"), array("q")
        self.lost_tags = 0
        for row in rows:
            for name, values in row.arrays.items():
                kind = bool if name in ("weights", "token_types") else np.uint16  # the former are 0 or 1
                self._parts.setdefault(name, _Parts(kind)).append(values)
            example_R.append(row.example)
            length_R.append(row.length)
            cut_R.append(row.cut)
            self.lost_tags += row.lost_tags
            if row.window:
                self._spans[row.example] = row.window.spans_N2
                windows_R3.extend((row.window.begin, row.window.first, row.window.count))
        self.example_R, self.length_R = np.array(example_R), np.array(length_R)
        self.cut_R = np.array(cut_R, bool)
        self._windows_R3 = np.array(windows_R3, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.example_R)

    def arrays(self, row: int) -> Example:
        """Flat arrays by name, of the types in which they are kept. Raises IndexError for a row that is not there."""
        row = range(len(self))[row]
        return {name: parts[row] for name, parts in self._parts.items()}

    def characters(self, row: int, first: int, last: int) -> tuple[int, int]:
        """Where tokens `first` to `last` of a row stand in its context; (0, 0) where they are not all of it."""
        begin, start, count = self._windows_R3[row].tolist()
        if not begin <= first <= last < begin + count:
            return 0, 0
        spans_N2 = self._spans[int(self.example_R[row])]
        return int(spans_N2[start + first - begin, 0]), int(spans_N2[start + last - begin, 1])


class _Parts:
    """Arrays of one type, end to end; uint16 becomes uint32 at the first number that it cannot hold."""

    def __init__(self, kind: type):
        self._dtype, self._bytes, self._ends = np.dtype(kind), bytearray(), array("q", [0])

    def append(self, values: np.ndarray) -> None:
        if self._dtype == np.uint16 and values.max(initial=0) >= 2**16:
            self._dtype = np.dtype(np.uint32)
            self._bytes = bytearray(np.frombuffer(self._bytes, np.uint16).astype(self._dtype).tobytes())
        self._bytes += values.astype(self._dtype).tobytes()
        self._ends.append(len(self._bytes) // self._dtype.itemsize)

    def __getitem__(self, row: int) -> np.ndarray:
        start, end = self._ends[row], self._ends[row + 1]
        return np.frombuffer(self._bytes, self._dtype, end - start, start * self._dtype.itemsize)
