"""The settings of the data of one experiment: what is read, how it becomes tokens, what is held out."""

from dataclasses import dataclass
from typing import get_type_hints

HELD_OUT_BY = ("document", "tail")


@dataclass(frozen=True)
class DataConfig:
    """Settings of `data.corpus.prepare` and of the loader. Raises ValueError with field, value and what is allowed."""

    path: str  # "python-stdlib", a text file, a .jsonl file, a glob, a folder
    text_field: str  # field of a JSONL record that holds the text
    document_separator: str  # "": each text file is one document; else text files are split at this string
    tokenizer: str  # "byte", "char", "sentencepiece" (trained here), a .model file, a saved or published one's folder
    tokenizer_vocab: int  # ids of a sentencepiece tokenizer that is trained here
    held_out: float  # fraction of the corpus that training never sees
    held_out_by: str  # "document": whole documents, by a hash of their text; "tail": the end of the corpus
    cache_dir: str  # where trained tokenizers and token stores are kept; "~" is expanded
    prefetch: int  # batches prepared ahead; 0: none, in the caller's thread

    def __post_init__(self):
        for name, expected in get_type_hints(DataConfig).items():
            self._check_type(name, expected)
        for name in ("path", "text_field", "tokenizer", "cache_dir"):
            self._require(name, bool(getattr(self, name)), "a non-empty string")
        self._require("tokenizer_vocab", self.tokenizer_vocab > 0, "1 or more")
        self._require("held_out", 0 < self.held_out < 1, "a fraction, above 0 and below 1")
        self._require("held_out_by", self.held_out_by in HELD_OUT_BY, f"one of {', '.join(HELD_OUT_BY)}")
        self._require("prefetch", self.prefetch >= 0, "0 or more")

    def _check_type(self, name: str, expected: type) -> None:
        value = getattr(self, name)
        # bool is an int to Python, never to a reader of a config.
        fits = isinstance(value, expected) and not isinstance(value, bool)
        if not fits:
            raise ValueError(f"data.{name} = {value!r} is a {type(value).__name__}: it must be {expected.__name__}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"data.{name} = {getattr(self, name)!r} is not allowed: it must be {allowed}")
