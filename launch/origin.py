"""`--resume=PATH`: a run that must continue, or that begins from a checkpoint of another run."""

import dataclasses
from pathlib import Path
from typing import Any

from data.errors import missing_path
from launch.records import fingerprint_changes
from launch.saved import RUN_FILE, read_run
from train.console import Console
from train.peers import peers
from train.records import RunError, compare_configs, read_object
from train.restore import CheckpointError, finished_steps


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a run begins from."""

    run: str  # the folder, absolute
    step: int

    @property
    def checkpoints(self) -> Path:
        return Path(self.run) / "checkpoints"


def find_origin(folder: Path, path: str, *, fresh: bool) -> Origin | None:
    """The checkpoint that the run of `folder` begins from; None for a run that begins, or has begun, at step 0.

    `path` is what --resume says: a run folder, for its newest step, or RUN/checkpoints/STEP; "" for nothing. A run that
    began from a checkpoint says so in its config.json, so that it is the same run without the flag too. Where `path` is
    the run of `folder` itself, that run must have a checkpoint to continue from.

    Raises:
        DataError: no such path. CheckpointError: no finished checkpoint there, or not of this step.
        RunError: `folder` holds a run that did not begin there; a step of its own that is not the newest.
    """
    recorded = None if fresh else _recorded(folder)
    if not path:
        return recorded
    given = Path(path).expanduser().resolve()
    run, step = (given, None)
    if given.name.isdigit() and given.parent.name == "checkpoints":
        run, step = given.parent.parent, int(given.name)
    if recorded and run == Path(recorded.run) and step in (None, recorded.step):
        return recorded  # this very run goes on: the checkpoint that it began from may be gone by now
    if not given.exists():
        raise missing_path("--resume", path)
    steps = finished_steps(run / "checkpoints")
    if not steps or step not in (None, *steps):
        wanted = "finished checkpoint" if step is None else f"finished checkpoint of step {step}"
        raise CheckpointError(f"--resume={path}: no {wanted} in {run / 'checkpoints'}, there are {steps or 'none'}")
    newest = int(peers().gather("newest checkpoint", str(steps[-1]))[0])
    if run == folder.resolve():
        if fresh:
            raise ValueError(f"--fresh would set aside {folder}, which --resume is to continue: leave one of them out")
        if step not in (None, newest):
            raise RunError(
                f"--resume={path}: {folder} goes on from step {newest}, its newest; to go back to step {step}, begin "
                "another run from it, with another --config.run.dir"
            )
        return recorded
    if not fresh and (folder / RUN_FILE).is_file():
        begun = f"from step {recorded.step} of {recorded.run}" if recorded else "at step 0"
        raise RunError(
            f"{folder} holds a run that began {begun}, not from {path}: leave --resume out to continue it, or choose "
            "another --config.run.dir"
        )
    return Origin(str(run), newest if step is None else step)


def show_origin(origin: Origin, record: dict[str, Any], steps: int, console: Console) -> None:
    """Says where a run begins, and what is not as it was there. `record`: what its config.json is to say.

    Raises:
        ValueError: the run, of `steps` steps, would end before it begins.
    """
    if origin.step >= steps:
        raise ValueError(
            f"the run begins after step {origin.step} of {origin.run}, and train.steps is {steps}: use more steps"
        )
    console.say(f"beginning from step {origin.step} of {origin.run}")
    before = read_run(Path(origin.run))
    harmless, other = compare_configs(before["config"], record["config"])
    for line in sorted(harmless + other):
        if not line.startswith("run.dir:"):
            console.say(f"  not as there: {line}")
    for line in fingerprint_changes(before, record):
        console.warn(f"not as there: {line}")


def _recorded(folder: Path) -> Origin | None:
    path = folder / RUN_FILE
    if not path.is_file() or not (said := read_object(path).get("origin")):
        return None
    try:
        return Origin(run=str(said["run"]), step=int(said["step"]))
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{path}: its 'origin' is none that a run of Tessera writes: {said!r}") from error
