"""The settings of the data of one experiment: what is read, how it becomes tokens, what is held out."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

HELD_OUT_BY = ("document", "tail")
PACKING = ("chunk", "isolate", "first_fit", "best_fit")
CURRICULA = ("", "length", "score")


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents. Raises ValueError with field, value and what is allowed."""

    path: str  # built-in name, file, folder, glob, URL, or "hf:OWNER/NAME[:CONFIG]": see `data.sources.read`
    text_field: str = "text"  # field (column) of a record that holds the text
    id_field: str = "id"  # field of a record that names the document; where it is missing, file and line do
    score_field: str = ""  # field with a number for each document, which a curriculum can sort by; "": none is read
    document_separator: str = ""  # "": each text file is one document; else text files are split at this string
    dataset_split: str = "train"  # split of a Hugging Face dataset
    skip_broken: int = 0  # records that cannot be read and may be left out, counted, before one is an error
    language: str = ""  # recorded beside the tokens, as an ISO 639-1 code
    licence: str = ""  # recorded beside the tokens

    def __post_init__(self):
        _check_types(self, "data")
        for name in ("path", "text_field", "id_field", "dataset_split"):
            _require(self, "data", name, bool(getattr(self, name)), "a non-empty string")
        _require(self, "data", "skip_broken", self.skip_broken >= 0, "0 or more")


@dataclass(frozen=True)
class PartConfig:
    """One source of a mixture, and how much of it is drawn."""

    source: SourceConfig
    weight: tuple[float, ...]  # (): as many examples as it holds; (w,): its part; one for each stage
    max_epochs: float  # how often it may be read; a run that would read it more often is refused. inf: no limit


@dataclass(frozen=True)
class DataConfig:
    """Settings of `data.corpus.prepare` and of the loader. Raises ValueError with field, value and what is allowed."""

    path: str  # the source, see `SourceConfig`; "" where there is a mixture
    text_field: str
    id_field: str
    score_field: str
    document_separator: str
    dataset_split: str
    skip_broken: int
    language: str
    licence: str
    mixture: Mapping[str, Any]  # name -> leaves of `configs.defaults.source`; empty: `path` is the only source
    mixture_stages: tuple[int, ...]  # steps at which the next weight of each source comes in
    mixture_temperature: float  # parts are raised to 1 / this: 1 leaves them, above 1 evens them out
    tokenizer: str  # "byte", "char", "sentencepiece" (trained here), a .model file, a saved or published one's folder
    tokenizer_vocab: int  # ids of a sentencepiece tokenizer that is trained here
    held_out: float  # fraction of the corpus that training never sees
    held_out_by: str  # "document": whole documents, by a hash of their text; "tail": the end of the corpus
    packing: str  # how documents share blocks: chunk, isolate, first_fit, best_fit; see `data.packing`
    curriculum: str  # order of the first epoch: "" random, "length" short documents first, "score" low scores first
    cache_dir: str  # where trained tokenizers and token stores are kept; "~" is expanded
    prefetch: int  # batches prepared ahead; 0: none, in the caller's thread
    workers: int  # processes that prepare batches; 0: a thread of this one

    def __post_init__(self):
        _check_types(self, "data")
        for name in ("text_field", "id_field", "dataset_split", "tokenizer", "cache_dir"):
            _require(self, "data", name, bool(getattr(self, name)), "a non-empty string")
        if bool(self.path) == bool(self.mixture):
            both = "both are given" if self.path else "neither is given"
            raise ValueError(f"data.path or data.mixture says what is read, and {both}: set data.path='' for a mixture")
        _require(self, "data", "tokenizer_vocab", self.tokenizer_vocab > 0, "1 or more")
        _require(self, "data", "held_out", 0 < self.held_out < 1, "a fraction, above 0 and below 1")
        _require(self, "data", "held_out_by", self.held_out_by in HELD_OUT_BY, f"one of {', '.join(HELD_OUT_BY)}")
        _require(self, "data", "packing", self.packing in PACKING, f"one of {', '.join(PACKING)}")
        _require(self, "data", "curriculum", self.curriculum in CURRICULA, "'', 'length' or 'score'")
        _require(self, "data", "prefetch", self.prefetch >= 0, "0 or more")
        _require(self, "data", "workers", self.workers >= 0, "0 or more")
        temperature = self.mixture_temperature
        _require(self, "data", "mixture_temperature", 0 < temperature < math.inf, "above 0")
        stages = (0, *self.mixture_stages)
        rising = all(first < second for first, second in itertools.pairwise(stages))
        _require(self, "data", "mixture_stages", rising, "rising steps above 0")
        if not self.mixture and (self.mixture_stages or temperature != 1):
            raise ValueError("data.mixture_stages and data.mixture_temperature would change nothing without a mixture")
        if self.mixture:
            self._check_mixture()
        lacks = [name for name, part in self.parts.items() if not part.source.score_field]
        if self.curriculum == "score" and lacks:
            raise ValueError(f"data.curriculum='score' needs data.score_field; none is set for {', '.join(lacks)}")

    @property
    def parts(self) -> dict[str, PartConfig]:
        """The sources by name; a single one has the name "" and may be read as often as the run asks."""
        if not self.mixture:
            names = (field.name for field in dataclasses.fields(SourceConfig))
            return {"": PartConfig(SourceConfig(**{name: getattr(self, name) for name in names}), (), math.inf)}
        return {name: self._part(name, dict(self.mixture[name])) for name in sorted(self.mixture)}

    def _check_mixture(self) -> None:
        unread = [field for field in dataclasses.fields(SourceConfig) if field.name != "path"]
        if changed := [f"{f.name}={getattr(self, f.name)!r}" for f in unread if getattr(self, f.name) != f.default]:
            raise ValueError(
                f"data has {', '.join(changed)}, which a mixture does not read: set it in each defaults.source(…)"
            )
        weights = {name: part.weight for name, part in self.parts.items()}
        lacks = [name for name, weight in weights.items() if not weight]
        if lacks and len(lacks) < len(weights):
            having = ", ".join(name for name in weights if name not in lacks)
            raise ValueError(
                f"data.mixture: {having} have a weight and {', '.join(lacks)} none: give one to all or none"
            )
        if lacks and self.mixture_stages:
            raise ValueError(f"data.mixture_stages {self.mixture_stages} change nothing: no part has a weight")
        for stage, step in enumerate((0, *self.mixture_stages)):
            if not lacks and not any(weight[stage if len(weight) > 1 else 0] for weight in weights.values()):
                raise ValueError(f"data.mixture: all weights of the stage from step {step} on are 0: one must be above")

    def _part(self, name: str, leaves: dict[str, Any]) -> PartConfig:
        section, fields = f"data.mixture.{name}", {field.name for field in dataclasses.fields(SourceConfig)}
        if wrong := sorted(leaves.keys() ^ (fields | {"weight", "max_epochs"})):
            raise ValueError(f"{section} has unknown or missing leaves: {', '.join(wrong)}: use defaults.source(…)")
        weight, max_epochs = leaves.pop("weight"), leaves.pop("max_epochs")
        if not isinstance(weight, tuple) or any(isinstance(w, bool) or not isinstance(w, int | float) for w in weight):
            raise ValueError(f"{section}.weight is {weight!r}: it must be a tuple of numbers")
        if len(weight) not in (0, 1, len(self.mixture_stages) + 1) or not all(0 <= w < math.inf for w in weight):
            raise ValueError(
                f"{section}.weight is {weight!r}: give none, one, or {len(self.mixture_stages) + 1} (one for each "
                f"stage), each 0 or more"
            )
        if not isinstance(max_epochs, int | float) or isinstance(max_epochs, bool) or not max_epochs > 0:
            raise ValueError(f"{section}.max_epochs is {max_epochs!r}: it must be a number above 0")
        try:
            return PartConfig(SourceConfig(**leaves), weight, float(max_epochs))
        except ValueError as error:
            raise ValueError(str(error).replace("data.", f"{section}.", 1)) from error


def _check_types(config: Any, section: str) -> None:
    for name, expected in get_type_hints(type(config)).items():
        value = getattr(config, name)
        expected = {Mapping[str, Any]: Mapping, tuple[int, ...]: tuple, float: (int, float)}.get(expected, expected)
        # bool is an int to Python, never to a reader of a config. A ConfigDict is a mapping that does not say so.
        fits = isinstance(value, expected) and not isinstance(value, bool)
        if not fits and not (expected is Mapping and hasattr(value, "items")):
            wanted = getattr(expected, "__name__", "a number")
            raise ValueError(f"{section}.{name} = {value!r} is a {type(value).__name__}: it must be {wanted}")


def _require(config: Any, section: str, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{section}.{name} = {getattr(config, name)!r} is not allowed: it must be {allowed}")
