"""What is in a corpus: counts, languages, repetitions, the use of the vocabulary, and examples as a model sees them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.config import SourceConfig
from data.errors import DataError
from data.inspection.counts import RARE, Duplicates, TextCounts, TokenCounts
from data.inspection.examples import Shown
from data.inspection.reading import Asked, is_store, read_rows, read_source, read_store
from data.objectives.objectives import ObjectiveConfig
from data.rows import Rows
from data.store.store import TokenStore, open_store, verify_store
from data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

_LISTED = 10  # n-grams, texts and pieces that are named


@dataclass(frozen=True)
class Vocabulary:
    """How the ids that stand for text are used: `unused` never, `rare` less than `RARE` times."""

    size: int  # with special ids
    unused: int
    rare: int
    unknown: int  # tokens that are the unknown id
    unused_pieces: list[str]  # some of them, in quotes
    rare_pieces: list[str]  # the rarest


@dataclass(frozen=True)
class Inspection:
    """What `inspect_data` found: `print(inspection.text())`, or a value that a notebook shows."""

    title: str
    facts: dict[str, str]  # where it comes from, fingerprints, the tokenizer
    notes: list[str]  # what the numbers are of, where that is not everything
    documents: int  # of rows: rows
    num_bytes: int  # of UTF-8
    characters: int
    tokens: int  # without the id that closes a document
    lengths: list[tuple[int, int, int]]  # fewest tokens, most tokens, documents of so many
    languages: dict[str, int]  # documents of a sample
    languages_by: str
    ngrams: dict[int, list[tuple[str, int]]]  # of 1, 2, 3 words: the most frequent
    ngram_errors: dict[int, int]  # these counts may be so much too low, never too high
    duplicates: Duplicates
    vocabulary: Vocabulary
    labels: dict[str, int]  # examples by label, where rows say so
    examples: list[Shown] = field(repr=False)

    def text(self) -> str:
        """A report in plain characters."""
        from data.inspection.text import plain

        return plain(self)

    def _repr_html_(self) -> str:
        from data.inspection.html import fragment

        return fragment(self)


def inspect_data(
    what: str | Path | SourceConfig | TokenStore | Rows,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    objective: ObjectiveConfig | str = "causal_lm",
    max_length: int = 256,
    rows: Rows | None = None,
    examples: int = 20,
    seed: int = 0,
    max_documents: int = 0,
    title: str = "",
) -> Inspection:
    """Reads all of `what` once, in bounded memory, and draws `examples` of it at random.

    `what` is the folder of a token store or a store, a path or built-in name of a source or its `SourceConfig`, or
    rows of any kind, whose `labels` (name -> examples), if they have such, are reported. `tokenizer`: one, "byte", or
    what `load_tokenizer` reads; without, a source gets bytes and a store the one of its cache folder.

    The examples of a store are its `rows`, by default the text cut into rows of the `objective` for a model that reads
    `max_length` tokens; those of a source are such pieces too, of documents drawn at random, each in a row alone.
    `max_documents`: read no more than so many, of a source the first, else random ones (0: all); `notes` says so.

    Raises DataError for bad data, and for a tokenizer that is not the store's.
    """
    if min(examples, seed, max_documents) < 0:
        raise DataError(f"examples {examples}, seed {seed} and max_documents {max_documents} must be 0 or more")
    if isinstance(what, str | Path):
        what = open_store(what) if is_store(what) else SourceConfig(str(what))
    if rows is not None and not isinstance(what, TokenStore):
        raise DataError("rows= belong to a store: of anything else, give the rows alone")
    config = ObjectiveConfig(objective) if isinstance(objective, str) else objective
    asked = Asked(
        None if tokenizer is None else tokenizer_of(tokenizer), config, max_length, examples, seed, max_documents
    )
    if isinstance(what, TokenStore):
        if not max_documents:  # all of it is read anyway
            verify_store(what)
        reading = read_store(what, rows, asked)
    else:
        reading = read_source(what, asked) if isinstance(what, SourceConfig) else read_rows(what, asked)
    known = reading.tokenizer
    texts, tokens = TextCounts(asked.rng(-3)), TokenCounts(known.vocab_size)
    for text, ids in reading.texts:
        texts.add(text)
        tokens.add(ids)
    if not texts.documents:
        raise DataError("there is no document to inspect")
    languages, by = texts.languages()
    return Inspection(
        title=title or reading.facts.get("folder") or reading.facts.get("path") or "rows",
        facts={**reading.facts, "tokenizer": f"{known.kind}, {known.vocab_size:,} ids, {known.fingerprint}"},
        notes=reading.notes,
        documents=texts.documents,
        num_bytes=texts.num_bytes,
        characters=texts.characters,
        tokens=int(tokens.counts_V.sum()),
        lengths=tokens.lengths(),
        languages=languages,
        languages_by=by,
        ngrams={n: texts.top_ngrams(n, _LISTED) for n in texts.ngrams},
        ngram_errors={n: counter.error for n, counter in texts.ngrams.items()},
        duplicates=texts.duplicates(_LISTED // 2),
        vocabulary=_vocabulary(tokens.counts_V, known),
        labels=reading.labels,
        examples=reading.examples(),
    )


def tokenizer_of(given: Tokenizer | str | Path) -> Tokenizer:
    """A tokenizer as it is given, by the name of bytes, or by its path."""
    if isinstance(given, str | Path):
        return ByteTokenizer() if given == "byte" else load_tokenizer(given)
    return given


def _vocabulary(counts_V: np.ndarray, tokenizer: Tokenizer) -> Vocabulary:
    is_text_V = np.asarray(tokenizer.token_bytes_V) > 0
    unused = np.flatnonzero(is_text_V & (counts_V == 0))
    rare = np.flatnonzero(is_text_V & (counts_V > 0) & (counts_V < RARE))
    rarest = rare[np.argsort(counts_V[rare], kind="stable")]
    unknown = tokenizer.special_ids.get("unk")
    return Vocabulary(
        size=tokenizer.vocab_size,
        unused=len(unused),
        rare=len(rare),
        unknown=0 if unknown is None else int(counts_V[unknown]),
        unused_pieces=[_piece(id, tokenizer) for id in unused[:_LISTED].tolist()],
        rare_pieces=[_piece(id, tokenizer) for id in rarest[:_LISTED].tolist()],
    )


def _piece(id: int, tokenizer: Tokenizer) -> str:
    """The text of an id; the id itself where that is only a part of a character."""
    text = tokenizer.decode([id])
    return f"id {id}" if "\ufffd" in text else repr(text)
