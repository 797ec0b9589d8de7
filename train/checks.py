"""Checks that can be switched on: do all copies of a weight hold the same bits, and does a step give them twice?

Memory and arithmetic units fail in silence (Dixit et al. 2021, "Silent data corruptions at scale"). Both checks compare
checksums that each device makes of what it holds: two numbers a leaf and device are all that travels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.remat import HOST
from train.checksum import part_sums, path_of
from train.meter import TrainingError
from train.peers import Stopped, peers
from train.state import State

SHOWN = 10  # differences that a message names


@dataclasses.dataclass(frozen=True)
class ChecksConfig:
    """How often to look for silent faults of the hardware, or of a program. Both change no number of a run."""

    replicas_every: int  # steps between two comparisons of all copies of the state, also before each save; 0 = none
    repeat_every: int  # steps between two that are computed twice; needs the memory of a second state then; 0 = none

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"checks.{field.name} is {getattr(self, field.name)}: it must not be negative")

    def check(self, devices: int) -> None:
        """Raises ValueError where there is nothing to compare."""
        if self.replicas_every and devices == 1:
            raise ValueError(
                f"checks.replicas_every is {self.replicas_every}, but one device holds no copies: set it to 0, or use "
                "checks.repeat_every"
            )


class ReplicasDiffer(Stopped):
    """Copies that should be equal are not. What is on disk was compared before, so the run can start again from it."""


class Checks:
    """The checks of one run. Every process must call the methods at the same steps, and all find the same."""

    def __init__(self, config: ChecksConfig, train_step: Callable[..., tuple[State, Any]], target: State) -> None:
        """Compiles what is switched on, for states of the shapes, types and shardings of `target`."""
        self._config, self._train_step = config, train_step
        self._kept: State | None = None
        if not (config.replicas_every or config.repeat_every):
            return
        found = jax.tree_util.tree_leaves_with_path(target)
        self._paths = [path_of(path) for path, _ in found]
        mesh = found[0][1].sharding.mesh
        self._devices = list(mesh.devices.flat)
        self._first_DL = np.array([_first_holders(leaf, self._devices) for _, leaf in found]).T
        self._sums = _device_sums(mesh, target)
        if config.repeat_every:
            shardings = jax.tree.map(lambda x: x.sharding, target)
            copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=shardings)
            self._copy = copy.lower(target).compile()

    def before(self, step: int, state: State) -> None:
        """Keeps a copy of the state, which the step gives away, where this step is to be computed twice."""
        if _due(step, self._config.repeat_every):
            self._kept = self._copy(state)

    def after(self, step: int, state: State, batch: Any) -> None:
        """What is due after `step`, which has made `state` from `batch`.

        Raises:
            TrainingError: computed again, the step gave other numbers.
            ReplicasDiffer: see `replicas`.
        """
        if self._kept is not None:
            kept, self._kept = self._kept, None
            again, _ = self._train_step(kept, batch)
            differ_DL = (self._read(state) != self._read(again)).any(-1)
            if differ_DL.any():
                raise TrainingError(
                    f"step {step}, computed twice from the same state and batch, gave different numbers: "
                    f"{self._named(differ_DL)}. A part of the program does not repeat (on a GPU: "
                    "XLA_FLAGS=--xla_gpu_deterministic_ops=true), or one of these devices fails"
                )
        if _due(step, self._config.replicas_every):
            self.replicas(step, state)

    def replicas(self, step: int, state: State) -> None:
        """Compares all copies of each leaf, where that is switched on: before a state is saved, for one.

        Raises:
            ReplicasDiffer: names leaf, device and process of what differs from the copies of most devices, or of all
                where no value has most of them.
        """
        if not self._config.replicas_every:
            return
        sums_DL2 = self._read(state)
        leaves = np.arange(len(self._paths))
        differ_DL = (sums_DL2 != sums_DL2[self._first_DL, leaves]).any(-1)
        if differ_DL.any():
            for leaf in np.flatnonzero(differ_DL.any(0)):
                differ_DL[:, leaf] = _minority(sums_DL2[:, leaf], self._first_DL[:, leaf])
            raise ReplicasDiffer(
                f"step {step}: copies of the same weights differ: {self._named(differ_DL)}. Memory or a device fails "
                "there. No save holds it: the run starts again from the newest checkpoint; if this comes again, do "
                "without that machine"
            )

    def _read(self, state: State) -> np.ndarray:
        return np.asarray(jax.device_get(self._sums(state)))

    def _named(self, differ_DL: np.ndarray) -> str:
        names = peers().names

        def named() -> Iterator[str]:
            for leaf, place in np.argwhere(differ_DL.T):
                device = self._devices[place]
                yield f"{self._paths[leaf]} on {device} of {names[device.process_index]}"

        shown = list(named())
        return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _device_sums(mesh: Mesh, target: State) -> Callable[[State], jax.Array]:
    """Compiled: a state -> uint32 (D, L, 2), the sums of what each device holds of each leaf, whole on every device."""
    targets = jax.tree.leaves(target)

    def one_device(parts: list[jax.Array]) -> jax.Array:
        return jnp.stack([part_sums(part, [0] * part.ndim, part.shape) for part in parts])[None]

    def all_devices(state: State) -> jax.Array:
        leaves = [
            jax.device_put(leaf, to.sharding.with_memory_kind("device")) if to.sharding.memory_kind == HOST else leaf
            for leaf, to in zip(jax.tree.leaves(state), targets, strict=True)
        ]
        specs = [to.sharding.spec for to in targets]
        # Not checked for equality of copies: that they may differ is the point.
        sums = jax.shard_map(
            one_device, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
        )
        return sums(leaves)

    shardings = jax.tree.map(lambda x: x.sharding, target)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(all_devices, in_shardings=(shardings,), out_shardings=everywhere).lower(target).compile()


def _first_holders(leaf: jax.ShapeDtypeStruct, devices: list[Any]) -> list[int]:
    """For each device the first one that holds the same slice of the leaf."""
    assert isinstance(leaf.sharding, NamedSharding)
    held = leaf.sharding.devices_indices_map(leaf.shape)
    slices = [tuple((part.start, part.stop) for part in held[device]) for device in devices]
    first: dict[Any, int] = {}
    return [first.setdefault(part, place) for place, part in enumerate(slices)]


def _minority(sums_D2: np.ndarray, first_D: np.ndarray) -> np.ndarray:
    """Which copies have not the value that most copies of their slice have; all that differ, where none has most."""
    found = np.zeros(len(first_D), bool)
    for first in np.unique(first_D):
        members = np.flatnonzero(first_D == first)
        _, which, counts = np.unique(sums_D2[members], axis=0, return_inverse=True, return_counts=True)
        which, most = which.reshape(-1), counts == counts.max()
        found[members] = len(counts) > 1 if most.sum() > 1 else ~most[which]
    return found


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
