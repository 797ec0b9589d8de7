"""Published weights into parameters: checked in full first, then streamed tensor by tensor."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from model.config import ModelConfig
from model.parameters import Params, Weight, named_leaves
from model.pretrained.families import FAMILIES, family_of
from model.pretrained.folders import inside, open_folder
from model.pretrained.mapping import Place, places, require_kind
from model.pretrained.names import Names
from model.pretrained.safetensors_files import Tensor, WeightsError, read_json

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")  # keys that count layers
FRESH_HEADS = ("classification", "token_classification", "span")  # those that fine-tuning may begin with
FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of the folder, and of each of our weights."""

    loaded: list[str]  # tensors
    missing: list[str]  # weights of ours, by path: those of a new head
    unused: list[str]  # tensors that the model has no weight for
    repeated: list[str]  # tensors that are, to the bit, another one that was loaded
    ignored: list[str]  # tensors that hold no weights
    rounded: list[str]  # loaded tensors whose type is more precise than param_dtype

    def table(self) -> str:
        """One line for each kind: how many, and the first few."""
        lines = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            lines.append(f"{field.name:<9}{len(names):>6}  {shown}".rstrip())
        return "\n".join(lines)


def read_config(folder: str | Path) -> tuple[ModelConfig, str]:
    """What network a folder holds, and its model type.

    Raises:
        WeightsError: no config.json, or one that says what Tessera does not have.
    """
    folder = Path(folder)
    keys = read_json(inside(folder, "config.json"), most=10_000_000)
    kind = keys.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise WeightsError(f"{folder}: model_type is {kind!r}: Tessera has {', '.join(FAMILIES)}")
    try:
        config = FAMILIES[kind].config_from(keys)
        tensors = open_folder(folder)
        for name in LAYERS:
            if (keys.get(name) or 0) > len(tensors):
                raise WeightsError(
                    f"config.json: {name} is {keys[name]}, more layers than the folder has tensors ({len(tensors)})"
                )
        if output := FAMILIES[kind].tied_unless:
            names = Names(tensors, FAMILIES[kind])
            own, repeated = output in names.tensors, names.repeated(output)
            tied = not own or (repeated is not None and names.equal(output, repeated))
            config = dataclasses.replace(config, tied_output=tied)
        for name, value in dataclasses.asdict(config).items():
            require_kind(name, name, value)
    except KeyError as error:
        raise WeightsError(f"{folder}/config.json has no {error}: get the file again") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder}: {error}") from error
    return config, kind


def load_weights(
    folder: str | Path, config: ModelConfig, weights: Params, shardings: Params, *, allow_missing_head: bool = False
) -> tuple[Params, LoadReport]:
    """Parameters from a folder, each device holding its shard only, and what became of each tensor.

    `weights` are those of the model (`parameters.weights`), `shardings` where they lie. The vocabulary may have more
    rows than the folder's: they are zeros. f16, bf16 and f32 become the type of the weight. With `allow_missing_head`,
    weights of a new classification, tagging or span head stay `jax.ShapeDtypeStruct`s, for the caller to initialise;
    the report lists them as missing.

    Raises:
        WeightsError: a tensor that is missing or of the wrong shape or type, before anything is loaded.
    """
    family, declared = family_of(config), named_leaves(weights)
    where = places(family, config, declared)
    wanted = {path: place.names(declared[path].shape) for path, place in where.items()}
    names = Names(open_folder(Path(folder)), family, [name for all_names in wanted.values() for name in all_names])
    fresh = _missing(folder, names, wanted, config.head if allow_missing_head else "")
    used = {path: [names.find(name) or "" for name in wanted[path]] for path in wanted if path not in fresh}
    sources = {path: [names.tensors[name] for name in used[path]] for path in used}
    vocab = sources["embedding/embedding"][0].shape[0] if sources["embedding/embedding"][0].shape else 0
    if vocab > config.vocab_size:
        raise WeightsError(
            f"{folder} has {vocab} tokens, the model {config.vocab_size}: set vocab_size to {vocab} or more"
        )
    for path, tensors in sources.items():
        _check(path, where[path], declared[path], dict(zip(used[path], tensors, strict=True)), vocab)
    loaded = {name for path in used for name in used[path]}
    repeated = _repeated(folder, names, loaded)
    rest = sorted(names.tensors.keys() - loaded - set(repeated))
    ignored = [name for name in rest if re.fullmatch(family.ignored, names.core(name))]
    rounded = {
        name
        for path in used
        for name in used[path]
        if not np.can_cast(names.tensors[name].dtype, declared[path].dtype, "safe")
    }
    unused = [name for name in rest if name not in ignored]
    report = LoadReport(sorted(loaded), fresh, unused, repeated, ignored, sorted(rounded))

    def load(keys: tuple[Any, ...], weight: Weight, sharding: jax.sharding.Sharding) -> Any:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in fresh:
            return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)
        return _assemble(weight, where[path], sources[path], vocab, sharding)

    return jax.tree_util.tree_map_with_path(load, weights, shardings), report


def _missing(folder: str | Path, names: Names, wanted: dict[str, list[str]], head: str) -> list[str]:
    """The weights of a new `head` that the folder lacks; WeightsError for any other that it lacks."""
    absent = {path: [name for name in wanted[path] if names.find(name) is None] for path in wanted}
    fresh = [path for path, lost in absent.items() if lost and path.startswith("head/") and head in FRESH_HEADS]
    lost = [f"{path} ({name})" for path in absent if path not in fresh for name in absent[path]]
    if lost:
        raise WeightsError(f"{folder} lacks {len(lost)} tensors that the model needs: {', '.join(lost)}")
    return fresh


def _repeated(folder: str | Path, names: Names, loaded: set[str]) -> list[str]:
    """The tensors that repeat a loaded one; WeightsError for one that should and does not."""
    found = []
    for name in sorted(names.tensors.keys() - loaded):
        main = names.repeated(name)
        if main not in loaded:
            continue
        if not names.equal(name, main):
            raise WeightsError(
                f"{folder}: {name} differs from {main}, to which the config ties it: if it is meant to, set "
                '"tie_word_embeddings": false in config.json'
            )
        found.append(name)
    return found


def _check(path: str, place: Place, weight: Weight, tensors: dict[str, Tensor], vocab: int) -> None:
    wanted = place.published_shape(place.layer_shape(weight.shape), vocab)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise WeightsError(f"{name} is {tensor.dtype}: weights are {', '.join(map(str, FLOATS))}: convert it")
        if tensor.shape != wanted:
            raise WeightsError(
                f"{name} has shape {tensor.shape}, but {path} {weight.shape} needs {wanted}: the config is of another "
                "model"
            )


def _assemble(
    weight: Weight, place: Place, tensors: list[Tensor], vocab: int, sharding: jax.sharding.Sharding
) -> jax.Array:
    """One leaf, each shard made from the slices of the layers that it holds."""
    shape = place.layer_shape(weight.shape)

    def shard(index: Any) -> np.ndarray:
        made = np.zeros(
            [len(range(*cut.indices(size))) for cut, size in zip(index, weight.shape, strict=True)], weight.dtype
        )
        layers, inner = (index[0], index[1:]) if place.stacked else (slice(None), index)
        for rows, tensor in zip(made if place.stacked else [made], tensors[layers], strict=True):
            part = place.view(tensor.read(), shape, vocab)[inner]
            rows[tuple(map(slice, part.shape))] = part  # rows beyond the folder's vocabulary stay zero
        return made

    return jax.make_array_from_callback(weight.shape, sharding, shard)
