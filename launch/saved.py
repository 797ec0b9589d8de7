"""A run folder back into config, parameters and tokeniser."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from launch.count import TABLE
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.ngram_table import load_ngram
from model.pretrained.mapping import require_kind
from model.pretrained.safetensors_files import WeightsError
from model.sharding import ShardingRules
from train.mesh import single_device_mesh
from train.records import RunError, read_object
from train.restore import load_params

RUN_FILE = "config.json"


def load_run(
    folder: Path,
    *,
    step: int | None = None,
    max_length: int | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> tuple[ModelConfig, Any, Tokenizer]:
    """The resolved config of a run, its parameters, and its tokeniser.

    The parameters lie on `mesh` by `rules`; without a mesh, whole on the first device.

    Raises:
        RunError: not the folder of a run, or one without its n-grams. CheckpointError: no such step, or another
            network in the checkpoint.
    """
    config = recorded_model(folder, read_run(folder))
    if max_length is not None:
        config = dataclasses.replace(config, max_length=max_length)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if config.architecture == "ngram":
        if not (folder / TABLE).is_file():
            raise RunError(f"{folder / TABLE} is not there: its `tessera train`, given again, counts the n-grams")
        return config, load_ngram(folder / TABLE), tokenizer
    mesh, rules = mesh or single_device_mesh(), rules or ShardingRules()
    weights = parameters.weights(build(config, rules))
    target = jax.tree.map(
        lambda w, sharding: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding),
        weights,
        parameters.shardings(weights, rules, mesh),
    )
    params, _ = load_params(folder / "checkpoints", target, step, tokenizer.fingerprint)
    return config, params, tokenizer


def read_run(folder: Path) -> dict[str, Any]:
    """What a run says of itself in config.json: `config` (flat), `model` (resolved), `fingerprints`."""
    path = folder / RUN_FILE
    if not path.is_file():
        beside = sorted(p.parent.name for p in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
        there = f"; runs in {folder.parent}: {', '.join(beside)}" if beside else ""
        raise RunError(f"{folder} is not the folder of a run: it has no config.json{there}")
    return read_object(path, "config", "model", "fingerprints")


def recorded_model(folder: Path, record: dict[str, Any]) -> ModelConfig:
    """The network that the `record` of a run names. Raises RunError for leaves that no network has."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(record["model"].keys() - fields):
        raise RunError(f"{folder / RUN_FILE}: a model has no {', '.join(unknown)}: use the Tessera of the run")
    try:
        for name, value in record["model"].items():
            require_kind(f"model.{name}", name, value)
    except WeightsError as error:
        raise RunError(f"{folder}: {error}") from error
    return ModelConfig(**record["model"])
