"""`tessera checkpoint prune`: deletes checkpoints that are no longer wanted, never the only good one."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from etils import epath

    from launch.checkpoints import Step

USAGE = (
    "delete the checkpoints of a run that are not named: says which, and does it with --yes",
    "tessera checkpoint prune RUN [--keep=5,10] [--keep_last=N] [--keep_best=N] [--aside] [--yes]",
)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_list("keep", [], "keep these steps", flag_values=values)
    flags.DEFINE_integer("keep_last", 0, "keep so many of the newest", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "keep_best", 0, "keep so many with the lowest evaluation loss", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("aside", False, "delete what was set aside, as damaged or unfinished", flag_values=values)
    flags.DEFINE_bool("yes", False, "delete; without, only say what would be deleted", flag_values=values)
    flags.DEFINE_bool(
        "verify", True, "before anything is deleted, read one of the kept ones, to see it is whole", flag_values=values
    )


def run(values: Any, rest: Sequence[str]) -> int:
    """Raises CheckpointError where no good checkpoint would be left, RunError while a process trains in the run."""
    if len(rest) != 1:
        raise flags.Error(f"one run is needed, {len(rest)} are given: {USAGE[1]}")
    if not (values.keep or values.keep_last or values.keep_best or values.aside):
        raise flags.Error(f"nothing says what to keep: {USAGE[1]}")
    from launch.checkpoint_verify import whole
    from launch.checkpoints import disk_bytes, find, read_steps, set_aside
    from train.console import size
    from train.restore import CheckpointError

    folder = find(rest[0])
    with _alone(folder) if values.yes else contextlib.nullcontext():
        steps = read_steps(folder)
        kept = _kept(steps, values, folder)
        paths = [step.folder for step in steps if step not in kept] + (set_aside(folder) if values.aside else [])
        if not paths:
            print("nothing to delete")
            return 0
        if not kept:
            raise CheckpointError(f"no finished checkpoint of {folder} would be left: nothing is deleted")
        sizes = [disk_bytes(path) for path in paths]
        for path, nbytes in zip(paths, sizes, strict=True):
            print(f"{'deletes' if values.yes else 'would delete'} {path.name}, {size(nbytes)}")
        print(f"keeps {', '.join(str(step.number) for step in kept)}")
        if kept[-1] != steps[-1]:
            print(f"the run would go on from step {kept[-1].number}, not from {steps[-1].number}")
        if not values.yes:
            print(f"{size(sum(sizes))} would be free: --yes deletes")
            return 0
        if values.verify and not any(whole(step) for step in reversed(kept)):
            raise CheckpointError("none of those that would be kept is whole: nothing is deleted")
        for path in paths:
            delete(path)
        print(f"{size(sum(sizes))} are free")
    return 0


def delete(path: "epath.Path") -> None:
    """Deletes a checkpoint, which stops to be one in one stroke: a kill leaves nothing that counts as finished."""
    from train.restore import METADATA

    if "://" in path.as_posix():  # a bucket renames file by file: without this one, no step counts
        (path / METADATA).unlink(missing_ok=True)
    elif path.name != ".deleted":
        waiting = path.parent / ".deleted" / f"{path.name}.{time.time_ns()}"
        waiting.parent.mkdir(exist_ok=True)
        path = path.rename(waiting)
    path.rmtree()


def _kept(steps: Sequence["Step"], values: Any, folder: "epath.Path") -> list["Step"]:
    """Those that any of the flags keeps, oldest first; all, where only --aside is given."""
    from launch.checkpoint_ls import best
    from train.restore import CheckpointError

    there = [str(step.number) for step in steps]
    if unknown := [name for name in values.keep if name not in there]:
        raise CheckpointError(f"--keep names {', '.join(unknown)}, in {folder} there are {', '.join(there) or 'none'}")
    if values.keep_best and not best(steps, 1):
        raise CheckpointError(f"--keep_best={values.keep_best}: no checkpoint in {folder} has an evaluation loss")
    if not (values.keep or values.keep_last or values.keep_best):
        return list(steps)
    named = [step for step in steps if str(step.number) in values.keep]
    named += [*steps[len(steps) - min(values.keep_last, len(steps)) :], *best(steps, values.keep_best)]
    return [step for step in steps if step in named]


@contextlib.contextmanager
def _alone(folder: "epath.Path") -> Iterator[None]:
    """Holds the lock of the run, where there can be one."""
    from train.records import open_run

    if "://" in folder.as_posix():
        print(f"no lock reaches {folder}: whether a process trains there is not known")
        yield
        return
    with open_run(Path(folder.parent)):
        yield
