"""An experiment with other leaves on another mesh of the same devices: what searches try and advice names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from launch.experiment import Experiment
from launch.plan.estimate import features, held_bytes
from launch.plan.layout import abstract_mesh
from launch.plan.plan import stand_in
from launch.program import check_on
from launch.rows import objective_of
from model.chunks import check_chunks
from train.mesh import check_length, num_slices, over_slices


@dataclasses.dataclass(frozen=True)
class Variant:
    """One experiment on one mesh, with the command line that makes it of another, and its bytes by count."""

    overrides: tuple[str, ...]  # "--config.train.microbatches=8"
    experiment: Experiment
    sizes: dict[str, int]  # of every mesh axis
    bytes: dict[str, int]  # of one device: `launch.plan.estimate.held_bytes`

    @property
    def total(self) -> int:
        """On the device: without what lies on its host."""
        return sum(held for kind, held in self.bytes.items() if kind != "host")


def with_vocabulary(experiment: Experiment) -> Experiment:
    """With the number of ids that its tokeniser will have, where the config leaves it to that."""
    if experiment.model.vocab_size:
        return experiment
    tokenizer, _ = objective_of(experiment, stand_in(experiment))
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab_size=tokenizer.vocab_size))


def as_it_is(experiment: Experiment, sizes: Mapping[str, int]) -> Variant:
    """The experiment itself. Raises ValueError for a mesh that it does not go on."""
    return Variant((), experiment, dict(sizes), held_bytes(experiment, sizes))


def vary(experiment: Experiment, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> Variant | None:
    """The experiment with `changes` ("train.microbatches" -> 8), where `mesh.AXIS` changes the sizes.

    None where it cannot be: a mesh that does not cut a weight or the batch into equal parts, or values that do not go
    together. `model.vocab_size` of the experiment is known.
    """
    given, sizes = experiment, {**sizes, **{name[5:]: n for name, n in changes.items() if name.startswith("mesh.")}}
    try:
        for section in ("model", "train", "optimizer"):
            leaves = {name.split(".")[1]: value for name, value in changes.items() if name.startswith(f"{section}.")}
            changed = dataclasses.replace(getattr(experiment, section), **leaves)
            experiment = dataclasses.replace(experiment, **{section: changed})
        mesh = abstract_mesh(sizes)
        over_slices(sizes, num_slices(experiment.mesh.slices, jax.devices()))
        check_on(experiment, mesh)
        lengths = {name: shape[0] for name, (shape, _) in features(experiment).items()}
        for length in lengths.values():
            check_length(mesh, experiment.rules, length)
        check_chunks(experiment.train.loss_chunks, lengths["inputs"], experiment.rules, sizes)
        held = held_bytes(experiment, sizes)
    except ValueError:
        return None
    overrides = _overrides(given, sizes, changes)
    return Variant(
        overrides, dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, **sizes)), sizes, held
    )


def _overrides(experiment: Experiment, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> tuple[str, ...]:
    # A mesh is given whole: an axis of the config may be -1, whose size is known only now.
    moved = any(name.startswith("mesh.") for name in changes)
    mesh = {f"mesh.{axis}": n for axis, n in sizes.items() if moved and getattr(experiment.mesh, axis) != n}
    others = {name: value for name, value in changes.items() if not name.startswith("mesh.")}
    others = {name: value for name, value in others.items() if _leaf(experiment, name) != value}
    return tuple(f"--config.{name}={value}" for name, value in {**mesh, **others}.items())


def _leaf(experiment: Experiment, name: str) -> Any:
    section, leaf = name.split(".")
    return getattr(getattr(experiment, section), leaf)
