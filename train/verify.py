"""What is in a checkpoint, and whether it is still what was written: read leaf by leaf, in parts of bounded size.

It needs no mesh and none of the network, so that a laptop can read what a pod wrote, from a disk or from a bucket.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from data.json_text import parse_json
from train.checkpoint import ITEMS
from train.checksum import digest, part_sums
from train.restore import DAMAGE, LEAVES, METADATA, TOKENIZER, CheckpointError, is_damage, read_description

# A part is in memory as it is stored, decoded, and copied together, while the next one is being read.
PART_BYTES = 2**25

Box = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint; opened, not read."""

    item: str  # "params" or "training"
    path: str  # /decoder/norm/scale
    store: ts.TensorStore

    @property
    def name(self) -> str:
        return self.item + self.path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one leaf."""

    name: str
    nbytes: int
    problem: str = ""  # empty: the leaf is what was written, or nobody recorded what that was
    verified: bool = False  # it was compared with a recorded checksum


def read_about(step: epath.Path) -> dict[str, Any]:
    """What the checkpoint in the folder `step` says of itself: `tokenizer`, `written` (seconds since 1970), and in
    `recorded` shape, type and checksum of each leaf by its name, `params/decoder/norm/scale`.

    Raises:
        CheckpointError: it is not what was saved.
        OSError: the disk or the network fails.
    """
    try:
        about = read_description(step)
        recorded = {name.strip("/"): kind for name, kind in about.get(LEAVES, {}).items()}
        written = parse_json((step / METADATA).read_bytes())["commit_timestamp_nsecs"]
        return {
            "tokenizer": about.get(TOKENIZER, ""),
            "recorded": recorded,
            "written": written / 1e9 if written else None,
        }
    except (OSError, *DAMAGE) as error:
        raise _unreadable(f"{step / METADATA}", error) from error


def read_leaves(step: epath.Path) -> list[Leaf]:
    """The arrays of the checkpoint in the folder `step`, item by item.

    Raises:
        CheckpointError: the folder does not say which arrays it has, or one of them cannot be opened.
        OSError: the disk or the network fails.
    """
    return [leaf for item in ITEMS if (step / item).is_dir() for leaf in _item_leaves(step / item, item)]


def verify(
    step: epath.Path,
    recorded: Mapping[str, str],
    part_bytes: int = PART_BYTES,
    report: Callable[[int], None] = lambda count: None,
) -> Iterator[Verdict]:
    """Reads every leaf of the checkpoint in the folder `step`, in parts of at most `part_bytes`.

    A chunk of the file is decoded as a whole: where chunks are larger than `part_bytes`, one of them is in memory too.

    Args:
        recorded: shape, type and checksum of each leaf, as `read_about` has them; empty where none were recorded.
        report: called with the number of bytes of each part that was read.

    Raises:
        CheckpointError: as `read_leaves`.
        OSError: the disk or the network fails, which says nothing of the files.
    """
    leaves = read_leaves(step)
    for leaf in leaves:
        wanted = recorded.get(leaf.name)
        try:
            found = f"{leaf.shape} {leaf.dtype.name} {checksum(leaf, part_bytes, report)}"
        except ValueError as error:  # of tensorstore: a file is missing, cut short, or no longer what its format says
            if not is_damage(error):
                raise _unreadable(f"{leaf.name} of {step}", error) from error
            yield Verdict(leaf.name, leaf.nbytes, f"cannot be read: {_first_line(error)}")
            continue
        if wanted not in (found, None):
            yield Verdict(leaf.name, leaf.nbytes, f"{wanted} was recorded, {found} was read", True)
        elif recorded and wanted is None:
            yield Verdict(leaf.name, leaf.nbytes, "no checksum was recorded for it, as there is for others")
        else:
            yield Verdict(leaf.name, leaf.nbytes, verified=wanted is not None)
    for name in sorted(recorded.keys() - {leaf.name for leaf in leaves}):
        yield Verdict(name, 0, "its checksum was recorded, and the leaf is missing")


def checksum(leaf: Leaf, part_bytes: int = PART_BYTES, report: Callable[[int], None] = lambda count: None) -> str:
    """The checksum of one leaf, as `train.checksum.checksums` has it. Raises ValueError where it cannot be read."""
    total = np.zeros(2, np.uint32)
    with jax.default_device(jax.devices("cpu")[0]):
        for box, part in _parts(leaf.store, part_bytes):
            start = np.array([one.start % 2**32 for one in box], np.uint32)
            total += np.asarray(_part_sums(part, start, leaf.shape))
            report(part.nbytes)
    return digest(total)


def part_shape(shape: Sequence[int], chunk: Sequence[int], itemsize: int, part_bytes: int) -> tuple[int, ...]:
    """The shape of the parts in which an array of `shape` is read: as many whole chunks, or as much of one, as fits."""
    part = [max(1, min(sizes)) for sizes in zip(shape, chunk, strict=True)]
    limit = max(1, part_bytes // itemsize)
    if math.prod(part) > limit:
        for axis in range(len(part)):
            part[axis] = max(1, part[axis] * limit // math.prod(part)) if math.prod(part) > limit else part[axis]
    else:
        for axis in reversed(range(len(part))):
            part[axis] = max(1, min(shape[axis], part[axis] * (limit // math.prod(part))))
    return tuple(part)


def _item_leaves(folder: epath.Path, item: str) -> list[Leaf]:
    """What Orbax wrote: `_METADATA` names the arrays, each a Zarr array in one key-value store (OCDBT)."""
    try:
        described = parse_json((folder / "_METADATA").read_bytes())
        entries = described["tree_metadata"].values()
        paths = [
            tuple(key["key"] for key in entry["key_metadata"])
            for entry in entries
            if not entry["value_metadata"].get("skip_deserialize")
        ]
        shared = ts.Context({"cache_pool": {"total_bytes_limit": PART_BYTES}})  # what all of them look up, above all
        opening = [ts.open(_spec(folder, path, described), context=shared, open=True, read=True) for path in paths]
        stores = [future.result() for future in opening]
    except (OSError, *DAMAGE) as error:
        raise _unreadable(folder.as_posix(), error) from error
    return [Leaf(item, "".join(f"/{key}" for key in path), store) for path, store in zip(paths, stores, strict=True)]


def _spec(folder: epath.Path, path: Sequence[str], described: Mapping[str, Any]) -> dict[str, Any]:
    url, key = folder.as_posix(), ".".join(path)
    if "://" not in url:
        url = f"file://{folder.resolve().as_posix()}"
    if described["use_ocdbt"]:
        store: Any = {"driver": "ocdbt", "base": f"{url}/", "path": f"{key}/"}
    else:
        store = f"{url}/{key}/"
    # Zarr reads a chunk that is not there as zeros. Orbax writes all of them, zeros too, and says so.
    complete = described.get("store_array_data_equal_to_fill_value", False)
    driver = {"driver": "zarr3" if described.get("use_zarr3") else "zarr", "kvstore": store}
    return {**driver, "fill_missing_data_reads": not complete}


def _parts(store: ts.TensorStore, part_bytes: int) -> Iterator[tuple[Box, np.ndarray]]:
    """All parts of an array, with where they lie. The next one is read while the caller works on this one."""
    shape, written = tuple(store.shape), store.chunk_layout.read_chunk.shape or tuple(store.shape)
    chunk = [most or size for size, most in zip(shape, written, strict=True)]
    itemsize = store.dtype.numpy_dtype.itemsize
    part = part_shape(shape, chunk, itemsize, part_bytes)
    if math.prod(chunk) > math.prod(part):  # kept for all its parts, which follow each other: it is decoded once
        kept = ts.Context({"cache_pool": {"total_bytes_limit": 2 * math.prod(chunk) * itemsize}})
        store = ts.open(store.spec(), context=kept, open=True, read=True).result()
    whole = tuple(slice(0, size) for size in shape)
    blocks = _boxes(whole, [max(sizes) for sizes in zip(part, chunk, strict=True)])
    reading = ((box, store[box].read()) for block in blocks for box in _boxes(block, part))
    now = next(reading, None)
    while now is not None:
        (box, future), now = now, next(reading, None)
        yield box, np.asarray(future.result())


def _boxes(whole: Box, size: Sequence[int]) -> Iterator[Box]:
    """A box cut into boxes of at most `size`, in the order of memory."""
    cuts = []
    for one, most in zip(whole, size, strict=True):
        cuts.append([slice(a, min(a + most, one.stop)) for a in range(one.start, one.stop, most)])
    return itertools.product(*cuts)


@functools.partial(jax.jit, static_argnums=2)
def _part_sums(part: Any, start: Any, shape: tuple[int, ...]) -> jax.Array:
    return part_sums(part, tuple(start), shape)


def _unreadable(what: str, error: Exception) -> Exception:
    """What to raise for an error of reading: about the files where they are damaged, else about what holds them."""
    kind = CheckpointError if is_damage(error) else OSError
    return kind(f"{what} cannot be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Without what tensorstore was asked for, which is long."""
    return (str(error).partition(" [tensorstore_spec")[0].splitlines() or [type(error).__name__])[0]
