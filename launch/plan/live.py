"""Which arrays are alive at the fullest moment of a compiled program, and what it reads and writes: from its schedule.

The compiler says how much memory its temporaries take (`memory_analysis`), not what they are. Walking the scheduled
instructions with the sizes of their padded tiles comes close to its figure and gives names to it.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from launch.plan.hlo import Instruction, Module, bits

# These hand their operands on; a loop, an update or an asynchronous end works in place.
_SAME = {"bitcast", "tuple", "get-tuple-element", "while", "optimization-barrier", "opt-barrier", "domain"}
_FREE = {"parameter", "constant", "iota", "partition-id", "replica-id", "after-all"}
_SPACE = re.compile(r"S\(\d+\)")  # a memory space other than the main one
_LAYOUT = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](?:\{([0-9,]*)(?::([^}]*))?\})?")


@dataclasses.dataclass(frozen=True)
class Live:
    """An array that is alive, with the instruction that fills it."""

    bytes: int  # with the padding of its tiles
    shape: str
    instruction: Instruction


def fullest(module: Module) -> list[Live]:
    """What is alive at the fullest moment, largest first; without arguments and what is written over them."""
    found = _Walk(module).peak(module.entry)
    return sorted(found, key=lambda live: -live.bytes)


def traffic(module: Module) -> float:
    """Bytes that one device reads from and writes to its main memory in one run.

    What each instruction takes and gives, times its runs; of a slice only the slice. What stays on the chip
    (memory spaces other than 0) is free.
    """
    named = {i.name: i for i in module.instructions()}
    inside = {
        called for i in module.instructions() if i.opcode in ("fusion", "reduce", "sort", "scatter", "map")
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", i.attributes)
    }  # fmt: skip
    total = 0.0
    for name, instructions in module.computations.items():
        if name in inside or not module.times[name]:
            continue
        once = sum(_moved(i, named, module) for i in instructions if i.opcode not in _SAME | _FREE)
        total += once * module.times[name]
    return total


def padded_bytes(shape: str) -> int:
    """Of all arrays of a type that lie in main memory, with the tiles of TPU layouts: `{1,0:T(8,128)S(1)}`."""
    total = 0
    for kind, sizes, order, tiles in _LAYOUT.findall(shape):
        if re.search(r"S\([1-9]", tiles):
            continue
        dims = [int(size.strip("<=")) for size in sizes.split(",") if size]
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if tile and dims:
            minor_first = [dims[int(place)] for place in order.split(",")]
            for place, step in enumerate(reversed([int(n) for n in tile[1].split(",")])):
                if place < len(minor_first):
                    minor_first[place] = math.ceil(minor_first[place] / step) * step
            dims = minor_first
        total += math.ceil(bits(kind) * math.prod(dims) / 8)
    return total


class _Walk:
    """A walk through the schedule of a computation and of the loops in it. A value is an array or a tuple of values."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._named = {i.name: i for i in module.instructions()}
        self._peaks: dict[str, list[Live]] = {}

    def peak(self, name: str) -> list[Live]:
        """What a computation has alive of its own at its fullest moment."""
        if name not in self._peaks:
            self._peaks[name] = self._walk(self._module.computations[name])
        return self._peaks[name]

    def _walk(self, instructions: Sequence[Instruction]) -> list[Live]:
        values: dict[str, Any] = {}
        made: dict[str, Live] = {}
        starts: dict[str, list[str]] = {}
        for i in instructions:
            values[i.name] = self._value(i, values, made)
            starts[i.name] = [array for array in made if array.rpartition("#")[0] == i.name]
        uses = ((place, name) for place, i in enumerate(instructions) for name in (i.name, *i.operands))
        last = {array: place for place, name in uses for array in _flat(values.get(name))}
        for kept in _flat(values[instructions[-1].name]):  # written where an argument of the computation was
            made.pop(kept, None)
        ends: dict[int, list[str]] = {}
        for array, place in last.items():
            ends.setdefault(place, []).append(array)
        alive: dict[str, Live] = {}
        most, found, held = -1, [], 0
        for place, i in enumerate(instructions):
            new = {array: made[array] for array in starts[i.name] if array in made}
            alive |= new
            held += sum(live.bytes for live in new.values())
            within = max((self.peak(name) for name in called_in_place(i)), key=_total, default=[])
            if held + _total(within) > most:
                most, found = held + _total(within), [*alive.values(), *within]
            for array in ends.get(place, []):
                held -= alive.pop(array).bytes if array in alive else 0
        return found

    def _value(self, i: Instruction, values: dict[str, Any], made: dict[str, Live]) -> Any:
        operands = [values.get(name) for name in i.operands]
        if i.opcode in ("parameter", "constant"):
            return None
        if i.opcode == "tuple":
            return tuple(operands)
        if i.opcode == "get-tuple-element":
            place = int(re.search(r"index=(\d+)", i.attributes)[1])  # type: ignore[index]
            return operands[0][place] if isinstance(operands[0], tuple) else operands[0]
        if i.opcode == "while":
            self._describe(i, operands[0], made)
            return operands[0]
        if i.opcode in _SAME:
            return operands[0] if operands else None
        if i.opcode.endswith("-done"):
            value = operands[0] if operands else None
            return value[0 if i.opcode == "copy-done" else 1] if isinstance(value, tuple) else value
        if (updated := self._updated(i)) is not None:
            return values.get(updated)
        parts: list[Any] = []
        begins = i.opcode.endswith("-start") and i.shape.startswith("(")
        for number, text in enumerate(_pieces(i.shape)):
            # A copy begins as (new, old, …), all else as (old, new, …).
            if begins and number == (1 if i.opcode == "copy-start" else 0):
                parts.append(operands[0])
                continue
            name = f"{i.name}#{number}"
            made[name] = Live(padded_bytes(text), text, i)
            parts.append(name)
        return tuple(parts) if i.shape.startswith("(") else parts[0] if parts else None

    def _updated(self, i: Instruction) -> str | None:
        """The operand that an instruction updates in place: the target of a dynamic-update-slice, fused or not."""
        if i.opcode == "dynamic-update-slice":
            return i.operands[0]
        called = re.search(r"calls=%?([\w.\-]+)", i.attributes) if i.opcode == "fusion" else None
        body = self._module.computations.get(called[1], []) if called else []
        root = body[-1] if body else None
        while root is not None and root.opcode in ("bitcast", "copy", "convert"):
            root = self._named.get(root.operands[0])
        if root is None or root.opcode != "dynamic-update-slice":
            return None
        target = self._named.get(root.operands[0])
        while target is not None and target.opcode in ("bitcast", "convert"):
            target = self._named.get(target.operands[0])
        if target is None or target.opcode != "parameter":
            return None
        return i.operands[int(target.operands[0])]

    def _describe(self, loop: Instruction, carried: Any, made: dict[str, Live]) -> None:
        """An array that a loop fills is said to be from the instruction in the loop that fills it."""
        body = re.search(r"body=%?([\w.\-]+)", loop.attributes)
        root = self._module.computations[body[1]][-1] if body else loop
        if root.opcode != "tuple" or not isinstance(carried, tuple):
            return
        for array, filler in zip(carried, root.operands, strict=False):
            by = self._named[filler]
            if isinstance(array, str) and array in made and by.op_name and by.opcode != "get-tuple-element":
                made[array] = dataclasses.replace(made[array], instruction=by)


def called_in_place(i: Instruction) -> list[str]:
    """The computations whose arrays are alive while an instruction runs: the body of a loop, the sides of a branch."""
    names = re.findall(r"\b(?:body|true_computation|false_computation)=%?([\w.\-]+)", i.attributes)
    if i.opcode == "call":
        names += re.findall(r"to_apply=%?([\w.\-]+)", i.attributes)
    for group in re.findall(r"branch_computations=\{([^}]*)\}", i.attributes):
        names += re.findall(r"%?([\w.\-]+)", group)
    return names


def _moved(i: Instruction, named: dict[str, Instruction], module: Module) -> float:
    """Bytes in and out of one instruction."""
    if i.opcode.endswith("-start"):  # it reads, and its end has written: what it carries in its shape is counted there
        sliced = i.opcode in ("slice-start", "dynamic-slice-start")
        read = (
            [_pieces(i.shape)[len(i.operands)]]
            if sliced
            else [named[name].shape for name in i.operands if name in named]
        )
        return sum(padded_bytes(_SPACE.sub("", shape) if sliced else shape) for shape in read)
    if i.opcode.endswith("-done"):
        return padded_bytes(i.shape)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        read = padded_bytes(_SPACE.sub("", i.shape)) if padded_bytes(named[i.operands[0]].shape) else 0
        return read + padded_bytes(i.shape)
    if i.opcode == "dynamic-update-slice":
        return 2 * padded_bytes(named[i.operands[1]].shape)
    called = re.search(r"calls=%?([\w.\-]+)", i.attributes) if i.opcode == "fusion" else None
    if called is None or called[1] not in module.computations:
        return padded_bytes(i.shape) + sum(padded_bytes(named[name].shape) for name in i.operands if name in named)
    body = module.computations[called[1]]
    moved, given = 0, padded_bytes(i.shape)
    for parameter in (p for p in body if p.opcode == "parameter"):
        users = [user for user in body if parameter.name in user.operands]
        whole = padded_bytes(parameter.shape)
        if not whole:  # on the chip, and so is what is cut out of it or written into it
            continue
        if users and all(u.opcode == "dynamic-update-slice" and u.operands[0] == parameter.name for u in users):
            given += sum(padded_bytes(named[user.operands[1]].shape) for user in users) - whole
        else:
            moved += _taken(parameter, body, module)
    return moved + max(given, 0)


def _taken(parameter: Instruction, body: Sequence[Instruction], module: Module) -> int:
    """Bytes that a fusion reads of what it is given: of a slice only the slice, in a fusion inside it too."""
    whole, taken = padded_bytes(parameter.shape), 0
    for user in (user for user in body if parameter.name in user.operands):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            taken += padded_bytes(user.shape)
            continue
        called = re.search(r"calls=%?([\w.\-]+)", user.attributes) if user.opcode == "fusion" else None
        if called is None:
            return whole
        inner = module.computations[called[1]]
        own = (p for p in inner if p.opcode == "parameter" and user.operands[int(p.operands[0])] == parameter.name)
        taken += sum(_taken(p, inner, module) for p in own)
    return min(taken, whole)


def _pieces(shape: str) -> list[str]:
    """The text of each array in a type."""
    return [found[0] for found in _LAYOUT.finditer(shape)]


def _flat(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return [array for part in value for array in _flat(part)]
    return [] if value is None else [value]


def _total(lives: Sequence[Live]) -> int:
    return sum(live.bytes for live in lives)
