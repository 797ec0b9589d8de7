"""From sources to token stores: read, split, train or load the tokenizer, tokenise once, reuse ever after."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from data.atomic import locked, new_folder, remove_leftovers
from data.config import DataConfig, SourceConfig
from data.errors import DataError
from data.sources.broken import told
from data.sources.documents import Document
from data.sources.read import State, provenance, read_documents
from data.split import HELD_OUT, TRAIN, split_by_document, split_tail, tail_start
from data.store.build import build_stores, is_built
from data.store.format import FORMAT_VERSION
from data.store.store import TokenStore, check_tokenizer, open_store, record_provenance, verify_changed
from data.store.survey import SourceChanged, SourceHash, Survey, find_survey, forget, survey_source
from data.tokenizers.sentencepiece_training import TRAINING_VERSION, check_vocab
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

Report = Callable[[str], object]


@dataclass(frozen=True)
class Splits:
    """The two sides of one source."""

    train: TokenStore
    held_out: TokenStore


@dataclass(frozen=True)
class Corpus:
    """All sources of an experiment as tokens of one tokenizer."""

    tokenizer: Tokenizer
    parts: dict[str, Splits]  # by the names of `DataConfig.parts`; "" is a single source
    fingerprint: str  # changes with any byte, id or order of the documents, the split, the tokenizer, a part's name

    @property
    def train(self) -> TokenStore:
        return self._only().train

    @property
    def held_out(self) -> TokenStore:
        return self._only().held_out

    def _only(self) -> Splits:
        if len(self.parts) != 1:
            raise DataError(f"this corpus is a mixture of {', '.join(self.parts)}: take one of its parts by name")
        return next(iter(self.parts.values()))


def prepare(config: DataConfig, report: Report = print) -> Corpus:
    """The tokenizer and the token stores of `config`, made once in `cache_dir` and reused while nothing changes.

    A source is read and hashed once, and again when its files' names, sizes or times change: see
    `data.sources.read.State`. Each source has its own stores, keyed by its documents, the split and the tokenizer:
    weights, stages and other sources do not count. A killed build goes on where it was; processes may prepare the
    same corpus at once: one builds, the others wait. Stores are verified when they are built and when their files
    have changed since. The provenance in a store is that of the source as it was last prepared.

    A sentencepiece tokenizer is trained on the training splits of all sources only; a character tokenizer knows all
    characters. `report` gets a short line about each stage. Raises DataError for all that is wrong with the data.
    """
    if "://" in config.cache_dir:
        raise DataError(
            f"data.cache_dir {config.cache_dir!r} is a URL, and stores are built in a folder: set it to one of this "
            "machine, and copy what was built"
        )
    cache = Path(config.cache_dir).expanduser()
    # All that can be wrong with names comes to light before hours of reading.
    loaded = _loaded(config)
    found = {name: find_survey(part.source, cache, report) for name, part in config.parts.items()}
    parts = {name: _Part(name, part.source, found[name], config, cache, report) for name, part in config.parts.items()}
    tokenizer = loaded or _learned(config, parts, cache, report)
    keys = {name: part.key(tokenizer) for name, part in parts.items()}
    splits = {name: part.stores(tokenizer) for name, part in parts.items()}
    return Corpus(tokenizer, splits, fingerprint=_digest(FORMAT_VERSION, sorted(keys.items())))


class _Part:
    """One source of a corpus, surveyed."""

    def __init__(
        self, name: str, source: SourceConfig, found: Survey | State, config: DataConfig, cache: Path, report: Report
    ):
        self._source, self._config, self._cache, self._report = source, config, cache, report
        self._label = f"{name}: " if name else ""
        started = time.perf_counter()
        unread = isinstance(found, State)
        self.survey = survey_source(source, found, cache, report) if unread else found
        size = f"{self.survey.num_documents:,} documents, {self.survey.num_bytes / 1e6:.1f} MB"
        how = _since(started) if unread else "unchanged"
        self._report(f"data: {self._label}{size} of {source.path} ({how})")
        for line in told(source.path, self.survey.origin):
            self._report(f"data: {self._label}{line}")
        self._provenance = provenance(source, self.survey.origin)
        self.survey.check_split(source.path, config.held_out, config.held_out_by)

    def documents(self) -> Iterator[Document]:
        return read_documents(self._source, cache_dir=str(self._cache), report=self._report)

    def surveyed(self) -> Iterator[Document]:
        """The same, to the last of them. Raises SourceChanged there if they are not those of the survey."""
        hasher = SourceHash()
        yield from hasher.passing(self.documents())
        if hasher.hexdigest() != self.survey.fingerprint:
            forget(self._source, self._cache)
            raise SourceChanged(self._source.path)

    def split(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        if self._config.held_out_by == "document":
            return split_by_document(documents, self._config.held_out)
        return split_tail(documents, tail_start(self.survey.num_characters, self._config.held_out))

    def key(self, tokenizer: Tokenizer) -> str:
        split = (self._config.held_out, self._config.held_out_by)
        return _digest(FORMAT_VERSION, self.survey.fingerprint, *split, tokenizer.fingerprint)

    def stores(self, tokenizer: Tokenizer) -> Splits:
        folder = self._cache / "stores" / self.key(tokenizer)
        started, reused = time.perf_counter(), is_built(folder)
        if not reused:
            try:
                build_stores(
                    folder,
                    self.documents,
                    self.split,
                    tokenizer,
                    self.survey,
                    name=self._source.path,
                    provenance=self._provenance,
                    has_scores=bool(self._source.score_field),
                    report=self._report,
                )
            except SourceChanged:
                forget(self._source, self._cache)
                raise
        sides = {side: open_store(folder / side) for side in (TRAIN, HELD_OUT)}
        for side, store in sides.items():
            verify_changed(store)
            sides[side] = store = record_provenance(store, self._provenance)
            check_tokenizer(store, tokenizer)
            counts = f"{store.num_documents:,} documents, {store.num_tokens:,} tokens"
            rate = f"{store.num_bytes / store.num_tokens:.2f} bytes/token"
            self._report(f"data: {self._label}{side}: {counts}, {rate}, {'reused' if reused else 'tokenised'}")
        if not reused:
            self._report(f"data: {self._label}tokenised in {_since(started)}")
        return Splits(sides[TRAIN], sides[HELD_OUT])


def _loaded(config: DataConfig) -> Tokenizer | None:
    """The tokenizer, where no text is needed for it. Raises DataError for one that is not there or cannot be."""
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "sentencepiece":
        check_vocab(config.tokenizer_vocab)
    return None if config.tokenizer in ("char", "sentencepiece") else load_tokenizer(config.tokenizer)


def _learned(config: DataConfig, parts: Mapping[str, _Part], cache: Path, report: Report) -> Tokenizer:
    surveys = [part.survey.fingerprint for part in parts.values()]
    if config.tokenizer == "char":
        key = _digest("char", surveys)
    else:
        version = (sentencepiece.__version__, TRAINING_VERSION)  # others may learn other pieces
        key = _digest(surveys, config.held_out, config.held_out_by, config.tokenizer_vocab, version)
    folder = cache / "tokenizers" / key
    if folder.is_dir():
        report(f"data: tokenizer reused from {folder}")
    else:
        _train(folder, config, parts, report)
    # Also the process that trained reads it back: all go on with the same one.
    return load_tokenizer(folder)


def _train(folder: Path, config: DataConfig, parts: Mapping[str, _Part], report: Report) -> None:
    started = time.perf_counter()
    with locked(folder, report):
        remove_leftovers(folder.parent)
        if folder.is_dir():
            return
        with new_folder(folder) as temporary:
            _trained(config, parts).save(temporary)
        report(f"data: {config.tokenizer} tokenizer trained ({_since(started)})")


def _trained(config: DataConfig, parts: Mapping[str, _Part]) -> Tokenizer:
    if config.tokenizer == "char":
        return CharTokenizer.train(document.text for part in parts.values() for document in part.surveyed())
    pieces = (piece for part in parts.values() for piece in part.split(part.surveyed()))
    texts = (document.text for side, document in pieces if side == TRAIN)
    return SentencePieceTokenizer.train(texts, config.tokenizer_vocab)


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"
