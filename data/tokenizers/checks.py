"""What every tokenizer refuses, and how: text that UTF-8 cannot hold, ids outside the vocabulary; and how ids join."""

from collections.abc import Sequence

import numpy as np

from data.errors import DataError


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of `text`. Raises DataError for half a surrogate pair, which is no Unicode text."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(f"text has half a surrogate pair (U+{code:04X}) at position {error.start}") from error


def checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """ids (N,) as int64. Raises DataError for one outside 0..vocab_size-1, with its value and position."""
    array = np.asarray(ids, np.int64)
    bad = np.flatnonzero((array < 0) | (array >= vocab_size))
    if bad.size:
        at = int(bad[0])
        raise DataError(f"id {array[at]} at position {at} is outside the vocabulary: 0 to {vocab_size - 1} are allowed")
    return array


def joined(*parts: Sequence[int] | np.ndarray | None) -> list[int]:
    """The ids of all parts, in order; None is no part."""
    return [int(id) for part in parts if part is not None for id in part]
