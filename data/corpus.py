"""From a source to token stores: read, split, train or load the tokenizer, tokenise once, reuse ever after."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from data.atomic import new_folder
from data.config import DataConfig
from data.errors import DataError
from data.sentencepiece_training import TRAINING_VERSION
from data.sources import Document, read_documents
from data.split import HELD_OUT, TRAIN, is_held_out, split_by_document, split_tail, tail_start
from data.store import FORMAT_VERSION, TokenStore, open_store, verify_store, write_store
from data.tokenizers import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

_BATCH_CHARACTERS = 4_000_000  # text tokenised at once: enough to keep all cores busy


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: TokenStore
    held_out: TokenStore
    fingerprint: str  # changes with any byte, name or order of the documents, the split, and the tokenizer


@dataclass(frozen=True)
class _Survey:
    """What one reading of the source tells."""

    fingerprint: str
    num_documents: int
    num_held_out: int  # documents, if the split is by document
    num_characters: int
    num_bytes: int


def prepare(config: DataConfig, report: Callable[[str], object] = print) -> Corpus:
    """The tokenizer and the two token stores of `config`, made once in `cache_dir` and reused while nothing changes.

    The source is read and hashed every time, so a changed corpus is never mistaken for the old one; stores that are
    reused are checked bit by bit. Memory stays at a few documents; processes may prepare the same corpus at once.
    A sentencepiece tokenizer is trained on the training split only; a character tokenizer knows all characters.
    `report` gets a short line about each stage. Raises DataError for all that is wrong with the data.
    """
    started = time.perf_counter()
    survey = _read_survey(config)
    size = f"{survey.num_documents:,} documents, {survey.num_bytes / 1e6:.1f} MB"
    report(f"data: {size} of {config.path} ({_since(started)})")
    tokenizer = _tokenizer(config, survey, report)
    key = _digest(FORMAT_VERSION, survey.fingerprint, config.held_out, config.held_out_by, tokenizer.fingerprint)
    train, held_out = (_store(config, survey, tokenizer, key, split, report) for split in (TRAIN, HELD_OUT))
    return Corpus(tokenizer, train, held_out, fingerprint=key)


def _read_survey(config: DataConfig) -> _Survey:
    hasher = hashlib.blake2b(digest_size=16)
    num_documents = num_held_out = num_characters = num_bytes = 0
    for document in _hashed(_documents(config), hasher):
        num_documents += 1
        num_held_out += is_held_out(document.text, config.held_out)
        num_characters += len(document.text)
        num_bytes += len(document.text.encode("utf-8"))
    survey = _Survey(hasher.hexdigest(), num_documents, num_held_out, num_characters, num_bytes)
    _check_split(config, survey)
    return survey


def _documents(config: DataConfig) -> Iterator[Document]:
    (part,) = config.parts.values()
    return read_documents(part.source)


def _hashed(documents: Iterable[Document], hasher) -> Iterator[Document]:
    """Passes documents on; `hasher` sees ids, texts and their lengths, so that no two corpora look the same to it."""
    for document in documents:
        for content in (document.id.encode("utf-8", "surrogateescape"), document.text.encode("utf-8")):
            hasher.update(len(content).to_bytes(8, "little"))
            hasher.update(content)
        yield document


def _check_split(config: DataConfig, survey: _Survey) -> None:
    documents, held_out = survey.num_documents, survey.num_held_out
    if config.held_out_by == "tail":
        start = tail_start(survey.num_characters, config.held_out)
        if not 0 < start < survey.num_characters:
            raise DataError(
                f"a held_out of {config.held_out} leaves {start} of {survey.num_characters} characters to train on and "
                f"{survey.num_characters - start} to hold out: both need 1 or more"
            )
    elif documents == 1:
        raise DataError(
            f"{config.path} is 1 document, which cannot be split by document: use held_out_by='tail', or set "
            "document_separator to the string between its documents"
        )
    elif not 0 < held_out < documents:
        raise DataError(
            f"with held_out {config.held_out}, {held_out} of {documents} documents of {config.path} fall into the "
            "held-out split, and both splits need 1 or more: use held_out_by='tail', or another held_out"
        )


def _split(config: DataConfig, survey: _Survey, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    if config.held_out_by == "document":
        return split_by_document(documents, config.held_out)
    return split_tail(documents, tail_start(survey.num_characters, config.held_out))


def _tokenizer(config: DataConfig, survey: _Survey, report) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer.train(document.text for document in _documents(config))
    if config.tokenizer != "sentencepiece":
        return load_tokenizer(config.tokenizer)
    version = (sentencepiece.__version__, TRAINING_VERSION)  # others may learn other pieces
    key = _digest(survey.fingerprint, config.held_out, config.held_out_by, config.tokenizer_vocab, version)
    folder = _cache(config) / "tokenizers" / key
    if folder.is_dir():
        report(f"data: tokenizer reused from {folder}")
    else:
        started = time.perf_counter()
        train = (d.text for side, d in _split(config, survey, _documents(config)) if side == TRAIN)
        with new_folder(folder) as temporary:
            SentencePieceTokenizer.train(train, config.tokenizer_vocab).save(temporary)
        report(f"data: sentencepiece of {config.tokenizer_vocab:,} ids trained ({_since(started)})")
    # Also the process that trained reads it back: where two raced, both go on with the same one.
    return load_tokenizer(folder)


def _store(config: DataConfig, survey: _Survey, tokenizer: Tokenizer, key: str, split: str, report) -> TokenStore:
    folder = _cache(config) / "stores" / key / split
    started = time.perf_counter()
    if folder.is_dir():
        store = open_store(folder)
        verify_store(store)
        done = "reused"
    else:
        encoded = _encode(_documents_of(split, config, survey), tokenizer)
        store = write_store(folder, encoded, tokenizer=tokenizer, source_fingerprint=survey.fingerprint, split=split)
        done = "tokenised"
    counts = f"{store.manifest['num_documents']:,} documents, {store.num_tokens:,} tokens"
    report(f"data: {split}: {counts}, {store.num_bytes / store.num_tokens:.2f} bytes/token, {done} ({_since(started)})")
    return store


def _documents_of(split: str, config: DataConfig, survey: _Survey) -> Iterator[Document]:
    hasher = hashlib.blake2b(digest_size=16)
    for side, document in _split(config, survey, _hashed(_documents(config), hasher)):
        if side == split:
            yield document
    if hasher.hexdigest() != survey.fingerprint:
        raise DataError(f"{config.path} changed while it was read: run again when nothing writes to it")


def _encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Ids and UTF-8 bytes of each document, tokenised many at a time."""
    for texts in _batches(documents):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            yield ids, len(text.encode("utf-8"))


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts, size = [], 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _cache(config: DataConfig) -> Path:
    return Path(config.cache_dir).expanduser()


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"
