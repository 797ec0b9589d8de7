"""Many run folders as one table."""

import glob
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from train.records import RunError, read_metrics, read_object

FILES = ("metrics.jsonl", "config.json")  # what makes a folder a run


def read_runs(runs: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """One row a logged step of each run: `run`, the names of metrics.jsonl, and each config leaf as `config.NAME`.

    Args:
        runs: a run folder, a glob such as "runs/*", or a list of either. Folders without metrics.jsonl and config.json
            that a glob finds are no runs and are left out; one that is named must be a run.

    Raises:
        RunError: no run was found, or a named folder is none.
    """
    frames = []
    for folder in _folders([runs] if isinstance(runs, str | Path) else list(runs)):
        frame = pd.DataFrame(read_metrics(folder))
        frame.insert(0, "run", str(folder))
        path = folder / "config.json"
        if not path.is_file():
            raise RunError(f"no config.json in {folder}: it is not the folder of a run")
        config = read_object(path, "config")["config"]
        leaves = {f"config.{name}": [value] * len(frame) for name, value in config.items()}
        frames.append(pd.concat([frame, pd.DataFrame(leaves, index=frame.index)], axis=1))
    return pd.concat(frames, ignore_index=True)


def _folders(patterns: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if glob.has_magic(str(path)) and not path.is_dir():  # a folder may be called lr[1e-3]
            found.extend(p for p in map(Path, sorted(glob.glob(str(path)))) if all((p / n).is_file() for n in FILES))
        else:
            found.append(path)
    if not found:
        raise RunError(f"no run matches {', '.join(map(str, patterns))}: name folders that hold a metrics.jsonl")
    return list(dict.fromkeys(found))
