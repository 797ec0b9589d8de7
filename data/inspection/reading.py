"""What an inspection reads, one way for each kind of thing: texts with their ids, and examples of rows."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.config import SourceConfig
from data.errors import DataError
from data.inspection.counts import Reservoir
from data.inspection.examples import Shown, show
from data.json_text import parse_json
from data.objectives.examples import Objective, assemble
from data.objectives.objectives import ObjectiveConfig, make_objective, special_names
from data.rows import Rows, store_rows
from data.sources.read import provenance, read_documents
from data.store.format import MANIFEST
from data.store.places import Folder, Remote
from data.store.store import TokenStore, check_tokenizer
from data.tokenizers.special_tokens import WithSpecials
from data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

_BATCH_CHARACTERS = 1_000_000  # text tokenised at once

Texts = Iterator[tuple[str, np.ndarray]]  # each document with its ids, (N,), without the one that closes it


@dataclass(frozen=True)
class Asked:
    """The settings of `data.inspection.inspection.inspect_data`."""

    tokenizer: Tokenizer | None
    objective: ObjectiveConfig
    max_length: int
    examples: int
    seed: int
    max_documents: int

    def made_for(self, base: Tokenizer) -> tuple[Tokenizer, Objective]:
        """The tokenizer with the special ids of the objective, and the objective."""
        needed = [name for name in special_names(self.objective) if name not in base.special_ids]
        known = WithSpecials(base, needed) if needed else base
        return known, make_objective(self.objective, max_length=self.max_length, tokenizer=known)

    def rng(self, what: int) -> np.random.Generator:
        """Random numbers of row or document number `what`; -1, -2 and -3 are the draws of rows, documents, texts."""
        return np.random.default_rng((self.seed, what + 3))

    def chosen(self, total: int, notes: list[str]) -> range | np.ndarray:
        """The indices, of `total`, that are read."""
        if not self.max_documents or self.max_documents >= total:
            return range(total)
        notes.append(f"a sample: {self.max_documents:,} of {total:,}, drawn at random")
        return np.sort(self.rng(-2).choice(total, self.max_documents, replace=False))


@dataclass(frozen=True)
class Reading:
    """Read `texts` to their end; then `notes` and `examples` are whole."""

    facts: dict[str, str]
    tokenizer: Tokenizer  # with the special ids of the objective
    texts: Texts
    examples: Callable[[], list[Shown]]
    labels: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_store(store: TokenStore, rows: Rows | None, asked: Asked) -> Reading:
    base, notes = asked.tokenizer or _tokenizer_of(store), []
    check_tokenizer(store, base)
    known, objective = asked.made_for(base)
    drawn = store_rows(store, objective) if rows is None else rows
    texts = _texts_of_store(store, asked.chosen(store.num_documents, notes), base, notes)
    return Reading(_facts_of_store(store), known, texts, lambda: _shown(drawn, known, asked), _labels(drawn), notes)


def read_source(source: SourceConfig, asked: Asked) -> Reading:
    base, notes = asked.tokenizer or ByteTokenizer(), []
    known, objective = asked.made_for(base)
    sample = Reservoir(asked.examples, asked.rng(-1))
    facts = {name: str(value) for name, value in provenance(source).items() if value}

    def examples() -> list[Shown]:
        found = enumerate(sample.items)
        return [_shown_document(id, ids, objective, known, asked.rng(at)) for at, (id, ids) in found]

    texts = _texts_of_source(source, base, asked.max_documents, objective.overlap, sample, notes)
    return Reading(facts, known, texts, examples, notes=notes)


def read_rows(rows: Rows, asked: Asked) -> Reading:
    if asked.tokenizer is None:
        raise DataError("rows do not tell their tokenizer: give tokenizer=")
    known, notes = asked.tokenizer, []
    texts = _texts_of_rows(rows, asked.chosen(len(rows), notes), known, asked)
    facts = {"rows": f"{len(rows):,}"}
    return Reading(facts, known, texts, lambda: _shown(rows, known, asked), _labels(rows), notes)


def is_store(place: str | Path) -> bool:
    """Whether a folder, or a URL, has the manifest of a token store: cleaned text and tokenizers have others."""
    where = Remote(str(place)) if "://" in str(place) else Folder(Path(place).expanduser())
    size = where.size(MANIFEST)
    if size is None:
        return False
    try:
        manifest = parse_json(where.read(MANIFEST, 0, size))
    except ValueError:
        return True  # that it is broken, `open_store` says
    return isinstance(manifest, dict) and "format_version" in manifest


def _texts_of_store(
    store: TokenStore, chosen: Sequence[int] | np.ndarray, tokenizer: Tokenizer, notes: list[str]
) -> Texts:
    eos, num_bytes = tokenizer.eos_id, 0
    for document in chosen:
        first, last = store.document_starts[document : document + 2].tolist()
        ids = np.asarray(store.tokens[first:last], np.int32)
        if len(ids) and ids[-1] == eos:
            ids = ids[:-1]
        text = tokenizer.decode(ids)
        num_bytes += len(text.encode("utf-8"))
        yield text, ids
    if len(chosen) == store.num_documents and num_bytes != store.num_bytes:
        told = f"{num_bytes:,} bytes, where the source had {store.num_bytes:,}"
        notes.append(f"texts are what the tokenizer makes of the ids: {told}")


def _texts_of_source(
    source: SourceConfig, tokenizer: Tokenizer, max_documents: int, overlap: int, sample: Reservoir, notes: list[str]
) -> Texts:
    """Texts and ids; `sample` gets the documents that predict something, closed as in a store."""
    close = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    documents = read_documents(source)
    read = itertools.islice(documents, max_documents) if max_documents else documents
    while batch := list(_batch(read)):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            if len(ids) + len(close) > overlap:
                sample.add((document.id, np.append(ids, close).astype(np.int32)))
            yield document.text, ids
    if max_documents and next(documents, None) is not None:
        notes.append(f"a sample: the first {max_documents:,} documents; there are more")


def _batch(documents: Iterator[Any]) -> Iterator[Any]:
    size = 0
    for document in documents:
        yield document
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            return


def _texts_of_rows(rows: Rows, chosen: Sequence[int] | np.ndarray, tokenizer: Tokenizer, asked: Asked) -> Texts:
    """The tokens of each row that are no padding: of both sides, where there are two."""
    for row in chosen:
        shown = show(str(row), rows.example(int(row), asked.rng(int(row))), tokenizer, _label_names(rows))
        ids = [np.array([id for token in side.tokens for id in token.ids], np.int32) for side in shown.sides]
        yield "\n".join(map(tokenizer.decode, ids)), np.concatenate(ids)


def _shown(rows: Rows, tokenizer: Tokenizer, asked: Asked) -> list[Shown]:
    chosen = np.sort(asked.rng(-1).choice(len(rows), min(asked.examples, len(rows)), replace=False)).tolist()
    labels, of = _label_names(rows), len(rows)
    return [show(f"row {row} of {of}", rows.example(row, asked.rng(row)), tokenizer, labels) for row in chosen]


def _shown_document(
    id: str, ids: np.ndarray, objective: Objective, tokenizer: Tokenizer, rng: np.random.Generator
) -> Shown:
    """A random piece of a document, alone in its row."""
    pieces = max(1, -(-(len(ids) - objective.overlap) // objective.stride))
    start = int(rng.integers(pieces)) * objective.stride
    piece = objective(ids[start : start + objective.stride + objective.overlap], rng)
    row = assemble([piece], objective.features, objective.pad_id)
    return show(f"{id}, from token {start} of {len(ids)}", row, tokenizer)


def _labels(rows: Any) -> dict[str, int]:
    """Examples by label, where rows say so, in the order of the labels' ids."""
    labels = getattr(rows, "labels", None)
    return {str(name): int(count) for name, count in labels.items()} if isinstance(labels, Mapping) else {}


def _label_names(rows: Rows) -> list[str] | None:
    """Names of the labels that the targets of rows are; None where targets are tokens."""
    return list(_labels(rows)) or None if getattr(rows, "form", "encoder") == "encoder" else None


def _tokenizer_of(store: TokenStore) -> Tokenizer:
    """The tokenizer that made a store: bytes, or one that lies beside the stores of its cache."""
    made = store.manifest["tokenizer_fingerprint"]
    if made == ByteTokenizer().fingerprint:
        return ByteTokenizer()
    folder = Path(store.folder)
    beside = folder.absolute().parents[2] / "tokenizers" if len(folder.absolute().parents) > 2 else folder
    for place in sorted(beside.glob("*")) if "://" not in str(store.folder) else ():
        if place.is_dir() and (tokenizer := load_tokenizer(place)).fingerprint == made:
            return tokenizer
    raise DataError(f"{folder}: its tokenizer ({made}) is not in {beside}: give tokenizer=, a folder or .model file")


def _facts_of_store(store: TokenStore) -> dict[str, str]:
    """What the manifest says, but for digests of bytes."""
    flat = {**store.manifest, **store.manifest.get("provenance", {})}
    return {"folder": str(store.folder)} | {
        name: f"{value:,}" if isinstance(value, int) else str(value)
        for name, value in flat.items()
        if isinstance(value, str | int) and value != ""
    }
