"""Parameters into a folder that `transformers` reads."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model import parameters
from model.build import build
from model.config import ModelConfig
from model.parameters import Params, named_leaves
from model.pretrained.families import family_of
from model.pretrained.folders import write_folder
from model.pretrained.mapping import Family, places
from model.pretrained.safetensors_files import WeightsError, replace_file

# What a config.json does not say and the function that is computed does not depend on.
NOT_PUBLISHED = (
    "ngram_order", "dropout", "init_std", "init_scheme", "attention_impl", "compute_dtype", "param_dtype", "remat",
    "remat_bytes", "remat_offload", "scan_unroll", "pipeline_microbatches",
)  # fmt: skip


def export(
    params: Params,
    config: ModelConfig,
    folder: str | Path,
    vocab_size: int | None = None,
    *,
    special_ids: Mapping[str, int] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that `transformers` reads: config.json and safetensors, one tensor in memory at a time.

    `vocab_size`: rows of the vocabulary to write, where ours is padded. `special_ids`: numbers of "bos", "eos" and
    "pad"; one that is not given is null in config.json. Every shard must be on devices of this process.

    Raises:
        WeightsError: a network that no published family has, or parameters that are not those of `config`.
    """
    folder, config, family = Path(folder), config.resolved(), family_of(config)
    vocab = config.vocab_size if vocab_size is None else vocab_size
    if not 0 < vocab <= config.vocab_size:
        raise WeightsError(f"vocab_size is {vocab}: use 1 to {config.vocab_size}, the rows of the embedding")
    keys = family.config_to(dataclasses.replace(config, vocab_size=vocab))
    _check_same(config, family.config_from(keys), family, keys["model_type"])
    shapes = {path: leaf.shape for path, leaf in named_leaves(params).items()}
    if shapes != {path: weight.shape for path, weight in named_leaves(parameters.weights(build(config))).items()}:
        raise WeightsError("the parameters are not those of the config: give the config that they were made with")
    write_folder(folder, *published(params, config, vocab), max_shard_bytes)
    ids = {f"{name}_token_id": (special_ids or {}).get(name) for name in ("bos", "eos", "pad")}
    text = json.dumps({**ids, **keys, "dtype": config.param_dtype}, indent=2, sort_keys=True)
    replace_file(folder / "config.json", [text.encode() + b"\n"])


def published(
    params: Params, config: ModelConfig, vocab_size: int
) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], Callable[[str], np.ndarray]]:
    """Type and shape of each published tensor of `params`, or of any tree like it, and the function that makes one."""
    leaves = named_leaves(params)
    where = places(family_of(config), config, leaves)
    parts: dict[str, list[tuple[str, int]]] = {}  # of each tensor: our leaves and their layer
    declared: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for path, leaf in leaves.items():
        for layer, name in enumerate(where[path].names(leaf.shape)):
            parts.setdefault(name, []).append((path, layer))
            shape = where[path].published_shape(where[path].layer_shape(leaf.shape), vocab_size)
            declared[name] = (np.dtype(leaf.dtype), shape)

    def compute(name: str) -> np.ndarray:
        dtype, shape = declared[name]
        made = np.empty(shape, dtype)
        for path, layer in parts[name]:
            place, leaf = where[path], leaves[path]
            ours = np.asarray(_layer(leaf, layer) if place.stacked else leaf)
            part = place.view(made, ours.shape, vocab_size)
            part[...] = ours[tuple(map(slice, part.shape))]
        return made

    return declared, compute


def _check_same(config: ModelConfig, published: ModelConfig, family: Family, kind: str) -> None:
    """WeightsError if a config.json cannot say what `config` computes."""
    skip = {*NOT_PUBLISHED, "vocab_size", *(["tied_output"] if family.tied_unless else [])}
    for name, theirs in dataclasses.asdict(published.resolved()).items():
        if name not in skip and (ours := getattr(config, name)) != theirs:
            raise WeightsError(f"model.{name} is {ours!r}: a published {kind} model like this one has {theirs!r}")


def _layer(leaf: Any, layer: int) -> Any:
    return _slice(leaf, layer) if isinstance(leaf, jax.Array) else leaf[layer]


@jax.jit
def _slice(leaf: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)  # one program for all layers
