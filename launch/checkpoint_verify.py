"""`tessera checkpoint verify`: is a checkpoint still what was written? Nothing is changed."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from launch.checkpoints import Step

USAGE = (
    "read every number of a checkpoint and compare it with what was written, whatever mesh wrote it, in little memory",
    "tessera checkpoint verify RUN [--step=N | --all]",
)
_SILENT, _EVERY = 3.0, 10.0  # seconds: before the first word of progress, and between lines where no terminal is


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("step", None, "the checkpoint to verify; the newest without", flag_values=values)
    flags.DEFINE_bool("all", False, "verify all that are finished", flag_values=values)


def run(values: Any, rest: Sequence[str]) -> int:
    """0 where all is well, 65 where a leaf of any of the checkpoints cannot be read, or is not what was written."""
    if len(rest) != 1:
        raise flags.Error(f"one run is needed, {len(rest)} are given: {USAGE[1]}")
    if values.all and values.step is not None:
        raise flags.Error(f"--all and --step={values.step} contradict each other: {USAGE[1]}")
    from launch.checkpoints import choose, find, read_steps
    from launch.cli import BAD_DATA, OK

    folder = find(rest[0])
    steps = read_steps(folder)
    newest = choose(steps, values.step, folder)
    return OK if all([whole(step) for step in (steps if values.all else [newest])]) else BAD_DATA


def whole(step: "Step") -> bool:
    """Reads a checkpoint and prints what became of it: whether nothing is wrong."""
    from train.console import size
    from train.restore import CheckpointError
    from train.verify import read_about, read_leaves, verify

    try:
        read_about(step.folder)
        total = sum(leaf.nbytes for leaf in read_leaves(step.folder))
        with _Shown(f"step {step.number}", total) as show:
            verdicts = list(verify(step.folder, step.recorded, report=show))
    except CheckpointError as error:
        print(f"step {step.number}: DAMAGED: {error}")
        return False
    problems = [verdict for verdict in verdicts if verdict.problem]
    for verdict in problems:
        print(f"step {step.number}: DAMAGED: {verdict.name}: {verdict.problem}")
    if not problems:
        what = "all as they were written" if step.recorded else "readable, not verifiable: it has no checksums"
        print(f"step {step.number}: {len(verdicts)} leaves, {size(total)}, {what}")
    return not problems


class _Shown:
    """Says on stderr how far it is: a line that is renewed on a terminal, else a new line every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._terminal, self._begun = sys.stderr.isatty(), time.monotonic()
        self._next = self._begun + _SILENT

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[2K")

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.1 if self._terminal else _EVERY)
        line = describe(self._what, self._done, self._total, now - self._begun)
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def describe(what: str, done: int, total: int, seconds: float) -> str:
    """`step 10: 1.5 GiB of 3.0 GiB, 300.0 MiB/s, 5s left`."""
    from train.console import duration, size

    speed = done / seconds
    return f"{what}: {size(done)} of {size(total)}, {size(speed)}/s, {duration((total - done) / speed)} left"
