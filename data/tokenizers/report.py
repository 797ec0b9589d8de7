"""How good a tokenizer is: what a text costs in it, by language, what it loses, and which of its pieces are idle."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from data.tokenizers.tokenizer import Tokenizer

UNSPACED = ("ja", "km", "lo", "my", "th", "zh")  # written without spaces between words: counted by character

_BATCH_CHARACTERS = 1_000_000  # text encoded at once
_EXAMPLES = 10
_COSTS = ("bytes/token", "tokens/word")
_LOSSES = ("unknown", "part characters", "exact documents")


@dataclass(frozen=True)
class LanguageReport:
    """Counts on the texts of one language; `seconds` is the time of encode_batch, on all cores."""

    documents: int
    bytes: int  # of UTF-8
    words: int  # by white space; characters but white space, for languages in `UNSPACED`
    tokens: int
    unknown: int  # tokens that are the unknown id: their text is lost
    special: int  # tokens that are another special id, since the text spells its name: <|endoftext|> in GPT-2's
    partial: int  # tokens that hold part of a character's bytes: byte fallback, or pieces of byte-level BPE
    exact: int  # documents that decode(encode(text)) gives back
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def fertility(self) -> float:
        """Tokens for each word, or each character (Rust et al. 2021, "How Good is Your Tokenizer?")."""
        return self.tokens / self.words

    @property
    def encode_mb_per_s(self) -> float:
        return self.bytes / 1e6 / self.seconds


@dataclass(frozen=True)
class TokenizerReport:
    """A tokenizer, and what it made of some text."""

    kind: str
    fingerprint: str
    vocab_size: int
    languages: dict[str, LanguageReport]
    pieces: int  # ids that stand for whole characters
    unused: int  # of these, never seen in the text
    unused_examples: tuple[str, ...]  # those with the lowest ids, single bytes last
    longest_pieces: tuple[str, ...]  # in bytes

    def fields(self) -> dict[str, Any]:
        """All of it for JSON, ratios included."""
        fields = asdict(self)
        for name, report in self.languages.items():
            ratios = ("bytes_per_token", "fertility", "encode_mb_per_s")
            fields["languages"][name] |= {ratio: getattr(report, ratio) for ratio in ratios}
        return fields

    def markdown(self) -> str:
        """A line about the tokenizer, a table with a row for each language, and what there is to say of the pieces."""
        header = ("language", "documents", "MB", *_COSTS, *_LOSSES, "encode MB/s")
        rows = [
            [name, f"{report.documents:,}", f"{report.bytes / 1e6:.2f}", *_figures(name, report), _speed(report)]
            for name, report in self.languages.items()
        ]
        special = sum(report.special for report in self.languages.values())
        unused = f"Never used on this text: {self.unused:,} of {self.pieces:,} pieces ({self.unused / self.pieces:.1%})"
        return "\n\n".join(
            [
                f"{self.kind}, {self.vocab_size:,} ids, fingerprint {self.fingerprint}",
                _table(header, rows, text_columns=1),
                _legend(self.languages),
                f"{unused}: {_listed(self.unused_examples)}" if self.unused else unused,
                f"Longest pieces: {_listed(self.longest_pieces)}",
                *(
                    [f"The text spells names of special ids: {special:,} tokens are such ids, not text"]
                    if special
                    else []
                ),
            ]
        )


def tokenizer_report(tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]]) -> TokenizerReport:
    """What `tokenizer` makes of `texts`, by language (ISO 639-1: it decides what a word is, see `UNSPACED`).

    Texts are read once, a few at a time. Raises DataError where there are none, or a language has no word.
    """
    if not texts:
        raise DataError("there is no text to judge a tokenizer by")
    pieces = _pieces(tokenizer)
    used_V = np.zeros(tokenizer.vocab_size, np.int64)
    languages = {name: _measure(tokenizer, name, some, used_V) for name, some in texts.items()}
    # Bytes are there by design: pieces that training chose are the better examples.
    unused = sorted((id for id in pieces if not used_V[id]), key=lambda id: tokenizer.token_bytes_V[id] == 1)
    longest = sorted(pieces, key=lambda id: -tokenizer.token_bytes_V[id])
    return TokenizerReport(
        kind=tokenizer.kind,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        languages=languages,
        pieces=len(pieces),
        unused=len(unused),
        unused_examples=tuple(pieces[id] for id in unused[:_EXAMPLES]),
        longest_pieces=tuple(pieces[id] for id in longest[:_EXAMPLES]),
    )


def comparison(reports: Mapping[str, TokenizerReport]) -> str:
    """A Markdown table of tokenizers by name: for each language a row for each of them.

    Raises DataError for reports that are not on the same text.
    """
    seen = [{at: (one.documents, one.bytes) for at, one in r.languages.items()} for r in reports.values()]
    if not seen or any(text != seen[0] for text in seen):
        raise DataError(f"reports on the same text are compared; these are on {seen} (documents, bytes)")
    header = ("language", "tokenizer", "ids", *_COSTS, *_LOSSES, "unused pieces", "encode MB/s")
    rows = []
    for language in seen[0]:
        for name, report in reports.items():
            on = report.languages[language]
            unused = f"{report.unused / report.pieces:.1%}"
            rows.append([language, name, f"{report.vocab_size:,}", *_figures(language, on), unused, _speed(on)])
    legend = f"{_legend(seen[0])} Unused: over all of these languages."
    return f"{_table(header, rows, text_columns=2)}\n\n{legend}"


def _pieces(tokenizer: Tokenizer) -> dict[int, str]:
    """The ids that stand for whole characters, with their text."""
    texts = {id: tokenizer.decode([id]) for id in np.flatnonzero(tokenizer.token_bytes_V).tolist()}
    # Where a model has both "A" and a byte of the same text, the byte comes first, and is never used.
    last = {text: id for id, text in texts.items() if tokenizer.token_bytes_V[id] == 1}
    whole = {id: text for id, text in texts.items() if "\ufffd" not in text or tokenizer.encode(text) == [id]}
    return {id: text for id, text in whole.items() if last.get(text, id) == id or tokenizer.token_bytes_V[id] > 1}


def _measure(tokenizer: Tokenizer, language: str, texts: Iterable[str], used_V: np.ndarray) -> LanguageReport:
    """The counts on `texts`; how often each id is there goes into `used_V`."""
    counts, num_bytes, documents, words, exact, seconds = np.zeros_like(used_V), 0, 0, 0, 0, 0.0
    for batch in _batches(texts):
        started = time.perf_counter()
        encoded = tokenizer.encode_batch(batch)
        seconds += time.perf_counter() - started
        for text, ids in zip(batch, encoded, strict=True):
            counts += np.bincount(ids, minlength=len(counts))
            documents, num_bytes = documents + 1, num_bytes + len(text.encode("utf-8"))
            words += sum(map(len, text.split())) if language in UNSPACED else len(text.split())
            exact += tokenizer.decode(ids) == text
    if not words or not counts.any():
        raise DataError(
            f"the text of language {language!r} has {words} words and {counts.sum()} tokens in {documents} documents: "
            "both need 1 or more"
        )
    used_V += counts
    unknown = [tokenizer.special_ids["unk"]] if "unk" in tokenizer.special_ids else []
    return LanguageReport(
        documents=documents,
        bytes=num_bytes,
        words=words,
        tokens=int(counts.sum()),
        unknown=int(counts[unknown].sum()),
        special=int(counts[sorted({*tokenizer.special_ids.values(), *tokenizer.eos_ids} - {*unknown})].sum()),
        partial=int(counts[_partial(tokenizer, np.flatnonzero(counts))].sum()),
        exact=exact,
        seconds=max(seconds, 1e-9),
    )


def _partial(tokenizer: Tokenizer, ids: np.ndarray) -> list[int]:
    """Those of `ids` that hold part of a character."""
    texts = {id: tokenizer.decode([id]) for id in ids.tolist()}
    return [id for id, text in texts.items() if "\ufffd" in text and tokenizer.encode(text) != [id]]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _figures(language: str, report: LanguageReport) -> list[str]:
    return [
        f"{report.bytes_per_token:.2f}",
        f"{report.fertility:.2f}{'*' if language in UNSPACED else ''}",
        f"{report.unknown / report.tokens:.2%}",
        f"{report.partial / report.tokens:.2%}",
        f"{report.exact / report.documents:.1%}",
    ]


def _speed(report: LanguageReport) -> str:
    return f"{report.encode_mb_per_s:.1f}"


def _legend(languages: Iterable[str]) -> str:
    counted = ", ".join(language for language in languages if language in UNSPACED)
    return "Unknown and part characters: share of tokens; exact documents: decode(encode(text)) is the text." + (
        f" * {counted}: tokens/character." if counted else ""
    )


def _listed(pieces: Iterable[str]) -> str:
    return " ".join(f"`{json.dumps(piece, ensure_ascii=False)}`" for piece in pieces)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A Markdown table that reads well as it is: all but the first columns are to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if at < text_columns else "-" * (width - 1) + ":" for at, width in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        sides = ["<" if at < text_columns else ">" for at in range(len(row))]
        return f"| {' | '.join(f'{c:{side}{width}}' for c, side, width in zip(row, sides, widths, strict=True))} |"

    return "\n".join(map(line, (cells[0], rule, *cells[1:])))
