"""What a person wants to know before step 1."""

from pathlib import Path
from typing import Any

import jax

from launch.program import Program
from model.config import ModelConfig
from train.chips import chip_of
from train.console import Console, parameter_rows, size
from train.meter import Rates
from train.peers import peers


def peak(program: Program) -> float | None:
    """Peak FLOP/s of one device in the precision of the run, where a data sheet gives it."""
    chip = chip_of(program.mesh.devices.flat[0])
    return chip.peak(program.config.compute_dtype) if chip else None


def show(
    console: Console, program: Program, compiled: Any, seconds: float, rates: Rates, folder: Path, done: int | None
) -> None:
    """Prints parameters, devices, precision, work, memory and the state of the run folder."""
    device, config = program.mesh.devices.flat[0], program.config
    axes = ", ".join(f"{axis} {n}" for axis, n in program.mesh.shape.items() if n > 1) or "one device"
    tokens, steps = rates.global_batch * rates.length, rates.steps
    flops = rates.flops_per_sequence / rates.length
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    shardings = jax.tree.map(lambda x: x.sharding, program.target.params)
    if peers().several:
        console.table("processes", ["process", "devices"], process_rows())
    columns = ["weight", "shape", "count", "mesh axes", "per device"]
    console.table("parameters", columns, parameter_rows(program.weights, shardings))
    lines = {
        "devices": f"{program.mesh.size} × {device.device_kind} ({device.platform}), mesh: {axes}",
        "precision": f"{config.compute_dtype} compute, {config.param_dtype} parameters and optimiser",
        "work": f"{flops:,.0f} FLOPs a token, {tokens:,} tokens a step, {tokens * steps:,} in all",
        "memory": f"{size(held)} state and batch + {size(memory.temp_size_in_bytes)} temporary a device, predicted",
        "attention": program.attention,
        "remat": _remat(config),
        "peak": f"{rates.peak_flops:.3g} FLOP/s" if rates.peak_flops else _no_peak(program),
        "compile": f"{seconds:.1f} s",
        "run": f"{folder}, {'from step 0' if done is None else f'resuming after step {done}'}",
    }
    for name, value in lines.items():
        console.say(f"{name:<10} {value}")


def _remat(config: ModelConfig) -> str:
    if config.remat in ("none", "dots", "full") and not config.remat_offload:
        return {"none": "nothing is computed again", "dots": "all but dense products", "full": "all"}[config.remat]
    kept = "" if config.remat == "full" else config.remat
    places = {"on the device": kept, "in the host's memory": config.remat_offload}
    return "all but " + " and ".join(f"{names} {place}" for place, names in places.items() if names)


def process_rows() -> list[list[str]]:
    """A row a process: what it is called, and the numbers of its devices."""
    rows = []
    for index, name in enumerate(peers().names):
        own = [str(device.id) for device in jax.devices() if device.process_index == index]
        rows.append([name, ", ".join(own)])
    return rows


def _no_peak(program: Program) -> str:
    device = program.mesh.devices.flat[0]
    if chip_of(device):
        return f"no MFU: the published peak is for bfloat16, this run computes in {program.config.compute_dtype}"
    return f"no MFU: no published peak for {device.device_kind}"
