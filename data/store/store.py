"""Tokens on disk: all ids of one split, where its documents start, what they are called. See `data.store.format`."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import write_file
from data.errors import DataError
from data.json_text import parse_json
from data.store.format import (
    ID_STARTS,
    IDS,
    MANIFEST,
    SCORES,
    STARTS,
    TOKENS,
    arrays,
    check_sizes,
    check_starts,
    digest,
    read_manifest,
)
from data.store.places import Folder, Remote, RemoteArray
from data.tokenizers.special_tokens import WithSpecials
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The ids of one split. It is pickled by its place: another process opens it anew."""

    folder: Path | str  # str: a URL
    manifest: dict[str, Any]
    tokens: Any  # (num_tokens,) uint16 or uint32: a read-only memory map; of a URL a `RemoteArray`: slices are read
    document_starts: np.ndarray  # (num_documents + 1,) int64
    scores: np.ndarray | None  # (num_documents,) float32; None where the source has none
    _place: Folder | Remote
    _ids: np.ndarray | RemoteArray
    _id_starts: np.ndarray | RemoteArray

    def __reduce__(self):
        return open_store, (self.folder,)

    @property
    def num_tokens(self) -> int:
        return self.manifest["num_tokens"]

    @property
    def num_documents(self) -> int:
        return self.manifest["num_documents"]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text (end-of-document ids stand for none)."""
        return self.manifest["num_bytes"]

    def document_id(self, document: int) -> str:
        """What the source calls document 0, 1, ... Raises DataError for one that is not there."""
        if not 0 <= document < self.num_documents:
            raise DataError(f"{self.folder} has documents 0 to {self.num_documents - 1}, not {document}")
        start, end = self._id_starts[document : document + 2]
        return self._ids[int(start) : int(end)].tobytes().decode("utf-8", "surrogatepass")


def open_store(folder: str | Path) -> TokenStore:
    """Opens a store in no time, whatever its size: files are mapped, not read.

    `folder` may be a URL that fsspec reads ("s3://bucket/store", "gs://…", "memory://…"): then document_starts and
    scores are read at once, tokens and ids by ranges when they are asked for. Raises DataError where sizes or manifest
    do not agree; `verify_store` looks at every byte.
    """
    place = Remote(str(folder)) if "://" in str(folder) else Folder(Path(folder))
    size = place.size(MANIFEST)
    if size is None:
        raise DataError(f"{folder} is not a token store: it has no {MANIFEST}")
    manifest = read_manifest(place.read(MANIFEST, 0, size), f"{place.path}/{MANIFEST}")
    found = arrays(manifest)
    check_sizes(manifest, {name: place.size(name) for name in found}, str(place.path))
    mapped = {name: place.array(name, dtype, length) for name, (dtype, length) in found.items()}
    # Plain views: slicing a memmap costs microseconds more. Of a URL, all is read.
    starts = np.asarray(mapped[STARTS][:])
    scores = np.asarray(mapped[SCORES][:]) if SCORES in mapped else None
    for name, end in ((STARTS, manifest["num_tokens"]), (ID_STARTS, manifest["num_id_bytes"])):
        check_starts(mapped[name][0], mapped[name][-1], end, f"{place.path}/{name}")
    return TokenStore(
        place.path, manifest, mapped[TOKENS], starts, scores, place, _ids=mapped[IDS], _id_starts=mapped[ID_STARTS]
    )


def verify_store(store: TokenStore) -> None:
    """Reads every byte, about 1 GB/s and core. Raises DataError, with the place, where one is not what was written."""
    chunk = store.manifest["chunk_bytes"]
    digests = [(name, store.manifest["digests"][name]) for name in arrays(store.manifest)]
    chunks = [(name, number * chunk, known) for name, of_file in digests for number, known in enumerate(of_file)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        found = threads.map(lambda one: _chunk_digest(store, one[0], one[1]), chunks)
        for (name, start, known), has in zip(chunks, found, strict=True):
            if has != known:
                threads.shutdown(wait=False, cancel_futures=True)
                raise DataError(
                    f"{store.folder}/{name} was changed: the {chunk:,} bytes from {start:,} on have the digest {has}, "
                    f"expected {known}; delete the folder to prepare it again"
                )


def _chunk_digest(store: TokenStore, name: str, start: int) -> str:
    dtype, length = arrays(store.manifest)[name]
    end = min(start + store.manifest["chunk_bytes"], length * dtype.itemsize)
    found = digest()
    for at in range(start, end, 2**22):
        found.update(store._place.read(name, at, min(at + 2**22, end)))
    return found.hexdigest()


def verify_changed(store: TokenStore) -> bool:
    """`verify_store` of a local store, unless its files have the sizes and times of the last time; whether it was done.

    What it saw is kept beside the store, in NAME.verified.json. Raises DataError as `verify_store`.
    """
    now = _sizes_and_times(store)
    with suppress(OSError, ValueError):  # no memory of it, or one that cannot be read: verify
        if parse_json(_memory(store).read_bytes()) == now:
            return False
    verify_store(store)
    with suppress(OSError):  # a cache that others own: verified at each start
        write_file(_memory(store), (json.dumps(now) + "\n").encode())
    return True


def record_provenance(store: TokenStore, provenance: dict[str, Any]) -> TokenStore:
    """The store, a local and verified one, with this provenance in its manifest, which is written if it says another.

    Raises DataError where it cannot be written.
    """
    if store.manifest["provenance"] == provenance:
        return store
    manifest = {**store.manifest, "provenance": provenance}
    try:
        write_file(Path(store.folder) / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        write_file(_memory(store), (json.dumps(_sizes_and_times(store)) + "\n").encode())
    except OSError as error:
        raise DataError(
            f"{store.folder} cannot be written ({error}), and records another language, licence or origin than the "
            "config says: make it writable, or set data.cache_dir to another folder"
        ) from error
    return dataclasses.replace(store, manifest=manifest)


def _memory(store: TokenStore) -> Path:
    folder = Path(store.folder)
    return folder.with_name(f"{folder.name}.verified.json")


def _sizes_and_times(store: TokenStore) -> dict[str, list[int]]:
    files = {name: (Path(store.folder) / name).stat() for name in (MANIFEST, *arrays(store.manifest))}
    return {name: [file.st_size, file.st_mtime_ns] for name, file in files.items()}


def check_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raises DataError for a store whose ids are another tokenizer's; special ids on top of the same one are fine."""
    while isinstance(tokenizer, WithSpecials):
        tokenizer = tokenizer.base
    made = store.manifest["tokenizer_fingerprint"]
    if made != tokenizer.fingerprint:
        raise DataError(
            f"{store.folder} holds ids of the tokenizer with fingerprint {made}, not of this {tokenizer.kind} one, "
            f"{tokenizer.fingerprint}: use that tokenizer, or build the store again"
        )
