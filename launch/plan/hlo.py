"""The text of a compiled XLA program, taken apart: instructions, how often each runs, and the line of ours it is from.

The grammar is that of `compiled.as_text()` on jax 0.10 to 0.12, for CPU, GPU and TPU.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of an element; what is not here (a token) takes no room.
BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128, "f4e2m1fn": 4}
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\]")
_QUOTED = r'"((?:[^"\\]|\\.)*)"'  # a string, in which a quote is escaped
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shape opcode(operands), attributes`, inside `computation`."""

    name: str
    shape: str  # "f32[8,128]{1,0}", or a tuple of such in brackets
    opcode: str
    operands: tuple[str, ...]  # names; of a constant or parameter what stands in the brackets
    attributes: str
    computation: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of all arrays of its shape, without padding."""
        return array_bytes(self.shape)

    @property
    def op_name(self) -> str:
        """The named scopes and the primitive that it comes from: "jit(train_step)/…/attention/dot_general".

        Of several that were joined, "jit(train_step)/(first:second:…)", the first.
        """
        found = re.search(f"op_name={_QUOTED}", self.attributes)
        first, joined, _ = found[1].partition(":") if found else ("", "", "")
        return first.replace("/(", "/", 1) if joined else first


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: instructions by computation in the order in which they run, and how often each computation runs."""

    computations: dict[str, list[Instruction]]
    entry: str
    times: dict[str, int]  # runs of a computation in one run of the program; a loop of unknown length counts once
    callers: dict[str, Instruction]  # of each computation that is called, the last one that calls it
    frames: dict[int, str]  # "file:line" of each stack frame

    def instructions(self) -> Iterator[Instruction]:
        for instructions in self.computations.values():
            yield from instructions

    def source(self, instruction: Instruction) -> str:
        """ "file:line" of the Python call behind an instruction, or "" where the compiler made it up."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if found:
            return self.frames.get(int(found[1]), "")
        found = re.search(rf"source_file={_QUOTED} source_line=(\d+)", instruction.attributes)
        return f"{found[1]}:{found[2]}" if found else ""


def parse(text: str) -> Module:
    """`compiled.as_text()` as a `Module`.

    Raises:
        ValueError: a text without an entry computation.
    """
    lines: dict[str, list[str]] = {}  # of the instructions of each computation
    current, entry = "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header and not line.startswith(" "):
            current = header[2]
            lines[current] = []
            entry = current if header[1] else entry
        elif line.startswith("  ") and " = " in line and current:
            lines[current].append(line)
        elif re.match(r"\}(,|\s*$)", line):
            current = ""
        elif current and lines[current]:  # the metadata of a kernel goes over several lines
            lines[current][-1] += line
    if not entry:
        raise ValueError("the text has no ENTRY computation: give the as_text() of a compiled program")
    computations = {name: [_instruction(line, name) for line in own] for name, own in lines.items()}
    callers = {called: i for instructions in computations.values() for i in instructions for called in _called(i)}
    return Module(computations, entry, _times(computations, entry), callers, _frames(text))


def array_bytes(shape: str) -> int:
    """Bytes of an array type, or of all arrays of a tuple type, without the padding of tiles."""
    return sum(math.ceil(bits(kind) * math.prod(sizes) / 8) for kind, sizes in arrays(shape))


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and sizes of each array in a type."""
    bare = re.sub(r"\{[^}]*\}", "", shape)
    return [
        (kind, tuple(int(size.strip("<=")) for size in sizes.split(",") if size))
        for kind, sizes in _ARRAY.findall(bare)
    ]


def bits(kind: str) -> int:
    """Of one element of a type: 32 of "f32", 8 of "f8e4m3fn"."""
    if kind in BITS:
        return BITS[kind]
    found = re.match(r"[fsu](\d+)", kind)
    return int(found[1]) if found else 0


def _instruction(line: str, computation: str) -> Instruction:
    name, rest = line.strip().split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    inner, attributes = rest[1 : end - 1], rest[end:].lstrip(", ")
    operands = re.findall(r"%([\w.\-]+)", inner) or ([inner] if inner else [])
    is_root, name = name.startswith("ROOT "), name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, opcode, tuple(operands), attributes, computation, is_root)


def _closing(text: str) -> int:
    """The place behind the bracket that closes the one `text` starts with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"a bracket is not closed: {text[:200]}")


def _times(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    for name in reversed(computations):  # the text has callees before their callers
        for instruction in computations[name]:
            rounds = _rounds(instruction, computations) if instruction.opcode == "while" else 1
            for called in _called(instruction):
                if called in times:
                    times[called] += times[name] * rounds
    return times


def _called(instruction: Instruction) -> list[str]:
    if instruction.opcode in ("async-update", "async-done"):
        return []  # what the async-start has called
    attributes = re.sub(_QUOTED, "", instruction.attributes)
    names = _CALLED.findall(attributes)
    for group in _BRANCHES.findall(attributes):
        names += re.findall(r"%?([\w.\-]+)", group)
    return names


def _rounds(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """Of a `while`: what the compiler notes, else from its counter: `for (i = first; i < last; ++i)`; else 1."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    inside = {i.name: i for i in computations.get(condition[1], [])} if condition else {}
    root = next((i for i in inside.values() if i.is_root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
        return 1
    counter, last = (inside.get(name) for name in root.operands)
    if counter is None or last is None or counter.opcode != "get-tuple-element" or last.opcode != "constant":
        return 1
    return max(int(last.operands[0]) - _first(loop, counter, computations[loop.computation]), 0)


def _first(loop: Instruction, counter: Instruction, around: list[Instruction]) -> int:
    """What the counter of a loop starts from; 0 where that is no constant."""
    index = re.search(r"index=(\d+)", counter.attributes)
    named = {i.name: i for i in around}
    start = named.get(loop.operands[0])
    while start is not None and index and start.opcode in ("tuple", "copy"):
        start = named.get(start.operands[int(index[1]) if start.opcode == "tuple" else 0])
    return int(start.operands[0]) if start is not None and start.opcode == "constant" else 0


def _frames(text: str) -> dict[int, str]:
    """The tables of files, locations and frames at the head of the text."""
    files = {int(n): name for n, name in re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.MULTILINE)}
    located = re.findall(r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _section(text, "FileLocations"), re.MULTILINE)
    places = {int(n): f"{files.get(int(file), '')}:{line}" for n, file, line in located}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _section(text, "StackFrames"), re.MULTILINE)
    return {int(n): places.get(int(place), "") for n, place in frames}


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
