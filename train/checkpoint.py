"""Checkpoints: Orbax's manager, with the checks that it leaves out."""

import dataclasses
import itertools
import json
import logging
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from data.json_text import parse_json
from train.peers import peers
from train.restore import CheckpointError, Damaged, damage_report, description, is_step, read, saved_steps
from train.state import State

ITEMS = ("params", "training")  # separate, so that the network can be loaded without the optimiser
# Of an array in a file, of which a chunk is decoded as a whole: Orbax's are as large as the shard of a device, which is
# more than `tessera checkpoint verify` may take.
CHUNK_BYTES = 2**25
DELETED = ".deleted"  # where steps wait to be deleted: under their number they are whole, or not there


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep. The last step of a run is always saved."""

    every_steps: int  # save each n steps; 0 = never by steps
    every_minutes: float  # save when this much time has passed since the last save; 0 = never by time
    keep_last: int  # newest checkpoints kept
    keep_best: int  # also kept: those with the lowest evaluation loss, of saves that coincide with an evaluation
    keep_every_steps: int  # multiples of this step are kept for good; 0 = none

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"checkpoint.{field.name} is {getattr(self, field.name)}: it must not be negative")
        if self.keep_last < 1:
            raise ValueError("checkpoint.keep_last is 0: a run that keeps nothing cannot resume; use at least 1")


class Checkpoints:
    """The checkpoints of one run folder. Saves write in the background; errors of the writer surface in `check`."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        tokenizer: str = "",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """`tokenizer`: the fingerprint of the tokeniser, kept in each checkpoint and compared when it is restored.

        `warn` is told of checkpoints that are damaged.
        """
        _quiet()
        self._config, self._last_save, self._saved = config, time.monotonic(), None
        self._folder, self._tokenizer, self._warn = folder.resolve(), tokenizer, warn
        with peers().first_alone("leftovers of saves"):
            if peers().first:
                _clear_leftovers(self._folder)
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            keep.append(
                policies.BestN(get_metric_fn=_goodness, n=config.keep_best, keep_checkpoints_without_metrics=False)
            )
        if config.keep_every_steps:
            keep.append(policies.EveryNSteps(config.keep_every_steps))
        self._manager = _manager(
            self._folder,
            best_fn=_goodness,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=True,
            todelete_subdir=DELETED,
        )

    def due(self, step: int) -> bool:
        """Whether `step` is one to save, by its number."""
        return bool(self._config.every_steps) and step % self._config.every_steps == 0

    def overdue(self) -> bool:
        """Whether a save is due by the clock of this process."""
        passed = time.monotonic() - self._last_save
        return bool(self._config.every_minutes) and passed >= 60 * self._config.every_minutes

    def save(self, step: int, state: State, eval_loss: float | None = None) -> None:
        """Starts to write `state`; blocks only for the copy to the host. A step that was saved is not saved again."""
        if step == self._saved:
            return
        metrics = None if eval_loss is None else {"eval_loss": eval_loss}
        _save(self._manager, step, _items(state), self._tokenizer, metrics)
        self._saved, self._last_save = step, time.monotonic()

    def restore(self, step: int, target: State) -> State:
        """The state of `step`, in the shapes, types and shardings of `target` (arrays or their descriptions).

        Raises:
            CheckpointError: damaged files; leaves that do not fit, listed; another tokeniser.
        """
        return load_state(self._folder / str(step), target, self._tokenizer, self._warn)

    def resume(self, target: State) -> tuple[State, int] | None:
        """The newest whole checkpoint, like `target`, and its step; None where nothing was saved.

        Damaged ones that are newer step aside as `N.corrupt`, once an older one is found whole; nothing is deleted.

        Raises:
            CheckpointError: all are damaged; leaves that do not fit, listed; another tokeniser.
        """
        damaged: dict[int, str] = {}
        for step in reversed(json.loads(peers().gather("checkpoints", json.dumps(saved_steps(self._folder)))[0])):
            try:
                state = self._read(step, target)
            except Damaged as error:
                damaged[step] = str(error)
                self._warn(f"checkpoint {step} is damaged: {error}")
                continue
            self._set_aside(damaged, step)
            return state, step
        if damaged:
            raise CheckpointError(
                f"{damage_report(self._folder, damaged)}\nRestore one of them from a copy, or begin anew with --fresh"
            )
        return None

    def check(self) -> None:
        """Raises what went wrong in the background since the last call."""
        self._manager.check_for_errors()
        if peers().first and any(self._folder.glob(f"{DELETED}/*")):
            threading.Thread(target=_delete, args=(self._folder,), daemon=True).start()

    def wait(self) -> None:
        """Returns when everything is on disk, and what is not kept is gone."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if peers().first:
            _delete(self._folder)

    def close(self) -> None:
        self._manager.close()

    def _read(self, step: int, target: State) -> State:
        return _state(self._folder / str(step), target, self._tokenizer, self._warn)

    def _set_aside(self, damaged: Mapping[int, str], whole: int) -> None:
        with peers().first_alone("damaged checkpoints"):
            for step in damaged if peers().first else ():
                aside = _free_name(self._folder / f"{step}.corrupt")
                (self._folder / str(step)).rename(aside)
                self._warn(f"the run goes on from step {whole}; the damaged checkpoint {step} is now {aside}")
        self._manager.reload()


def load_state(path: Path, target: State, tokenizer: str, warn: Callable[[str], None]) -> State:
    """The state in one checkpoint of another run, of which nothing is changed. Raises as `Checkpoints.restore`."""
    try:
        return _state(path, target, tokenizer, warn)
    except Damaged as error:
        raise CheckpointError(damage_report(path.parent, {int(path.name): str(error)})) from error


def save_params(folder: Path, params: Any, tokenizer: str = "") -> None:
    """Writes parameters alone, as the checkpoint of step 0, and returns when they are on disk."""
    _quiet()
    manager = _manager(folder)
    try:
        _save(manager, 0, {"params": params}, tokenizer)
        manager.wait_until_finished()
        manager.check_for_errors()
    finally:
        manager.close()


def _quiet() -> None:
    """Orbax logs a line per save, and each error that it raises too, with hundreds of lines of its threads' stacks."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(what: Any) -> None:
    """tensorstore's writers of a failed save report to an event loop that has ended; the error itself was told."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _clear_leftovers(folder: Path) -> None:
    """Finishes deletions, and sets aside what Orbax would take for a step, or could not read."""
    _delete(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdigit() and not (is_step(path.name) and path.is_dir() and any(path.iterdir())):
            path.rename(_free_name(path.with_name(f"{path.name}.unfinished")))
    for path in folder.glob("*/metrics/metrics"):
        try:
            _goodness(parse_json(path.read_bytes()))
        except (ValueError, LookupError, TypeError):  # the step has no score then
            path.rename(_free_name(path.with_name("metrics.corrupt")))


def _delete(folder: Path) -> None:
    """For good, the steps that Orbax set aside for it. The folder that they lie in stays: Orbax may be at it."""
    for path in folder.glob(f"{DELETED}/*"):
        shutil.rmtree(path, ignore_errors=True)


def _free_name(path: Path) -> Path:
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not name.exists())


def _state(path: Path, target: State, tokenizer: str, warn: Callable[[str], None]) -> State:
    items = read(path, _items(target), tokenizer, warn)
    return State(params=items["params"], **items["training"])


def _items(state: State) -> dict[str, Any]:
    window = {} if state.spikes is None else {"spikes": state.spikes}
    return {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state, **window}}


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics["eval_loss"]


def _save(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any], tokenizer: str, metrics: Any = None
) -> None:
    args = ocp.args.Composite(**{name: _chunked(item) for name, item in items.items()})
    about = description(items, tokenizer)
    if not manager.save(step, args=args, metrics=metrics, force=True, custom_metadata=about):
        raise CheckpointError(f"checkpoint {step} was not written to {manager.directory}")


def _chunked(item: Any) -> ocp.args.StandardSave:
    how = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), item)
    return ocp.args.StandardSave(item, save_args=how)


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    # Orbax needs an absolute path: a relative one fails late, in its thread.
    return ocp.CheckpointManager(
        folder.resolve(), options=ocp.CheckpointManagerOptions(**options), item_handlers=handlers
    )
