"""The layout of a token store: its files, their types and sizes, the manifest, and the digests of their chunks.

STORE/tokens.bin              ids, uint16 (a vocabulary of up to 65,536 ids) or uint32
STORE/document_starts.bin     int64 (documents + 1,): document d is tokens[starts[d]:starts[d + 1]]
STORE/document_ids.bin        the names of all documents, UTF-8, one behind the other
STORE/document_id_starts.bin  int64 (documents + 1,): the name of d is ids[id_starts[d]:id_starts[d + 1]]
STORE/document_scores.bin     float32 (documents,), only where the source has scores
STORE/manifest.json           counts, fingerprints, provenance and digests, written last

All numbers are little-endian, without headers: `np.fromfile(file, dtype)` reads them.
"""

import hashlib
from typing import Any

import numpy as np

from data.errors import DataError
from data.json_text import parse_json

FORMAT_VERSION = 2
CHUNK_BYTES = 2**26  # of a file under one digest: verification names the broken one, and takes several at once
TOKENS, STARTS, MANIFEST = "tokens.bin", "document_starts.bin", "manifest.json"
IDS, ID_STARTS, SCORES = "document_ids.bin", "document_id_starts.bin", "document_scores.bin"
_COUNTS = ("vocab_size", "num_tokens", "num_documents", "num_bytes", "num_id_bytes")
_KINDS = {"split": str, "tokenizer_fingerprint": str, "source_fingerprint": str, "has_scores": bool}
_KINDS |= {"provenance": dict, "chunk_bytes": int, "digests": dict}
_AGAIN = "delete the folder to prepare it again"


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def arrays(manifest: dict[str, Any]) -> dict[str, tuple[np.dtype, int]]:
    """Type and length of the array in each file of a store."""
    documents = manifest["num_documents"]
    found = {
        TOKENS: (token_dtype(manifest["vocab_size"]), manifest["num_tokens"]),
        STARTS: (np.dtype("<i8"), documents + 1),
        IDS: (np.dtype("u1"), manifest["num_id_bytes"]),
        ID_STARTS: (np.dtype("<i8"), documents + 1),
    }
    return found | ({SCORES: (np.dtype("<f4"), documents)} if manifest["has_scores"] else {})


def digest():
    return hashlib.blake2b(digest_size=16)


def read_manifest(content: bytes, name: str) -> dict[str, Any]:
    """The manifest, checked. `name`: what errors call it. Raises DataError where it is none of this format."""
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}): {_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{name} holds a JSON {type(manifest).__name__}, not an object")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{name}: format {manifest.get('format_version')!r}, this version reads {FORMAT_VERSION}: build the store "
            "again from its source (tessera data build)"
        )
    for key in _COUNTS:
        if type(manifest.get(key)) is not int or manifest[key] < 0:
            raise DataError(f"{name}: {key} is {manifest.get(key)!r}, expected an integer of 0 or more")
    for key, kind in _KINDS.items():
        if type(manifest.get(key)) is not kind:
            raise DataError(f"{name}: {key} is {manifest.get(key)!r}, expected a {kind.__name__}")
    expected = token_dtype(manifest["vocab_size"]).name
    if manifest.get("dtype") != expected:
        raise DataError(f"{name}: dtype is {manifest.get('dtype')!r}, expected {expected!r}")
    if manifest["num_tokens"] == 0:
        raise DataError(f"{name}: the store holds 0 tokens")
    _check_digests(manifest, name)
    return manifest


def _check_digests(manifest: dict[str, Any], name: str) -> None:
    chunk = manifest["chunk_bytes"]
    if chunk < 1:
        raise DataError(f"{name}: chunk_bytes is {chunk}, expected 1 or more")
    for file, (dtype, length) in arrays(manifest).items():
        found, expected = manifest["digests"].get(file), -(-length * dtype.itemsize // chunk)
        if not isinstance(found, list) or len(found) != expected or not all(isinstance(one, str) for one in found):
            raise DataError(f"{name}: {file} needs a list of {expected} digests: {_AGAIN}")


def check_sizes(manifest: dict[str, Any], sizes: dict[str, int | None], name: str) -> None:
    """Raises DataError for a file that is missing (None) or has other bytes than the manifest says."""
    for file, (dtype, length) in arrays(manifest).items():
        found, expected = sizes[file], length * dtype.itemsize
        if found != expected:
            is_found = "is missing" if found is None else f"has {found} bytes"
            raise DataError(f"{name}/{file} {is_found}, expected {expected} bytes: {_AGAIN}")


def check_starts(first: int, last: int, end: int, name: str) -> None:
    """Raises DataError for starts that do not go from 0 to `end`; what lies between is under the digests."""
    if first != 0 or last != end:
        raise DataError(f"{name} does not rise from 0 to {end} (found {first} to {last}): {_AGAIN}")
