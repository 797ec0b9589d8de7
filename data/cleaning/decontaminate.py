"""Evaluation texts that stand in the training text: shared runs of n words (Brown et al. 2020, appendix C)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.cleaning.rule import Dropped
from data.cleaning.shingles import ngram_hashes, word_hashes, word_spans
from data.config import SourceConfig
from data.errors import DataError
from data.sources.read import read_documents


@dataclass(frozen=True)
class EvaluationSet:
    """What was read of one evaluation source."""

    path: str
    texts: int
    too_short: int  # texts of fewer words than the n-gram: no overlap with them can be found


@dataclass(frozen=True, eq=False)
class Overlap:
    """The n-grams of all evaluation sets: sorted 64-bit hashes, and the first set that has each."""

    n: int
    sets: tuple[EvaluationSet, ...]
    ngrams_G: np.ndarray  # uint64, sorted, each once
    set_G: np.ndarray  # uint16

    def find(self, text: str) -> np.ndarray:
        """int64: the first word of every n-gram of `text` that an evaluation set has, in order."""
        ngrams = ngram_hashes(word_hashes(text), self.n)
        return np.flatnonzero(self.ngrams_G[self._place(ngrams)] == ngrams)

    def explain(self, text: str, word: int) -> str:
        """The set and the n-gram at `word`, in the words of the text."""
        owner = self.set_G[self._place(ngram_hashes(word_hashes(text), self.n)[word])]
        spans = word_spans(text)[word : word + self.n]
        return f"{self.n} words of {self.sets[owner].path}: {text[spans[0][0] : spans[-1][1]]!r}"

    def cut(self, text: str, words: np.ndarray) -> str:
        """`text` without the n-grams at `words`; a line break stands where something was taken out."""
        spans, kept, end = word_spans(text), [], 0
        # Runs of overlapping or touching n-grams are one cut.
        for run in np.split(words, np.flatnonzero(np.diff(words) > self.n) + 1):
            kept.append(text[end : spans[run[0]][0]])
            end = spans[run[-1] + self.n - 1][1]
        return "\n".join([*kept, text[end:]]).strip()

    def _place(self, ngrams: np.ndarray) -> np.ndarray:
        return np.minimum(np.searchsorted(self.ngrams_G, ngrams), len(self.ngrams_G) - 1)


@dataclass(frozen=True, eq=False)
class Decontamination:
    """The last rule that a document meets, before any search for duplicates: of two alike, the clean one stays."""

    name: ClassVar[str] = "decontamination"
    source: ClassVar[str] = "shared n-grams: Brown et al. 2020, appendix C"

    overlap: Overlap
    contaminated: str  # "drop": the document goes; "cut": the shared words are taken out of it

    def __call__(self, text: str) -> str | Dropped:
        words = self.overlap.find(text)
        if not len(words):
            return text
        rest = self.overlap.cut(text, words) if self.contaminated == "cut" else ""
        return rest or Dropped("evaluation_text", self.overlap.explain(text, int(words[0])))


def read_evaluation_sets(sources: Sequence[SourceConfig], n: int) -> Overlap:
    """Reads every text of the sources. Raises DataError where none has `n` words: nothing could ever be found."""
    found, owners, sets = [], [], []
    for number, source in enumerate(sources):
        texts = too_short = 0
        for document in read_documents(source):
            ngrams = np.unique(ngram_hashes(word_hashes(document.text), n))
            texts, too_short = texts + 1, too_short + (len(ngrams) == 0)
            found.append(ngrams)
            owners.append(np.full(len(ngrams), number, np.uint16))
        if texts == too_short:
            raise DataError(f"no text of {source.path} has {n} words: use a smaller overlap, or leave it out")
        sets.append(EvaluationSet(source.path, texts, too_short))
    ngrams, first = np.unique(np.concatenate(found), return_index=True)
    return Overlap(n, tuple(sets), ngrams, np.concatenate(owners)[first])


def save_overlap(overlap: Overlap, folder: Path) -> None:
    np.save(folder / "ngrams.npy", overlap.ngrams_G)
    np.save(folder / "set.npy", overlap.set_G)
    (folder / "sets.json").write_text(json.dumps({"n": overlap.n, "sets": [vars(s) for s in overlap.sets]}))


def load_overlap(folder: Path) -> Overlap:
    """What `save_overlap` wrote, as memory maps that worker processes share."""
    described = json.loads((folder / "sets.json").read_text())
    sets = tuple(EvaluationSet(**values) for values in described["sets"])
    ngrams, owners = (np.load(folder / name, mmap_mode="r") for name in ("ngrams.npy", "set.npy"))
    return Overlap(described["n"], sets, ngrams, owners)
