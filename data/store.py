"""Tokens on disk: a memory map of all ids of one split, where its documents start, and a manifest of exact counts.

STORE/tokens.bin            ids, little-endian, uint16 (vocabulary of up to 65,536 ids) or uint32
STORE/document_starts.npy   int64 (documents + 1,): document d is tokens[starts[d]:starts[d + 1]]
STORE/manifest.json         counts and fingerprints, written last
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.atomic import new_folder, write_file
from data.errors import DataError
from data.tokenizer_checks import checked_ids
from data.tokenizers import Tokenizer

FORMAT_VERSION = 1
TOKENS, STARTS, MANIFEST = "tokens.bin", "document_starts.npy", "manifest.json"
_COUNTS = ("vocab_size", "num_tokens", "num_documents", "num_bytes")
_TEXTS = ("split", "tokenizer_fingerprint", "source_fingerprint", "tokens_blake2b")


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The ids of one split: `tokens` (num_tokens,) read-only memory map, `document_starts` (num_documents+1,) int64."""

    folder: Path
    manifest: dict
    tokens: np.ndarray
    document_starts: np.ndarray

    @property
    def num_tokens(self) -> int:
        return self.manifest["num_tokens"]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text (end-of-document ids stand for none)."""
        return self.manifest["num_bytes"]


def write_store(
    folder: str | Path,
    encoded: Iterable[tuple[np.ndarray, int]],
    *,
    tokenizer: Tokenizer,
    source_fingerprint: str,
    split: str,
) -> TokenStore:
    """Writes a store of documents, each given as its ids and the UTF-8 bytes of its text, and opens it.

    Each document is closed by the tokenizer's eos_id where it has one. The folder appears whole or not at all; one
    that another process put there meanwhile is used if it says the same. Raises DataError for ids outside the
    vocabulary, for no tokens at all, and for a folder that holds another store.
    """
    folder = Path(folder)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    with new_folder(folder) as temporary:
        starts, num_bytes, digest = _write_tokens(temporary / TOKENS, encoded, tokenizer, dtype)
        if starts[-1] == 0:
            raise DataError(f"the {split} split has {len(starts) - 1} documents and 0 tokens: nothing to store")
        manifest = {
            "format_version": FORMAT_VERSION,
            "split": split,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.name,
            "num_tokens": starts[-1],
            "num_documents": len(starts) - 1,
            "num_bytes": num_bytes,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "source_fingerprint": source_fingerprint,
            "tokens_blake2b": digest,
        }
        buffer = io.BytesIO()
        np.save(buffer, np.array(starts, np.int64), allow_pickle=False)
        write_file(temporary / STARTS, buffer.getvalue())
        write_file(temporary / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    store = open_store(folder)
    if store.manifest != manifest:
        differ = [key for key in manifest if manifest[key] != store.manifest.get(key)]
        raise DataError(f"{folder} already holds another store (different: {', '.join(differ)}): use another folder")
    return store


def _write_tokens(file: Path, encoded, tokenizer: Tokenizer, dtype: np.dtype) -> tuple[list[int], int, str]:
    """Writes all ids; returns where documents start (with the end), bytes of text, and the digest of the file."""
    close = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    starts, num_bytes, digest = [0], 0, _digest()
    with open(file, "wb") as out:
        for ids, text_bytes in encoded:
            document = checked_ids(np.append(ids, close), tokenizer.vocab_size).astype(dtype).tobytes()
            out.write(document)
            digest.update(document)
            starts.append(starts[-1] + len(document) // dtype.itemsize)
            num_bytes += text_bytes
        out.flush()
        os.fsync(out.fileno())
    return starts, num_bytes, digest.hexdigest()


def open_store(folder: str | Path) -> TokenStore:
    """Opens a store in no time, whatever its size. Raises DataError where sizes or manifest do not agree."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    _check_size(folder, TOKENS, manifest["num_tokens"] * dtype.itemsize)
    try:
        starts = np.load(folder / STARTS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder / STARTS} cannot be read ({error}): delete the folder to prepare it again") from error
    expected = manifest["num_documents"] + 1
    if starts.shape != (expected,) or starts.dtype != np.int64:
        raise DataError(f"{folder / STARTS} is {starts.dtype} {starts.shape}, expected int64 ({expected},)")
    if starts[0] != 0 or starts[-1] != manifest["num_tokens"] or (np.diff(starts) < 0).any():
        raise DataError(
            f"{folder / STARTS} does not rise from 0 to {manifest['num_tokens']} (found {starts[0]} to {starts[-1]})"
        )
    return TokenStore(folder, manifest, np.memmap(folder / TOKENS, dtype, mode="r"), starts)


def verify_store(store: TokenStore) -> None:
    """Reads every token (about 1 GB/s). Raises DataError if a bit changed since the store was written."""
    digest = _digest()
    for start in range(0, store.num_tokens, 2**22):
        digest.update(store.tokens[start : start + 2**22].tobytes())
    found, expected = digest.hexdigest(), store.manifest["tokens_blake2b"]
    if found != expected:
        raise DataError(
            f"{store.folder / TOKENS} was changed: its digest is {found}, expected {expected}; "
            "delete the folder to prepare it again"
        )


def _digest():
    return hashlib.blake2b(digest_size=16)


def _read_manifest(folder: Path) -> dict:
    file = folder / MANIFEST
    if not file.is_file():
        raise DataError(f"{folder} is not a token store: it has no {MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}): delete the folder to prepare it again") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{file} holds a JSON {type(manifest).__name__}, not an object")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{file}: format {manifest.get('format_version')!r}, this version reads {FORMAT_VERSION}")
    for key in _COUNTS:
        if type(manifest.get(key)) is not int or manifest[key] < 0:
            raise DataError(f"{file}: {key} is {manifest.get(key)!r}, expected an integer of 0 or more")
    for key in _TEXTS:
        if not isinstance(manifest.get(key), str):
            raise DataError(f"{file}: {key} is {manifest.get(key)!r}, expected a string")
    expected = "uint16" if manifest["vocab_size"] <= 2**16 else "uint32"
    if manifest.get("dtype") != expected:
        raise DataError(f"{file}: dtype is {manifest.get('dtype')!r}, expected {expected!r}")
    return manifest


def _check_size(folder: Path, name: str, expected: int) -> None:
    file = folder / name
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        is_found = "is missing" if found is None else f"has {found} bytes"
        raise DataError(f"{file} {is_found}, expected {expected} bytes: delete the folder to prepare it again")
    if expected == 0:
        raise DataError(f"{file} holds 0 tokens")
