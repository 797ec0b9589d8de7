"""The checkpoints of a run as folders, on a disk or in a bucket: which there are, and what each says of itself."""

import dataclasses
import re

from etils import epath

from data.json_text import parse_json
from train.records import RunError
from train.restore import CheckpointError, finished_steps
from train.verify import read_about, read_leaves

# What a run or a kill leaves beside finished steps: damaged, unfinished, being written, and waiting to be deleted.
_ASIDE = re.compile(r"\d+(\.(corrupt|unfinished|orbax-checkpoint-tmp).*)?|\.deleted")


@dataclasses.dataclass(frozen=True)
class Step:
    """A checkpoint that was written to its end."""

    number: int
    folder: epath.Path
    recorded: dict[str, str]  # shape, type and checksum by the name of a leaf; empty: none were kept
    tokenizer: str  # fingerprint; empty: not kept
    written: float | None  # seconds since 1970
    eval_loss: float | None

    def parameters(self) -> int | None:
        """How many it has; None where that cannot be read."""
        try:
            return sum(leaf.size for leaf in read_leaves(self.folder) if leaf.item == "params")
        except CheckpointError:
            return None


def find(run: str) -> epath.Path:
    """The folder of the checkpoints of `run`: the folder of a run, or that of its checkpoints. Raises RunError."""
    given = epath.Path(run).expanduser()
    try:
        for folder in (given / "checkpoints", given):
            if folder.is_dir() and (folder.name == "checkpoints" or finished_steps(folder)):
                return folder
    except ImportError as error:
        raise RunError(f"{run} needs a package that is not here: pip install gcsfs (gs://) or s3fs (s3://)") from error
    what = "has no checkpoints" if given.is_dir() else "does not exist"
    raise RunError(f"{run} {what}: name the folder of a run, or its folder 'checkpoints'")


def read_steps(folder: epath.Path) -> list[Step]:
    """The finished checkpoints, oldest first."""
    steps = []
    for number in finished_steps(folder):
        path = folder / str(number)
        try:
            about = read_about(path)
        except CheckpointError:  # `verify` says so
            about = {"recorded": {}, "tokenizer": "", "written": None}
        steps.append(Step(number, path, eval_loss=_eval_loss(path), **about))
    return steps


def choose(steps: list[Step], number: int | None, folder: epath.Path) -> Step:
    """The step of that number, or the newest. Raises CheckpointError."""
    if not steps:
        raise CheckpointError(f"no finished checkpoint in {folder}: train the run until its first save")
    for step in steps:
        if step.number == number:
            return step
    if number is not None:
        there = ", ".join(str(step.number) for step in steps)
        raise CheckpointError(f"no checkpoint of step {number} in {folder}: there are {there}")
    return steps[-1]


def set_aside(folder: epath.Path) -> list[epath.Path]:
    """Folders that are no finished checkpoint, and were meant to be one."""
    finished = {str(number) for number in finished_steps(folder)}
    named = (path for path in folder.iterdir() if _ASIDE.fullmatch(path.name) and path.name not in finished)
    return sorted(path for path in named if path.is_dir() and (path.name != ".deleted" or any(path.iterdir())))


def disk_bytes(path: epath.Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(map(disk_bytes, path.iterdir())) if path.is_dir() else path.stat().length


def _eval_loss(step: epath.Path) -> float | None:
    try:
        return float(parse_json((step / "metrics" / "metrics").read_bytes())["eval_loss"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
