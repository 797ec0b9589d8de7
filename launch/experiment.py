"""From a ConfigDict to one frozen dataclass for each folder, each of which checks itself."""

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from data.config import DataConfig
from data.objectives.objectives import ObjectiveConfig
from model.config import ModelConfig
from model.sharding import PRESETS, ShardingRules, parse_axes
from train.checkpoint import CheckpointConfig
from train.checks import ChecksConfig
from train.loop import TrainConfig
from train.mesh import MeshConfig
from train.optimizers import OptimizerConfig
from train.records import RunConfig

T = TypeVar("T")
SECTIONS = {
    "seed",
    "run",
    "data",
    "model",
    "objective",
    "optimizer",
    "train",
    "checkpoint",
    "checks",
    "mesh",
    "sharding",
    "expect",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment, checked. `model.vocab_size` is 0 where the tokeniser is to say it."""

    seed: int
    run: RunConfig
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    checks: ChecksConfig
    mesh: MeshConfig
    rules: ShardingRules


def read(config: Any) -> Experiment:
    """Checks a ConfigDict, section by section.

    Raises:
        ValueError: a missing or unknown leaf, a wrong type, or a value that its section refuses.
    """
    if wrong := sorted(set(config) ^ SECTIONS):
        hints = [f"{key} (near {difflib.get_close_matches(key, SECTIONS, n=1)})" for key in wrong]
        raise ValueError(f"unknown or missing at the top of the config: {', '.join(hints)}; it has {sorted(SECTIONS)}")
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise ValueError(f"seed is {config.seed!r}: use an integer from 0 to 4294967295")
    return Experiment(
        seed=config.seed,
        run=section(RunConfig, "run", config.run),
        data=section(DataConfig, "data", config.data),
        model=section(ModelConfig, "model", config.model),
        objective=section(ObjectiveConfig, "objective", config.objective),
        optimizer=section(OptimizerConfig, "optimizer", config.optimizer),
        train=section(TrainConfig, "train", config.train),
        checkpoint=section(CheckpointConfig, "checkpoint", config.checkpoint),
        checks=section(ChecksConfig, "checks", config.checks),
        mesh=section(MeshConfig, "mesh", config.mesh),
        rules=sharding_rules(config.sharding),
    )


def section(cls: type[T], name: str, values: Mapping[str, Any]) -> T:
    """One section as its dataclass."""
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
    if unknown := sorted(set(values) - fields):
        raise ValueError(f"unknown config keys in {name}: {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
    if missing := sorted(fields - set(values)):
        raise ValueError(f"config.{name} lacks {', '.join(missing)}: start from configs/defaults.py")
    for key, value in values.items():
        if not _fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise ValueError(f"{name}.{key} is {value!r}, a {type(value).__name__}: it must be {expected}")
    return cls(**dict(values))


def sharding_rules(values: Mapping[str, Any]) -> ShardingRules:
    """The rules of a config's `sharding` section: its preset, with the leaves that are not None in place of it.

    Raises:
        ValueError: no such preset, or a leaf that is no logical axis.
    """
    preset = values["preset"]
    if preset not in PRESETS:
        raise ValueError(f"sharding.preset is {preset!r}: use one of {', '.join(PRESETS)}")
    axes = {field.name for field in dataclasses.fields(ShardingRules)}
    if set(values) - {"preset"} != axes:
        raise ValueError(
            f"config.sharding has other axes than ShardingRules: {sorted(axes ^ (set(values) - {'preset'}))}"
        )
    given = {axis: parse_axes(values[axis]) for axis in axes if values[axis] is not None}
    return dataclasses.replace(PRESETS[preset], **given)


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is collections.abc.Mapping:
        return hasattr(value, "items")
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, typing.get_args(hint)[0]) for item in value)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
