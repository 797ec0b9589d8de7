"""The notation of the mapping tables: one line says where a weight lies in published files, and both ways follow.

A line is `(our module, their module, layout)`, for example

    ("decoder/layers/attention/query", "h.{layer}.attn.c_attn", "D (0/3 H K) -> D H K")

Left of the arrow are the dimensions of the published tensor, right those of ours without the layers; (H K) is one
dimension that holds both, and 0/3 says that it holds three such parts of which this is the first. `V` is the
vocabulary, of which the published tensor may have fewer rows than ours. An empty layout is the same shape on both.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.pretrained.safetensors_files import WeightsError

Keys = Mapping[str, tuple[Any, ...]]  # key of config.json -> our field, and what the key is where it is missing


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: a module of ours, or a single leaf, and its published name."""

    ours: str
    theirs: str
    layout: str = ""
    bias: str = ""  # layout of the bias


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family is published."""

    config_from: Callable[[dict[str, Any]], ModelConfig]  # of a config.json; WeightsError for what has no equal
    config_to: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], list[Row]]
    prefix: str = ""  # of module names, which a file may have or lack
    ignored: str = r"(?!)"  # names of tensors that hold no weights (pattern)
    duplicates: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> the tensor it repeats
    tied_unless: str = ""  # the tensor that says, by differing from what it repeats, that the output is untied


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one leaf of ours lies: published name, with {layer} if stacked, and layout."""

    name: str
    layout: str

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """The published tensor of each layer; of a leaf that is not stacked, the one."""
        return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a leaf's shape, that of one layer."""
        return shape[1:] if self.stacked else shape

    def published_shape(self, shape: tuple[int, ...], vocab: int) -> tuple[int, ...]:
        """Shape of the published tensor for one layer of ours of `shape`, with `vocab` rows of the vocabulary."""
        if not self.layout:
            return shape
        groups, sizes = self._sizes(shape, vocab)
        return tuple(parts * math.prod(sizes[letter] for letter in letters) for letters, _, parts in groups)

    def view(self, published: np.ndarray, shape: tuple[int, ...], vocab: int) -> np.ndarray:
        """The part of `published` that is one layer of ours, in our order: shares its memory, so it serves to read and
        to write. It has `vocab` rows where ours, of `shape`, may have more."""
        if not self.layout:
            return published
        groups, sizes = self._sizes(shape, vocab)
        cut, split = [], []
        for letters, part, parts in groups:
            inner = [sizes[letter] for letter in letters]
            cut.append(slice(part * math.prod(inner), (part + 1) * math.prod(inner)) if parts > 1 else slice(None))
            split += inner
        order = "".join(letters for letters, _, _ in groups)
        return published[tuple(cut)].reshape(split).transpose([order.index(letter) for letter in self.ours])

    @property
    def ours(self) -> str:
        """A letter for each of our dimensions without the layers, where there is a layout."""
        return self.layout.split("->")[-1].replace(" ", "")

    def _sizes(self, shape: tuple[int, ...], vocab: int) -> tuple[list[tuple[str, int, int]], dict[str, int]]:
        groups = []
        for dimension in re.findall(r"\([^)]*\)|\w", self.layout.split("->")[0]):
            part, parts = map(int, found.groups()) if (found := re.search(r"(\d)/(\d)", dimension)) else (0, 1)
            groups.append((re.sub(r"[^A-Z]", "", dimension), part, parts))
        return groups, dict(zip(self.ours, shape, strict=True)) | {"V": vocab}


def places(family: Family, config: ModelConfig, leaves: Mapping[str, Any]) -> dict[str, Place]:
    """Where each of `leaves` (by path) is published.

    Raises:
        WeightsError: a leaf that the family has no name for.
    """
    rows = {row.ours: row for row in family.rows(config)}
    found: dict[str, Place] = {}
    for path in leaves:
        module, leaf = path.rsplit("/", 1)
        if path in rows:
            found[path] = Place(rows[path].theirs, rows[path].layout)
        elif module in rows:
            row = rows[module]
            found[path] = Place(
                row.theirs + (".bias" if leaf == "bias" else ".weight"), row.bias if leaf == "bias" else row.layout
            )
    if strangers := sorted(leaves.keys() - found.keys()):
        raise WeightsError(
            f"{', '.join(strangers)}: no {family.config_to(config)['model_type']} model has these weights: change the "
            "model's config to what the family has"
        )
    return found


def read_keys(keys: Mapping[str, Any], table: Keys) -> dict[str, Any]:
    """Fields of a ModelConfig by the `table` of a family.

    Raises:
        KeyError: a key that is missing and has no default. WeightsError: a value of another type than the field's.
    """
    found = {}
    for name, (ours, *default) in table.items():
        found[ours] = keys.get(name, *default) if default else keys[name]
        require_kind(name, ours, found[ours])
    return found


def write_keys(config: ModelConfig, table: Keys) -> dict[str, Any]:
    """The keys of a config.json by the same table."""
    return {name: getattr(config, ours) for name, (ours, *_) in table.items()}


def optional_size(keys: Mapping[str, Any], name: str, ours: str) -> int:
    """The size that key `name` gives for our field, checked; 0 where the key is missing, null or 0."""
    value = keys.get(name) or 0
    require_kind(name, ours, value)
    return value


def require_kind(name: str, ours: str, value: Any) -> None:
    """WeightsError for the value of key `name` if our field has another type, where an int is a float too, or if no
    network has such a number."""
    kind = _KINDS[ours]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise WeightsError(f"config.json: {name} is {value!r}: it must be of type {kind.__name__}")
    if kind is int and value > _MOST_SIZE:
        raise WeightsError(f"config.json: {name} is {value}: at most {_MOST_SIZE} is read")
    if kind is float:
        if ours in _POSITIVE and not 0 < value <= _MOST_NUMBER:
            raise WeightsError(f"config.json: {name} is {value}: it must be positive and at most {_MOST_NUMBER:g}")
        if not 0 <= value <= _MOST_NUMBER:
            raise WeightsError(
                f"config.json: {name} is {value}: it must not be negative and be at most {_MOST_NUMBER:g}"
            )


def require(keys: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """WeightsError for a key of a config.json with a value that would change the computation in a way unknown here."""
    for name, values in {**_NEVER, **allowed}.items():
        if name in keys and keys[name] not in values:
            raise WeightsError(f"config.json: {name} is {keys[name]!r}: Tessera has only {_listed(values)}")


def choose(keys: Mapping[str, Any], name: str, default: Any, choices: Mapping[Any, Any]) -> Any:
    """What the value of key `name` is called here; WeightsError if it has no equal."""
    value = keys.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise WeightsError(f"config.json: {name} is {value!r}: Tessera has only {_listed(choices)}")
    return choices[value]


def one_rate(keys: Mapping[str, Any], names: Mapping[str, float]) -> float:
    """The dropout rate that all the keys (name -> default) give; WeightsError if they differ."""
    rates = {name: keys.get(name, default) for name, default in names.items()}
    if len(set(rates.values())) > 1:
        raise WeightsError(f"config.json: {rates}: Tessera has one dropout rate: set them to one value")
    return float(next(iter(rates.values())))


def name_of(choices: Mapping[str, Any], value: Any, field: str) -> str:
    """The first published name of our `value`; WeightsError if the family has none."""
    for name, ours in choices.items():
        if ours == value:
            return name
    raise WeightsError(f"model.{field} is {value!r}: this family has only {_listed(set(choices.values()))}")


def _listed(values: Any) -> str:
    return " or ".join(sorted(map(repr, values)))


_MOST_SIZE = 2**24  # of a dimension: what is larger is damage, and would be gone through before the weights say so
_MOST_NUMBER = 1e12
_POSITIVE = ("norm_epsilon", "rope_theta", "rope_factor", "rope_low_factor", "rope_high_factor")
_KINDS = {field.name: type(field.default) for field in dataclasses.fields(ModelConfig)}
_NEVER = {  # in any family
    "quantization_config": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "add_cross_attention": (None, False),
    "tie_encoder_decoder": (None, False),
}
