"""The optimiser's state in host memory: it is on the device only during the update."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from model.remat import HOST
from train.state import State


def check_host(mesh: Mesh, asked: str) -> None:
    """Fails if a device cannot read the memory of its host. `asked`: the config leaf that needs it, with its value.

    Raises:
        ValueError: names the kinds of memory that the device has.
    """
    device = mesh.devices.flat[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST not in kinds:
        raise ValueError(
            f"{asked}: {device.device_kind} has no {HOST} memory, only {', '.join(kinds)}. Leave it at its default"
        )


def on_host(target: State) -> State:
    """`target` (shapes, types and shardings) with the optimiser's arrays in host memory; scalars stay."""

    def move(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        to = x.sharding if x.size <= 1 or x.sharding is None else x.sharding.with_memory_kind(HOST)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)

    return target.replace(opt_state=jax.tree.map(move, target.opt_state))


def offloaded(step_fn: Callable[[State, Any], tuple[State, Any]], target: State) -> Callable[..., tuple[State, Any]]:
    """`step_fn` for a state whose optimiser arrays are on the host between steps; `target` has their shardings."""
    here = jax.tree.map(lambda x: x.sharding, target.opt_state)
    there = jax.tree.map(lambda x: x.sharding, on_host(target).opt_state)

    def step(state: State, batch: Any) -> tuple[State, Any]:
        with jax.named_scope("from_host"):
            state = state.replace(opt_state=jax.device_put(state.opt_state, here))
        state, metrics = step_fn(state, batch)
        with jax.named_scope("to_host"):
            return state.replace(opt_state=jax.device_put(state.opt_state, there)), metrics

    return step
