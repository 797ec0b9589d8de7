"""Where a store lies: a folder of this machine, mapped into memory, or a URL, read by ranges."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError

BLOCK_BYTES = 2**16  # of a remote array read at once: a request takes longer than they do, also for a row of 2 KB
_BLOCKS = 256  # kept of each remote array


class Folder:
    """The files of a folder."""

    def __init__(self, path: Path):
        self.path = path

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def read(self, name: str, start: int, end: int) -> bytes:
        with open(self.path / name, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def array(self, name: str, dtype: np.dtype, length: int) -> np.ndarray:
        """A read-only memory map."""
        # mmap does not know files of no bytes.
        return np.memmap(self.path / name, dtype, "r", shape=(length,)) if length else np.empty(0, dtype)


class Remote:
    """The files below a URL ("s3://bucket/store", "memory://store") that fsspec can read."""

    def __init__(self, url: str):
        self.path = url.rstrip("/")
        self._files, self._root = _file_system(self.path)

    def size(self, name: str) -> int | None:
        try:
            return self._files.size(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int, end: int) -> bytes:
        try:
            return self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
        except OSError as error:
            raise DataError(f"{self.path}/{name}: bytes {start} to {end} could not be read: {error}") from error

    def array(self, name: str, dtype: np.dtype, length: int) -> "RemoteArray":
        return RemoteArray(self, name, dtype, length)


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # slow to import, and only needed here

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:  # says which package reads this kind of URL
        raise DataError(f"{url} cannot be read here: {error}") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be read: {error}") from error


class RemoteArray:
    """A one-dimensional array that is read by ranges: `array[a:b]` is a numpy array, `array[i]` a number of it.

    Short slices go through blocks of 64 KiB, of which the latest 256 are kept; long ones are one request each.
    """

    def __init__(self, place: Remote, name: str, dtype: np.dtype, length: int):
        self.dtype, self.shape, self.ndim, self.size = dtype, (length,), 1, length
        self._place, self._name = place, name
        self._block = functools.lru_cache(_BLOCKS)(self._read_block)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: slice | int) -> Any:
        if not isinstance(at, slice):
            number = range(self.size)[at]
            return self._read(number, number + 1)[0]
        start, end, step = at.indices(self.size)
        if step != 1:
            raise DataError(f"{self._place.path}/{self._name} is read in order: slices of step {step} are not")
        return self._read(start, max(start, end))

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise DataError(
            f"{self._place.path}/{self._name} is remote ({self.size * self.dtype.itemsize:,} bytes): read slices of "
            "it, or copy the store to this machine"
        )

    def _read(self, start: int, end: int) -> np.ndarray:
        first, last = start * self.dtype.itemsize, end * self.dtype.itemsize
        blocks = range(first // BLOCK_BYTES, -(-last // BLOCK_BYTES))
        if len(blocks) > 4:
            content = self._place.read(self._name, first, last)
        else:
            whole = b"".join(map(self._block, blocks))
            offset = first - blocks.start * BLOCK_BYTES
            content = whole[offset : offset + last - first]
        if len(content) != last - first:
            raise DataError(
                f"{self._place.path}/{self._name}: bytes {first} to {last} gave {len(content)} bytes: it was cut"
            )
        return np.frombuffer(content, self.dtype)

    def _read_block(self, number: int) -> bytes:
        end = min((number + 1) * BLOCK_BYTES, self.size * self.dtype.itemsize)
        return self._place.read(self._name, number * BLOCK_BYTES, end)
