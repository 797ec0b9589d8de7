"""safetensors files, read without trust and written tensor by tensor.

A file is an 8-byte little-endian length, a JSON header of so many bytes that gives each tensor its type, shape and
byte range, and the bytes (https://huggingface.co/docs/safetensors). Nothing in it can run code. What it says about
itself may still be wrong, so each number is checked against the file before a byte is mapped.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(np.bool_),
}
Declared = Mapping[str, tuple[np.dtype, tuple[int, ...]]]  # type and shape of each tensor

_MOST_HEADER = 100_000_000  # bytes, as in the reference implementation
_MOST_DIMENSIONS, _MOST_SIZE = 16, 2**48


class WeightsError(ValueError):
    """Weights or their description that cannot be used: the cause in one line, with the way out."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `shape` numbers of type `dtype` from byte `offset` of the file at `path`."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """A read-only view of the file. Its pages are given back when the last view of it is dropped."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name.

    Raises:
        WeightsError: a header that is too long, is not what the format says, or does not cover the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER):
            raise WeightsError(f"{path}: a header of {length} bytes in a file of {size}: it is cut off or damaged")
        header = parse_json(file.read(length), path)
    start, tensors, ranges = 8 + length, {}, []
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{path}: __metadata__ is not a map of strings: the file is damaged")
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(entry, f"{path}: tensor {name!r:.80}")
        tensors[name] = Tensor(path, dtype, shape, start + begin)
        ranges.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(ranges):
        if begin != reached:
            raise WeightsError(f"{path}: tensor {name!r:.80} begins at byte {begin}, not {reached}: gap or overlap")
        reached = end
    if start + reached != size:
        raise WeightsError(f"{path}: {size - start} bytes of data where the header describes {reached}: get it again")
    return tensors


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys or constants that JSON does not have; WeightsError for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)[:80]!r}")
        return made

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: unreadable JSON ({str(error)[:150]}): the file is damaged") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: the JSON is no object but a {type(value).__name__}: the file is damaged")
    return value


def read_json(path: Path, most: int = _MOST_HEADER) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes; WeightsError for anything else."""
    if not path.is_file() or path.stat().st_size > most:
        raise WeightsError(f"{path}: " + (f"more than {most} bytes" if path.is_file() else "there is no such file"))
    return parse_json(path.read_bytes(), path)


def write_file(path: Path, tensors: Declared, compute: Callable[[str], np.ndarray]) -> None:
    """Writes tensors of the declared types and shapes, calling `compute(name)` for one at a time."""
    replace_file(path, _file_bytes(tensors, compute))


def replace_file(path: Path, parts: Iterator[Any] | list[bytes]) -> None:
    """Writes `parts` to a temporary file beside `path` and moves it there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _file_bytes(tensors: Declared, compute: Callable[[str], np.ndarray]) -> Iterator[Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    yield len(text).to_bytes(8, "little") + text
    for name, declared in tensors.items():
        array = np.asarray(compute(name), order="C")
        assert (array.dtype, array.shape) == declared, (name, array.dtype, array.shape, declared)
        yield array.reshape(-1).view(np.uint8)


def _entry(entry: Any, what: str) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{what}: needs exactly dtype, shape and data_offsets, has {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(
            f"{what}: type {str(dtype)[:20]!r} is none of {', '.join(DTYPES)}: convert it to one of them"
        )
    if not _sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise WeightsError(f"{what}: {str(shape)[:80]} is no shape: the file is damaged")
    if 0 in shape and math.prod(filter(None, shape)) > _MOST_SIZE:  # numpy makes no such array, though it is empty
        raise WeightsError(f"{what}: {str(shape)[:80]} is no shape: the file is damaged")
    if not _sizes(offsets) or len(offsets) != 2:
        raise WeightsError(f"{what}: {str(offsets)[:80]} is no byte range: the file is damaged")
    if offsets[1] - offsets[0] != (need := math.prod(shape) * DTYPES[dtype].itemsize):
        raise WeightsError(f"{what}: {dtype} {shape} takes {need} bytes, its range {offsets} is another length")
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _MOST_SIZE for size in value)
