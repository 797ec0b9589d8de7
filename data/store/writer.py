"""Writing a token store: files that only grow, batch by batch, so that a killed build can go on where it was."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import write_file
from data.errors import DataError
from data.store.format import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    ID_STARTS,
    IDS,
    MANIFEST,
    SCORES,
    STARTS,
    TOKENS,
    digest,
    token_dtype,
)
from data.tokenizers.checks import checked_ids
from data.tokenizers.tokenizer import Tokenizer


class StoreWriter:
    """The files of one split in a folder; `append` adds documents, `finish` writes the manifest.

    `state()` is what a journal keeps; a writer that is given it takes up the files as they were then. Raises DataError
    where they are not what the state says.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, split: str, *, has_scores: bool, state: dict[str, Any] | None = None
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._split, self._tokenizer, self._has_scores = folder, split, tokenizer, has_scores
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._close = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], np.int32)
        kept = state["files"] if state else {}
        names = (TOKENS, STARTS, IDS, ID_STARTS, *([SCORES] if has_scores else []))
        self._files = {name: _GrowingFile(folder / name, *kept.get(name, (0, ""))) for name in names}
        self.num_bytes = state["num_bytes"] if state else 0
        if not state:
            for name in (STARTS, ID_STARTS):
                self._files[name].append(np.zeros(1, "<i8").tobytes())

    @property
    def num_tokens(self) -> int:
        return self._files[TOKENS].size // self._dtype.itemsize

    @property
    def num_documents(self) -> int:
        return self._files[STARTS].size // 8 - 1

    def append(
        self,
        encoded: Sequence[np.ndarray],
        ids: Sequence[str],
        num_bytes: int,
        scores: Sequence[float | None] | None = None,
    ) -> None:
        """Adds documents: the tokens of each, their ids and scores, and the UTF-8 bytes of all their texts.

        Each is closed by the tokenizer's eos_id where it has one. Raises DataError for tokens outside the vocabulary,
        and for a score that float32 does not hold.
        """
        if len(ids) != len(encoded):
            raise DataError(f"{len(encoded)} documents with {len(ids)} ids: each needs one")
        tokens = np.concatenate([part for document in encoded for part in (document, self._close)] or [self._close[:0]])
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._tokenizer.vocab_size:
            self._refuse(encoded, ids)
        if self._has_scores:
            self._files[SCORES].append(_scores(scores or [None] * len(ids), ids).tobytes())
        names = [id.encode("utf-8", "surrogatepass") for id in ids]
        self._grow(STARTS, self.num_tokens, [len(document) + len(self._close) for document in encoded])
        self._grow(ID_STARTS, self._files[IDS].size, list(map(len, names)))
        self._files[IDS].append(b"".join(names))
        self._files[TOKENS].append(tokens.astype(self._dtype).tobytes())
        self.num_bytes += num_bytes

    def _grow(self, starts: str, first: int, lengths: list[int]) -> None:
        self._files[starts].append((first + np.cumsum(lengths, dtype="<i8")).tobytes())

    def _refuse(self, encoded: Sequence[np.ndarray], ids: Sequence[str]) -> None:
        for document, id in zip(encoded, ids, strict=True):
            try:
                checked_ids(document, self._tokenizer.vocab_size)
            except DataError as error:
                raise DataError(f"document {id!r}: {error}") from error

    def state(self) -> dict[str, Any]:
        """What is written so far, in JSON's types: a journal that holds it is true as soon as this returns."""
        return {"num_bytes": self.num_bytes, "files": {name: file.state() for name, file in self._files.items()}}

    def finish(self, *, source_fingerprint: str, provenance: dict[str, Any]) -> dict[str, Any]:
        """Puts all on disk (fsync), the manifest last; the manifest. Raises DataError where there are no tokens."""
        if self.num_tokens == 0:
            raise DataError(
                f"the {self._split} split has {self.num_documents} documents and 0 tokens: nothing to store"
            )
        for file in self._files.values():
            file.close()
        manifest = {
            "format_version": FORMAT_VERSION,
            "split": self._split,
            "vocab_size": self._tokenizer.vocab_size,
            "dtype": self._dtype.name,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "num_id_bytes": self._files[IDS].size,
            "has_scores": self._has_scores,
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "source_fingerprint": source_fingerprint,
            "provenance": provenance,
            "chunk_bytes": CHUNK_BYTES,
            "digests": {name: file.digests() for name, file in self._files.items()},
        }
        write_file(self._folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        return manifest


def _scores(scores: Sequence[float | None], ids: Sequence[str]) -> np.ndarray:
    for score, id in zip(scores, ids, strict=True):
        if score is None:
            raise DataError(f"document {id!r} has no score, where each needs one")
    with np.errstate(over="ignore"):  # what does not fit is refused below
        array = np.array(scores, "<f4")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        at = int(bad[0])
        raise DataError(f"document {ids[at]!r} has the score {scores[at]}, which float32 does not hold")
    return array


class _GrowingFile:
    """A file that only grows, and the digest of each chunk of it.

    It begins with the `size` bytes that are there, less what was written behind them. Raises DataError if their
    digests do not make `known`.
    """

    def __init__(self, path: Path, size: int = 0, known: str = ""):
        self._file = open(path, "r+b" if size else "wb")  # noqa: SIM115 (`close` ends it)
        self._digests: list[str] = []
        self._open, self.size = digest(), 0
        while self.size < size and (content := self._file.read(min(2**22, size - self.size))):
            self._count(content)
        if self.size != size or (size and self.state()[1] != known):
            raise DataError(f"{path} is damaged: its first {size} bytes are not those that were written")
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, content: bytes) -> None:
        self._file.write(content)
        self._count(content)

    def _count(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            part, view = view[: CHUNK_BYTES - self.size % CHUNK_BYTES], view[CHUNK_BYTES - self.size % CHUNK_BYTES :]
            self._open.update(part)
            self.size += len(part)
            if self.size % CHUNK_BYTES == 0:
                self._digests.append(self._open.hexdigest())
                self._open = digest()

    def digests(self) -> list[str]:
        return [*self._digests, self._open.hexdigest()] if self.size % CHUNK_BYTES else list(self._digests)

    def state(self) -> tuple[int, str]:
        """Bytes written, and one digest of all their chunks; they are with the operating system when this returns."""
        self._file.flush()
        whole = digest()
        whole.update("".join(self.digests()).encode())
        return self.size, whole.hexdigest()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
