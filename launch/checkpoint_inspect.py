"""`tessera checkpoint inspect`: what is in a checkpoint, leaf by leaf."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from launch.checkpoints import Step

USAGE = (
    "show the arrays of a checkpoint: shape, type, bytes and checksum of each; its tokeniser; who wrote it",
    "tessera checkpoint inspect RUN [--step=N]",
)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("step", None, "the checkpoint to show; the newest without", flag_values=values)


def run(values: Any, rest: Sequence[str]) -> int:
    if len(rest) != 1:
        raise flags.Error(f"one run is needed, {len(rest)} are given: {USAGE[1]}")
    from launch.checkpoints import choose, find, read_steps
    from launch.columns import aligned
    from train.console import size
    from train.verify import read_leaves

    folder = find(rest[0])
    step = choose(read_steps(folder), values.step, folder)
    leaves = read_leaves(step.folder)
    rows = [("leaf", "shape", "type", "bytes", "checksum")]
    for leaf in leaves:
        recorded = step.recorded.get(leaf.name, "-").rpartition(" ")[2]
        rows.append((leaf.name, "×".join(map(str, leaf.shape)) or "one", leaf.dtype.name, f"{leaf.nbytes:,}", recorded))
    print(f"{step.folder}\n{aligned(rows, right=(1, 3))}\n")
    for item in dict.fromkeys(leaf.item for leaf in leaves):
        own = [leaf for leaf in leaves if leaf.item == item]
        numbers, nbytes = sum(leaf.size for leaf in own), sum(leaf.nbytes for leaf in own)
        print(f"{item:<11}{len(own)} leaves, {numbers:,} numbers, {size(nbytes)}")
    print(f"{'tokeniser':<11}{step.tokenizer or 'not recorded'}")
    print(f"{'written':<11}{_writer(step)}")
    return 0


def _writer(step: "Step") -> str:
    """When, and by which versions: those of the last start of the run before that."""
    if step.written is None:
        return "not recorded"
    from data.json_text import parse_json

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step.written))
    try:
        starts = parse_json((step.folder.parent.parent / "environment.json").read_bytes())
        before = [
            s for s in starts if time.mktime(time.strptime(s["started"][:19], "%Y-%m-%dT%H:%M:%S")) <= step.written
        ]
        versions = ", ".join(f"{name} {version}" for name, version in before[-1]["packages"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{when}, by versions that are not known"
    return f"{when}, by {versions}"
