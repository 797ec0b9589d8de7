"""A plan: the real training step of a config, compiled for devices that are not here, and what follows from it."""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data.errors import DataError
from data.objectives.objectives import special_names
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WithSpecials, load_tokenizer
from launch.experiment import Experiment, read
from launch.plan import roofline
from launch.plan.collectives import Collective, found_in
from launch.plan.flops import executed_flops
from launch.plan.hlo import parse
from launch.plan.live import traffic
from launch.plan.memory import Buffer, Replicated, counted_bytes, found_bytes, given_bytes, host_bytes, replicated
from launch.plan.shortage import shortage
from launch.plan.topology import COMPILED, EMULATED, Topology, find_topology
from launch.program import Program, assemble
from model.config import flops_per_sequence
from model.sharding import MESH_AXES

__all__ = ["Buffer", "Collective", "Plan", "Replicated", "plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step of a config would need on some devices. Bytes are those of one device, unless said otherwise.

    bytes: parameters, optimizer (statistics and step), batch and padding are given to a step; gradients, activations
        and temporaries are made by it; code; total is their sum. Of a step that does not fit, what the compiler told.
        host is not of it: statistics that lie in the host's memory between the steps.
    fits: by the compiler for TPU, with nothing else in the memory; by count where the devices are emulated; None where
        the chip has no data sheet (cpu).
    """

    config: str  # name of the experiment's run
    topology: str  # as asked for: "v5p:4x4x8"
    slices: int  # copies of it, joined by the network
    chip: str  # kind of device
    num_chips: int
    num_devices: int  # that JAX shows; two a chip on tpu7x
    mesh: dict[str, int]  # size of each axis
    method: str  # "compiled for TPU" | "emulated"
    fits: bool | None
    limit_bytes: int | None  # that a program may take of it: `train.chips.Chip`
    bytes: dict[str, int]
    named_bytes: int  # of gradients, activations and temporaries: how many the walk through the schedule found
    buffers: list[Buffer]  # the largest arrays at the fullest moment; of the CPU's program where emulated
    replicated: list[Replicated]  # weights of which devices hold several copies
    collectives: list[Collective]  # of one step; of the CPU's program where emulated
    flops_per_step: float  # useful ones of all devices: `model.config.flops_per_sequence`
    executed_flops_per_step: float  # matrix products of the traced step, recomputation included
    traffic: float  # bytes that a device reads and writes in a step; where emulated, only its state, once each
    compute_seconds: float | None  # executed FLOPs at the bf16 peak; None in float32, whose peak no data sheet gives
    memory_seconds: float | None  # traffic at the HBM's bandwidth
    collective_seconds: dict[str, float]  # by mesh axes, joined with "+"
    step_seconds: float | None  # the longest of compute, memory and wires: everything overlaps
    serial_step_seconds: float | None  # their sum: nothing overlaps
    mfu_bound: float | None  # useful FLOPs, as far as they are executed, over the peak, in step_seconds
    tokens_per_step: int
    tokens_per_day: float | None  # in steps of step_seconds
    tokens: float  # budget: what was asked for, or all steps of the config
    days: float | None  # to the budget
    chip_hours: float | None
    compile_seconds: float
    problem: str = ""  # what the compiler said where the step does not fit

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and strings, for JSON."""
        return dataclasses.asdict(self)


def plan(
    config: ConfigDict, topology: str, *, mesh: Mapping[str, int] | None = None, slices: int = 1, tokens: float = 0.0
) -> Plan:
    """Compiles the training step of `config` for a topology and says what it needs and how fast it could be.

    Args:
        config: an experiment, as `tessera train` takes it. Its corpus is not needed: nothing is read or downloaded.
        topology: "v5p:4x4x8", "h100:8", "cpu:8": see `launch.plan.topology`.
        mesh: sizes of mesh axes in place of the config's; axes that are not named are 1 then.
        slices: TPU slices of that topology, joined by the network.
        tokens: a budget for days and chip-hours; 0: all steps of the config.

    Raises:
        ValueError: a topology that does not exist, a mesh or batch that does not divide, a vocabulary that nobody
            knows; before anything is compiled.
    """
    experiment = read(config)
    if mesh is not None:
        if unknown := sorted(mesh.keys() - set(MESH_AXES)):
            raise ValueError(f"no mesh axis {', '.join(unknown)}: the axes are {', '.join(MESH_AXES)}")
        sizes = {axis: mesh.get(axis, 1) for axis in MESH_AXES}
        experiment = dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, **sizes))
    if tokens < 0:
        raise ValueError(f"tokens is {tokens}: a budget is positive, or 0 for all steps of the config")
    return planned(experiment, find_topology(topology, slices), tokens=tokens)


def planned(experiment: Experiment, topology: Topology, *, tokens: float = 0.0) -> Plan:
    """`plan` of an experiment that is read, on devices that are found: for whoever makes many."""
    if experiment.model.architecture == "ngram":
        raise ValueError("an n-gram model is counted, not trained in steps: there is nothing to plan")
    experiment = in_slices(experiment, topology.slices)
    program = assemble(experiment, stand_in(experiment), topology.devices)
    with jax.set_mesh(program.mesh):
        executed = executed_flops(jax.make_jaxpr(program.step_fn)(program.target, program.abstract_batch()))
        memory = _compiled(program, topology, experiment.train.microbatches)
    speed = _speed(experiment, program, topology, executed, memory, tokens)
    chip = topology.chip
    return Plan(
        config=experiment.run.dir.rstrip("/").rpartition("/")[2],
        topology=topology.name,
        slices=topology.slices,
        chip=topology.devices[0].device_kind if topology.method == COMPILED else topology.name.partition(":")[0],
        num_chips=program.mesh.size // (chip.devices if chip else 1),
        num_devices=program.mesh.size,
        mesh=dict(program.mesh.shape),
        method=topology.method,
        limit_bytes=chip.limit_bytes if chip else None,
        replicated=replicated(program),
        executed_flops_per_step=executed,
        **memory,
        **speed,
    )


def in_slices(experiment: Experiment, slices: int) -> Experiment:
    """With the slices of a topology, which emulated devices know nothing of, where the config leaves them to it."""
    if experiment.mesh.slices != -1:
        return experiment
    return dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, slices=slices))


def stand_in(experiment: Experiment) -> Tokenizer:
    """A tokenizer with as many ids as the config's will have, since a plan has no text to train one on.

    Raises:
        ValueError: where only the corpus can tell how many those are.
    """
    data, rows = experiment.data, experiment.model.vocab_size
    if data.tokenizer == "byte":
        return ByteTokenizer()
    if data.tokenizer not in ("char", "sentencepiece"):
        try:
            return load_tokenizer(data.tokenizer)
        except DataError:
            if not rows:
                raise
    if data.tokenizer != "sentencepiece" and not rows:
        raise ValueError(
            "data.tokenizer is 'char': its ids are the characters of the corpus, which a plan does not read. "
            "Give their number with --config.model.vocab_size=N"
        )
    count = (
        data.tokenizer_vocab if data.tokenizer == "sentencepiece" else rows - len(special_names(experiment.objective))
    )
    code_points = (point for point in range(count - 2 + 0x800) if not 0xD800 <= point < 0xE000)
    chars = "".join(map(chr, itertools.islice(code_points, count - 2)))
    return WithSpecials(CharTokenizer(chars), ("unk", "eos"))


def _compiled(program: Program, topology: Topology, microbatches: int) -> dict[str, Any]:
    """Compiles, and what that tells of memory and wires."""
    given, limit = given_bytes(program), topology.chip.limit_bytes if topology.chip else None
    began = time.perf_counter()
    try:
        compiled, seconds = program.compile()
    except jax.errors.JaxRuntimeError as error:
        lack = shortage(error)
        if lack is None:
            raise
        needed = {**given, "temporaries": max(0, (lack.asked or 0) - sum(given.values()))}
        return {
            "fits": False,
            "bytes": {**needed, "total": sum(needed.values()), "host": host_bytes(program)},
            "named_bytes": 0,
            "buffers": [],
            "collectives": [],
            "traffic": 0.0,
            "compile_seconds": time.perf_counter() - began,
            "problem": str(error).removeprefix("RESOURCE_EXHAUSTED: "),
        }
    module, told = parse(compiled.as_text()), compiled.memory_analysis()
    made, buffers, named = found_bytes(module, program, told.temp_size_in_bytes)
    if topology.method == EMULATED:
        made, named = {**counted_bytes(program, microbatches), "temporaries": 0}, 0
        outside = {"padding": told.argument_size_in_bytes - sum(given.values())}
    else:
        made["temporaries"] += told.output_size_in_bytes - told.alias_size_in_bytes
        padding = told.argument_size_in_bytes - sum(given.values())
        outside = {"padding": padding, "code": told.generated_code_size_in_bytes}
    needed = {**given, **made, **outside}
    total = sum(needed.values())
    state = given["parameters"] + given["optimizer"]
    return {
        "fits": None if limit is None else total <= limit,
        "bytes": {**needed, "total": total, "host": host_bytes(program)},
        "named_bytes": named,
        "buffers": buffers,
        "collectives": found_in(module, program.mesh),
        "traffic": traffic(module) if topology.method == COMPILED else 2.0 * state,
        "compile_seconds": seconds,
    }


def _speed(
    experiment: Experiment, program: Program, topology: Topology, executed: float, memory: dict[str, Any], tokens: float
) -> dict[str, Any]:
    """The roofline of one step, and what it means for a budget of tokens."""
    length, source = (program.features[name][0][0] if name in program.features else 0 for name in ("inputs", "source"))
    useful = program.global_batch * flops_per_sequence(program.config, length, source)
    a_step = program.global_batch * (length + source)
    known: dict[str, Any] = {
        "flops_per_step": useful,
        "tokens_per_step": a_step,
        "tokens": tokens or float(a_step * experiment.train.steps),
        "collective_seconds": {},
    }
    chip, devices = topology.chip, program.mesh.size
    unknown = ("compute_seconds", "step_seconds", "serial_step_seconds", "mfu_bound")
    known |= dict.fromkeys((*unknown, "memory_seconds", "tokens_per_day", "days", "chip_hours"))
    if chip is None:
        return known
    hbm = roofline.memory_seconds(memory["traffic"], chip)
    places = roofline.places_of(topology.devices, chip, topology.sizes)
    wires = roofline.collective_seconds(memory["collectives"], program.mesh, chip, places)
    known |= {
        "memory_seconds": hbm,
        "collective_seconds": {"+".join(axes): seconds for axes, seconds in wires.items()},
    }
    peak = chip.peak(program.config.compute_dtype)
    if peak is None:
        return known
    compute = roofline.compute_seconds(executed, peak, devices)
    step = max(compute, hbm, sum(wires.values()))
    days = known["tokens"] / a_step * step / roofline.SECONDS_A_DAY
    return known | {
        "compute_seconds": compute,
        "step_seconds": step,
        "serial_step_seconds": compute + hbm + sum(wires.values()),
        # A kernel that skips what a window hides executes less than counts as useful: that is no reason for over 100 %.
        "mfu_bound": roofline.mfu(min(useful, executed), step, peak, devices),
        "tokens_per_day": a_step / step * roofline.SECONDS_A_DAY,
        "days": days,
        "chip_hours": 24 * days * devices / chip.devices,
    }
