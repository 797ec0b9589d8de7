"""`tessera checkpoint ls`: the checkpoints of a run, and why each is kept."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from etils import epath

    from launch.checkpoints import Step

USAGE = (
    "list the checkpoints of a run: date, size, evaluation loss, checksums, and why each is kept",
    "tessera checkpoint ls RUN",
)
COLUMNS = ("step", "written", "on disk", "parameters", "eval loss", "checksums", "kept as")


def define(values: flags.FlagValues) -> None:
    """It has none."""


def run(values: Any, rest: Sequence[str]) -> int:
    if len(rest) != 1:
        raise flags.Error(f"one run is needed, {len(rest)} are given: {USAGE[1]}")
    from launch.checkpoints import disk_bytes, find, read_steps, set_aside
    from launch.columns import aligned
    from train.console import size

    folder = find(rest[0])
    steps, policy = read_steps(folder), _policy(folder.parent)
    why = reasons(steps, policy)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for step in steps:
        written, parameters = step.written, step.parameters()
        rows.append(
            (
                str(step.number),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(written)) if written else "?",
                size(disk_bytes(step.folder)),
                "?" if parameters is None else f"{parameters:,}",
                "-" if step.eval_loss is None else f"{step.eval_loss:.4f}",
                "yes" if step.recorded else "no",
                ", ".join(why[step.number]) or "-",
            )
        )
    print(aligned(rows, right=(0, 2, 3, 4)) if steps else f"no finished checkpoint in {folder}")
    for path in set_aside(folder):
        print(f"set aside: {path.name}, {size(disk_bytes(path))}")
    return 0


def reasons(steps: Sequence["Step"], policy: Mapping[str, int]) -> dict[int, list[str]]:
    """Step -> why the keep policy of the run keeps it, and which is the newest."""
    why: dict[int, list[str]] = {step.number: [] for step in steps}
    if steps:
        why[steps[-1].number].append("newest")
    for step in steps[-last:] if (last := policy["keep_last"]) else ():
        why[step.number].append(f"last {last}")
    for step in best(steps, count) if (count := policy["keep_best"]) else ():
        why[step.number].append(f"best {count}")
    for step in steps if (every := policy["keep_every_steps"]) else ():
        if step.number % every == 0:
            why[step.number].append(f"every {every}, for good")
    return why


def best(steps: Sequence["Step"], count: int) -> list["Step"]:
    """Those with the lowest evaluation loss, of those that have one."""
    scored = [step for step in steps if step.eval_loss is not None]
    return sorted(scored, key=lambda step: (step.eval_loss, -step.number))[:count]


def _policy(run: "epath.Path") -> dict[str, int]:
    """What the config of the run says of keeping; 0 for each where there is none. Raises RunError."""
    from train.records import RunError, read_object

    path = run / "config.json"
    config = read_object(path, "config")["config"] if path.is_file() else {}
    policy = {name: config.get(f"checkpoint.{name}", 0) for name in ("keep_last", "keep_best", "keep_every_steps")}
    for name, value in policy.items():
        if type(value) is not int or value < 0:
            raise RunError(f"{path} says checkpoint.{name} is {value!r}: it must be a whole number, from 0 on")
    return policy
