"""Bytes of one device: what a step is given, by shapes and shardings; what it makes, by the compiler or by count."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from launch.plan.hlo import Module, arrays
from launch.plan.live import Live, fullest
from launch.program import Program
from model.parameters import named_leaves
from model.sharding import mesh_axes, shards
from train.offload import HOST

TOP = 10  # buffers that a plan lists


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that is alive at the fullest moment of the compiled step."""

    bytes: int  # on one device, with padding
    shape: str  # type and sizes of the part of one device: "bf16[8,1024,768]"
    op: str  # named scopes and primitive that fill it
    source: str  # "file:line" of ours, or "" where the compiler made it up


@dataclasses.dataclass(frozen=True)
class Replicated:
    """A weight of which several devices hold the same tile, with what the optimiser keeps for it."""

    name: str
    bytes: int  # on one device
    copies: int  # devices that hold each tile
    wasted: int  # on all devices together: what would not be there with one copy of each tile


def given_bytes(program: Program) -> dict[str, int]:
    """What a step gets on the device, by shapes and shardings: parameters, optimizer (statistics, step) and batch."""
    target = program.target
    rows = program.batch_sharding
    batch = (
        math.prod(rows.shard_shape((program.global_batch, *shape))) * jnp.dtype(kind).itemsize
        for shape, kind in program.features.values()
    )
    return {
        "parameters": _held(target.params),
        "optimizer": _held((target.opt_state, target.step)),
        "batch": sum(batch),
    }


def host_bytes(program: Program) -> int:
    """What of a device's state lies in the memory of its host between the steps."""
    return _held(program.target.opt_state, host=True)


def gradient_bytes(parameters: int, numbers: int, microbatches: int) -> int:
    """Of gradients, from the bytes of parameters and how many numbers they are: one for each and like it, and beside it
    their sum in f32 where microbatches are added up (`train.step.gradients`)."""
    return parameters + (4 * numbers if microbatches > 1 else 0)


def counted_bytes(program: Program, microbatches: int) -> dict[str, int]:
    """What a step makes, counted without a compiler for the device: gradients and activations.

    Gradients: `gradient_bytes`, laid out like the weights. Activations: all that the traced forward pass keeps for the
    backward pass (`jax.vjp`), cut as the batch is; axes that also cut heads or the MLP are not counted, nor is what a
    kernel or a fusion would never write down: an upper bound.
    """
    params = program.target.params
    numbers = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    grads = gradient_bytes(_held(params), numbers, microbatches)
    rows = program.global_batch // microbatches
    features = program.features.items()
    batch = {name: jax.ShapeDtypeStruct((rows, *shape), kind) for name, (shape, kind) in features}

    def residuals(params: Any, batch: Any) -> Any:
        key = jax.random.key(0)
        return jax.vjp(lambda params: program.loss_fn(params, batch, key).loss, params)[1]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(residuals)(shapes, batch).jaxpr
    given = {id(variable) for variable in (*jaxpr.invars, *jaxpr.constvars)}
    saved = {id(v): v.aval for v in jaxpr.outvars if id(v) not in given and hasattr(v, "aval")}
    total = sum(_size(aval) for aval in saved.values())
    cut = [axis for axes in program.batch_sharding.spec for axis in mesh_axes(axes)]
    return {"gradients": grads, "activations": total // shards(cut, dict(program.mesh.shape))}


def found_bytes(module: Module, program: Program, temporary: int) -> tuple[dict[str, int], list[Buffer], int]:
    """What a compiled step makes: gradients, activations, temporaries, which together are `temporary`; the largest.

    Gradients and activations are those that are alive at the fullest moment of the schedule: arrays with the sizes of a
    weight's tile that no forward pass made, and what the forward pass made. The third value is how many bytes of
    `temporary` the walk through the schedule has found.
    """
    alive = fullest(module)
    tiles = {leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(program.target.params) if leaf.ndim > 1}
    found = {"gradients": 0, "activations": 0}
    for live in alive:
        scopes, sizes = live.instruction.op_name, arrays(live.shape)[0][1]
        forward = "jvp(" in scopes and "transpose(" not in scopes and "rematted" not in scopes
        if forward:
            found["activations"] += live.bytes
        elif sizes in tiles and "convert" not in live.instruction.opcode:
            found["gradients"] += live.bytes
    # The walk ends a little above what the compiler packs, for tiny programs only.
    found["activations"] = min(found["activations"], temporary)
    found["gradients"] = min(found["gradients"], temporary - found["activations"])
    found["temporaries"] = temporary - found["gradients"] - found["activations"]
    return found, [_buffer(live, module) for live in alive[:TOP] if live.bytes], sum(live.bytes for live in alive)


def replicated(program: Program) -> list[Replicated]:
    """The weights that several devices hold alike, the most wasteful first."""
    found, statistics = [], jax.tree_util.tree_leaves_with_path(program.target.opt_state)
    by_path = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(program.target.params)}
    for (path, leaf), name in zip(by_path.items(), named_leaves(program.target.params), strict=True):
        copies = program.mesh.size // _tiles(leaf)
        own = [leaf, *(kept for at, kept in statistics if at[-len(path) :] == path and kept.size > 1)]
        held = _held(own)
        if copies > 1:
            found.append(Replicated(name, held, copies, held * (program.mesh.size - _tiles(leaf))))
    return sorted(found, key=lambda weight: -weight.wasted)


def _tiles(leaf: Any) -> int:
    return math.prod(leaf.shape) // max(math.prod(leaf.sharding.shard_shape(leaf.shape)), 1)


def _held(tree: Any, *, host: bool = False) -> int:
    here = (x for x in jax.tree.leaves(tree) if (x.sharding.memory_kind == HOST) == host)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in here)


def _size(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize


def _buffer(live: Live, module: Module) -> Buffer:
    shape = re.sub(r"\{.*", "", live.shape)
    return Buffer(live.bytes, shape, live.instruction.op_name, module.source(live.instruction))
