"""The table of an n-gram model: counted in numpy by one sort of the corpus, saved to and loaded from one file.

Interpolated modified Kneser-Ney smoothing (Chen & Goodman 1998, section 3). The probability of w after a context c of
n-1 tokens is `mass(c w) + rest(c) * p(w | c without its oldest token)`, down to the uniform distribution below the
unigrams. A table of order N holds every model of order 1 to N: the highest order of a model is estimated from counts,
its lower orders from continuation counts (how many different tokens stand before an n-gram), so orders below N have
both.

A table is a flat dict of arrays. n-grams of one length n are numbered in the order of their ids; number k continues
the (n-1)-gram whose range of `children_{n-1}` holds k. Unigrams are numbered by their token, seen or not.

tokens_n    n = 2..N    last token, uint16 (up to 65,536 ids) or int32; rises among the children of one parent
children_n  n = 1..N-1  int32, one more than there are n-grams: k's children are children_n[k] to children_n[k + 1]
mass_n      n = 1..N-1  float32, discounted probability of each n-gram, from continuation counts
rest_n      n = 1..N-1  float32, what is left for order n-1, of each (n-1)-gram (one number for n = 1)
top_mass_n, top_rest_n  n = 1..N  the same from counts, for the model of order n
"""

import math
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Table = dict[str, np.ndarray]

FALLBACK = (0.5, 1.0, 1.5)  # discounts where they cannot be estimated; kenlm offers the same


def count_ngrams(tokens: np.ndarray, vocab_size: int, order: int, *, discounts: np.ndarray | None = None) -> Table:
    """The table of `tokens`, integers (N,), for models of order 1 to `order`.

    The corpus is one stream: n-grams run across the ends of documents, as the blocks do that a Transformer is trained
    on. The first n-gram of the stream has no left neighbour, its continuation count may be 0.

    Args:
        tokens: token ids, a memory map too; at least `order` of them.
        vocab_size: V, ids are 0 to V-1.
        order: tokens of the longest n-gram, its last one the predicted.
        discounts: (order, 3), what is taken from counts of 1, 2, and 3 or more, a row for each order; row n-1 holds for
            n-grams. Zeros for unigrams leave nothing for tokens that were never seen. None: Chen & Goodman's estimate
            (their eq. 26) of each order from its counts of counts, or `FALLBACK` where these are degenerate: no n-gram
            that occurs 1, 2, 3 or 4 times, or a discount of 0 or less. Unigrams of small vocabularies are.

    Raises:
        ValueError: ids out of range, too few tokens, an order below 1, or discounts below 0 or above their count.
    """
    fixed = _checked_discounts(discounts, order)
    padded, length = _padded(tokens, vocab_size, order), len(tokens)
    positions = _sorted_positions(padded, length, vocab_size, order)
    rank = np.empty(length, np.int32)
    rank[positions] = np.arange(length, dtype=np.int32)
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32

    table: Table = {}
    fresh = np.zeros(length, bool)  # in sorted order: begins with another n-gram than the position before
    fresh[0] = True
    above, siblings = np.zeros(1, np.int64), np.array([0, vocab_size])  # n-1: where each begins, where its children do
    number = np.empty(0, np.int32)  # of the (n-1)-gram at each sorted position
    for n in range(1, order + 1):
        column = padded[positions + np.int32(n - 1)]
        fresh[1:] |= column[1:] != column[:-1]
        if n == 1:
            firsts = np.searchsorted(column, np.arange(1, vocab_size + 1))
            counts = np.diff(firsts, append=length)
        else:
            groups = np.flatnonzero(fresh)
            counts = np.diff(groups, append=length)
            whole = column[groups] > 0  # does not run over the end
            firsts, counts = groups[whole], counts[whole]
            table[f"tokens_{n}"] = (column[firsts] - 1).astype(dtype)
            children = np.searchsorted(firsts, np.append(above, length)).astype(np.int32)
            table[f"children_{n - 1}"] = children
            continuations = np.bincount(number[rank[positions[firsts] + 1]], minlength=len(above))
            lower = _discounted(continuations, siblings, fixed[n - 2])
            table[f"mass_{n - 1}"], table[f"rest_{n - 1}"] = lower
            siblings = children
        table[f"top_mass_{n}"], table[f"top_rest_{n}"] = _discounted(counts, siblings, fixed[n - 1])
        number = column - 1 if n == 1 else np.cumsum(fresh & (column > 0), dtype=np.int32) - 1
        above = firsts
    return table


def table_order(table: Mapping[str, object]) -> int:
    """N, the highest order of model that the table holds."""
    return sum(name.startswith("top_mass_") for name in table)


def save_ngram(path: str | Path, table: Mapping[str, np.ndarray]) -> None:
    """Writes the table to `path` as .npz; the file is there whole or not at all. Raises ValueError for a bad table."""
    path = Path(path)
    arrays = {name: np.asarray(array) for name, array in table.items()}
    _check_table(arrays, str(path))
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_ngram(path: str | Path) -> Table:
    """Reads what `save_ngram` wrote. Raises ValueError, with the array and the way out, for any other content."""
    try:
        _check_members(Path(path))
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a table of n-grams ({error}): count it again") from error
    _check_table(table, str(path))
    return table


def _check_members(path: Path) -> None:
    """Raises ValueError for a member that is packed, or whose header asks for other memory than the file has bytes."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            with file.open(member) as opened:
                np.lib.format.read_magic(opened)
                shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
                needs = opened.tell() + math.prod(shape) * dtype.itemsize
            packed = member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size
            if packed or len(shape) != 1 or needs != member.file_size:
                raise ValueError(f"{member.filename} of {member.file_size} bytes is packed, or not of shape {shape}")


def _padded(tokens: np.ndarray, vocab_size: int, order: int) -> np.ndarray:
    """Ids plus one, int32, with zeros after the end."""
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"tokens are {ids.dtype} {ids.shape}: they must be integers (N,)")
    if not 1 <= len(ids) < 2**31 - order or len(ids) < order:
        raise ValueError(f"{len(ids)} tokens: order {order} counts {order} to {2**31 - order - 1} tokens")
    if not 1 <= vocab_size < 2**31:
        raise ValueError(f"vocab_size is {vocab_size}: it must be 1 to {2**31 - 1}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token ids are {low} to {high}, outside 0 to {vocab_size - 1}: is it another tokeniser's?")
    padded = np.zeros(len(ids) + order, np.int32)
    padded[: len(ids)] = ids
    padded[: len(ids)] += 1
    return padded


def _checked_discounts(discounts: np.ndarray | None, order: int) -> list[np.ndarray | None]:
    if order < 1:
        raise ValueError(f"order is {order}: it must be at least 1")
    if discounts is None:
        return [None] * order
    rows = np.asarray(discounts, np.float64)
    if rows.shape != (order, 3):
        raise ValueError(f"discounts have shape {rows.shape}: order {order} needs ({order}, 3)")
    if not ((rows >= 0) & (rows <= (1, 2, 3))).all():
        raise ValueError(f"discounts {rows.tolist()}: each must be 0 to the count it is taken from (1, 2, 3)")
    return list(rows)


def _sorted_positions(padded: np.ndarray, length: int, vocab_size: int, order: int) -> np.ndarray:
    """Positions, int32, sorted by the `order` tokens that begin there: then equal n-grams of any length are neighbours.

    As many tokens as fit are packed into one 63-bit key.
    """
    bits = vocab_size.bit_length()
    keys = []
    for first in range(0, order, 63 // bits):
        key = np.zeros(length, np.int64)
        for n in range(first, min(order, first + 63 // bits)):
            key <<= bits
            key |= padded[n : n + length]
        keys.append(key)
    return (np.argsort(keys[0]) if len(keys) == 1 else np.lexsort(keys[::-1])).astype(np.int32)


def _discounted(
    counts: np.ndarray, siblings: np.ndarray, discounts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mass of each n-gram and rest of each context, both f32, from the counts of the contexts' children.

    A context without counts leaves everything to the next order.
    """
    taken = np.append(0.0, _estimate(counts) if discounts is None else discounts)[np.minimum(counts, 3)]
    contexts = len(siblings) - 1
    parent = np.repeat(np.arange(contexts, dtype=np.int32), np.diff(siblings))
    total = np.bincount(parent, counts, contexts)
    left = np.bincount(parent, taken, contexts)
    seen = total > 0
    rest = np.divide(left, total, out=np.ones(contexts), where=seen)
    mass = (counts - taken) / np.where(seen, total, 1.0)[parent]
    return mass.astype(np.float32), rest.astype(np.float32)


def _estimate(counts: np.ndarray) -> tuple[float, float, float] | np.ndarray:
    """Discounts of counts 1, 2 and 3 or more (Chen & Goodman 1998, eq. 26)."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not n1 * n2 * n3 * n4:
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return estimate if (estimate > 0).all() else FALLBACK


def _check_table(table: Table, where: str) -> None:
    """Raises ValueError unless the table can be searched without leaving its arrays, and holds probabilities."""

    def require(condition: bool | np.bool_, name: str, problem: str) -> None:
        if not condition:
            raise ValueError(f"{where}: {name} {problem}: count the n-grams again")

    order = table_order(table)
    names = {f"{kind}_{n}" for n in range(1, order) for kind in ("children", "mass", "rest")}
    names |= {f"tokens_{n}" for n in range(2, order + 1)}
    names |= {f"{kind}_{n}" for n in range(1, order + 1) for kind in ("top_mass", "top_rest")}
    require(order > 0 and set(table) == names, "the names of its arrays", f"are {sorted(table)}, of no table")
    vocab_size = entries = len(table["top_mass_1"])
    contexts = 1
    for n in range(1, order + 1):
        if n > 1:
            tokens, children = table[f"tokens_{n}"], table[f"children_{n - 1}"]
            expected = np.uint16 if vocab_size <= 2**16 else np.int32
            require(tokens.dtype == expected and tokens.ndim == 1, f"tokens_{n}", f"is {tokens.dtype} {tokens.shape}")
            entries = len(tokens)
            require(
                children.dtype == np.int32 and children.shape == (contexts + 1,) and children[0] == 0,
                f"children_{n - 1}",
                f"is {children.dtype} {children.shape}, expected int32 ({contexts + 1},) from 0",
            )
            sizes = np.diff(children)
            rises = (sizes >= 0).all() and children[-1] == entries and entries > 0
            require(rises, f"children_{n - 1}", f"does not rise to {entries}, the length of tokens_{n}")
            require(
                tokens.min() >= 0 and tokens.max() < vocab_size, f"tokens_{n}", f"has ids outside 0 to {vocab_size - 1}"
            )
            parent = np.repeat(np.arange(contexts, dtype=np.int32), sizes)
            sorted_ = (tokens[1:] > tokens[:-1]) | (parent[1:] != parent[:-1])
            require(sorted_.all(), f"tokens_{n}", "does not rise among the children of each parent")
        for kind, length in (("mass", entries), ("rest", contexts), ("top_mass", entries), ("top_rest", contexts)):
            name = f"{kind}_{n}"
            if name in table:
                array = table[name]
                fits = array.dtype == np.float32 and array.shape == (length,)
                require(fits, name, f"is {array.dtype} {array.shape}, expected float32 ({length},)")
                require(((array >= 0) & (array <= 1)).all(), name, "has numbers outside 0 to 1")
        contexts = entries
