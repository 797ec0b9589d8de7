"""What devices say to each other in one step: the collectives of a compiled program, by mesh axis."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from launch.plan.hlo import Instruction, Module, parse

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a program.

    `bytes` is the size of the whole message of one device and one run: of an all-gather what it has at the end, of a
    reduce-scatter what it has at the beginning, of the others what goes in (and comes out at the same size).
    """

    kind: str  # one of KINDS
    axes: tuple[str, ...]  # mesh axes that its groups run over
    bytes: int
    times: int  # runs in one run of the program: the rounds of the loops around it, multiplied
    where: str  # named scopes and primitive: "jit(train_step)/…/attention/dot_general"
    group: tuple[int, ...] = dataclasses.field(repr=False)  # who exchanges, by place on the mesh: the widest group


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of `compiled.as_text()`, a program compiled for `mesh`, in the order of the text.

    What is asynchronous counts once: a pair of -start and -done, and on TPU the chain of fusions that carry one
    all-gather. TPU's fusion of an all-reduce and a slice is the reduce-scatter that it is. Groups of one device, which
    move nothing, are left out. A loop whose rounds the program does not know ahead counts once.

    A program for several TPU slices is that of one slice: its groups count the devices of the slice, and what goes to
    other slices are sends to the runtime "megascale". An all-reduce of all devices is one inside and one between them.
    """
    return found_in(parse(hlo_text), mesh)


def found_in(module: Module, mesh: Mesh) -> list[Collective]:
    """`collectives` of a program that is already taken apart."""
    named = {i.name: i for i in module.instructions()}
    several = any(_transfer(i) for i in named.values())
    slices = _slices(mesh) if several else [np.arange(mesh.size)]
    chains = {i.computation for i in named.values() if '"AsyncCollectiveStart"' in i.attributes}
    found = []
    for instruction in named.values():
        transfer = _transfer(instruction)
        kind = transfer or instruction.opcode.removesuffix("-start")
        times, inside = module.times[instruction.computation], instruction.computation
        continues = "chain_id=" in instruction.attributes and inside not in chains
        if kind not in KINDS or not times or continues:
            continue
        groups = (
            _between(instruction, slices) if transfer else [slices[0][g] for g in _groups(instruction, slices[0].size)]
        )
        if axes := _axes(groups, mesh):
            operands = instruction.operands[:1] if transfer else instruction.operands
            size = _message(kind, operands, named, groups)
            caller = module.callers.get(inside)
            where = instruction.op_name or (caller.op_name if caller else "")
            kind = "reduce-scatter" if inside.startswith("all-reduce-scatter") else kind
            widest = max(groups, key=np.ptp)
            found.append(Collective(kind, axes, size, times, where, tuple(map(int, widest))))
    return found


def _transfer(instruction: Instruction) -> str:
    """The kind of exchange between slices that an instruction begins, or ""."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.opcode != "send" or not found:
        return ""
    return "collective-permute" if found[1] == "ONE_TO_ONE" else found[1].lower().replace("_", "-")


def _slices(mesh: Mesh) -> list[np.ndarray]:
    """The places on the mesh of the devices of each slice."""
    numbers = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    return [np.flatnonzero(numbers == number) for number in np.unique(numbers)]


def _between(instruction: Instruction, slices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The devices of several slices that exchange; slices count from 1.

    `{{200000->100000},{200001->100001}}`: device 0 of slice 2 sends to device 0 of slice 1, device 1 to device 1.
    `{{100000,300000},{200000,400000}}`: those of slices 1 and 3, and of 2 and 4, exchange.
    `{1,2}x{0:3}`: in slices 1 and 2 those that have the same number, from 0 to 3.
    """
    text = instruction.attributes.partition("_xla_megascale_target=")[2]
    if text.startswith("{{"):
        listed = [re.findall(r"\d+", group) for group in text[2:].partition("}}")[0].split("},{")]
        return [np.array([slices[int(n) // 10**5 - 1][int(n) % 10**5] for n in group]) for group in listed]
    found = re.match(r'"\{([\d,:]+)\}x', text)
    if not found:
        raise ValueError(f"cannot read what goes between slices: {instruction.attributes[:300]!r}")
    ends = [_numbers(part.replace(":", ",")) for part in found[1].split(",")]
    numbers = [n for end in ends for n in range(end[0], end[-1] + 1)]
    return list(np.stack([slices[n - 1] for n in numbers]).T)


def _message(kind: str, operands: Sequence[str], named: dict[str, Instruction], groups: Sequence[np.ndarray]) -> int:
    operands = operands[:1] if kind == "ragged-all-to-all" else operands
    size = sum(named[name].bytes for name in operands)
    return size * len(groups[0]) if kind == "all-gather" else size


def _groups(instruction: Instruction, num_devices: int) -> list[np.ndarray]:
    """The devices that exchange, group by group; of a permute each pair that really moves something."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.attributes)
    if pairs:
        ids = [int(n) for n in re.findall(r"\d+", pairs[1])]
        return [np.array(pair) for pair in zip(ids[::2], ids[1::2], strict=True) if pair[0] != pair[1]]
    text = instruction.attributes.partition("replica_groups=")[2]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if iota := re.match(r"\[([\d,]+)\]<=", text):
        rows = _iota(text[iota.end() - 2 :], num_devices).reshape(_numbers(iota[1]))
        return list(rows.reshape(rows.shape[0], -1))
    listed = re.match(r"\{((?:\{[\d,]*\},?)*)\}", text)
    groups = [np.array(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", listed[1])] if listed else []
    return groups or [np.arange(num_devices)]  # none listed: all together


def _iota(text: str, num_devices: int) -> np.ndarray:
    """`<=[8,2]T(1,0)`: numbers counted up in one shape and read out in another order of its dimensions."""
    found = re.match(r"(?:<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.arange(num_devices)
    shape = _numbers(found[1])
    counted = np.arange(math.prod(shape)).reshape(shape)
    return (counted.transpose(_numbers(found[2])) if found[2] else counted).reshape(-1)


def _mesh_groups(text: str) -> list[np.ndarray]:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b':(2)2}`: along named axes of the compiler's own mesh.

    `'b':(2)2` is a part of an axis: size 2, with 2 parts outside it.
    """
    found = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? ?\{(.*?)\}", text)
    if not found:
        raise ValueError(f"cannot read the replica groups {text[:200]!r}")
    axes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", found[1])}
    total = math.prod(axes.values())
    ids = np.array(_numbers(found[2])) if found[2] and found[2][0].isdigit() else _iota(found[2] or "", total)
    along = {name: (int(outer or 1), int(size or axes[name])) for name, outer, size in _named(found[3])}
    shape, inside = [], []
    for name, size in axes.items():
        outer, length = along.get(name, (size, 1))
        inside.append(len(shape) + 1)
        shape += [outer, length, size // (outer * length)]
    outside = [place for place in range(len(shape)) if place not in inside]
    rows = ids.reshape(shape).transpose(outside + inside)
    return list(rows.reshape(-1, math.prod(shape[place] for place in inside)))


def _named(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"'?([\w\-]+(?:\.[\w\-]+)*)'?(?::\((\d+)\)(\d+))?", text)


def _axes(groups: Sequence[np.ndarray], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which places differ inside a group. A program counts devices in the order of the mesh."""
    differs = np.zeros(mesh.devices.ndim, bool)
    for group in groups:
        places = np.stack(np.unravel_index(group, mesh.devices.shape))
        differs |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, differ in zip(mesh.axis_names, differs, strict=True) if differ)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
