"""Checkpoints: Orbax's manager, with the checks that it leaves out."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from train.peers import peers
from train.state import State

TOKENIZER = "tokenizer_fingerprint"
ITEMS = ("params", "training")  # separate, so that the network can be loaded without the optimiser


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


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

    def __init__(self, folder: Path, config: CheckpointConfig, tokenizer: str = "") -> None:
        """`tokenizer`: the fingerprint of the tokeniser, kept in each checkpoint and compared when it is restored."""
        # Orbax logs a line per save and warns about its own defaults; the loop reports what matters to a user.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._config, self._last_save, self._saved = config, time.monotonic(), None
        self._tokenizer = tokenizer
        with peers().first_alone("leftovers of saves"):
            if peers().first:
                _set_aside_unfinished(folder)
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            keep.append(
                policies.BestN(get_metric_fn=_goodness, n=config.keep_best, keep_checkpoints_without_metrics=False)
            )
        if config.keep_every_steps:
            keep.append(policies.EveryNSteps(config.keep_every_steps))
        self._manager = _manager(
            folder,
            best_fn=_goodness,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest finished step that process 0 sees, or None."""
        found = max(finished_steps(Path(self._manager.directory)), default=-1)
        agreed = int(peers().gather("newest checkpoint", str(found))[0])
        return None if agreed < 0 else agreed

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
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        metrics = None if eval_loss is None else {"eval_loss": eval_loss}
        about, args = {TOKENIZER: self._tokenizer}, ocp.args.Composite(**items)
        if not self._manager.save(step, args=args, metrics=metrics, force=True, custom_metadata=about):
            raise CheckpointError(f"checkpoint {step} was not written to {self._manager.directory}")
        self._saved, self._last_save = step, time.monotonic()

    def restore(self, step: int, target: State) -> State:
        """The state of `step`, in the shapes, types and shardings of `target` (arrays or their descriptions).

        Raises:
            CheckpointError: leaves that are missing, extra, or of another shape or type, listed; another tokeniser.
        """
        _check_tokenizer(self._manager, step, self._tokenizer)
        _check_same(self._manager, step, _items(target))
        items = _restore(self._manager, step, _items(target))
        return State(params=items["params"], **items["training"])

    def check(self) -> None:
        """Raises what went wrong in the background since the last call."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()


def load_params(folder: Path, target: Any, step: int | None = None, tokenizer: str = "") -> tuple[Any, int]:
    """Parameters alone, read-only, of `step` or the newest finished one: parameters like `target`, step.

    Raises:
        CheckpointError: no finished checkpoint, no such step, another network, or one of another tokeniser than the
            fingerprint `tokenizer`.
    """
    steps = finished_steps(folder)
    if not steps:
        raise CheckpointError(f"no finished checkpoint in {folder}: train the run until its first save")
    step = max(steps) if step is None else step
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {sorted(steps)}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    manager = _manager(folder, read_only=True)
    try:
        _check_tokenizer(manager, step, tokenizer)
        _check_same(manager, step, {"params": target})
        return _restore(manager, step, {"params": target})["params"], step
    finally:
        manager.close()


def save_params(folder: Path, params: Any, tokenizer: str = "") -> None:
    """Writes parameters alone, as the checkpoint of step 0, and returns when they are on disk."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    manager = _manager(folder)
    try:
        args = ocp.args.Composite(params=ocp.args.StandardSave(params))
        if not manager.save(0, args=args, force=True, custom_metadata={TOKENIZER: tokenizer}):
            raise CheckpointError(f"checkpoint 0 was not written to {folder}")
        manager.wait_until_finished()
        manager.check_for_errors()
    finally:
        manager.close()


def finished_steps(folder: Path) -> list[int]:
    """Steps that were written to the end. Orbax would take an empty folder named like a step for one."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "_CHECKPOINT_METADATA").is_file())


def _set_aside_unfinished(folder: Path) -> None:
    """Renames unfinished folders that are named like a step: Orbax would take one for the newest checkpoint."""
    finished = {str(step) for step in finished_steps(folder)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdigit() and path.name not in finished:
            path.rename(path.with_name(f"{path.name}.unfinished.{time.time_ns()}"))


def _items(state: State) -> dict[str, Any]:
    window = {} if state.spikes is None else {"spikes": state.spikes}
    return {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state, **window}}


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics["eval_loss"]


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    # Orbax needs an absolute path: a relative one fails late, in its thread.
    return ocp.CheckpointManager(
        folder.resolve(), options=ocp.CheckpointManagerOptions(**options), item_handlers=handlers
    )


def _restore(manager: ocp.CheckpointManager, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    def describe(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    args = {name: ocp.args.StandardRestore(jax.tree.map(describe, target)) for name, target in targets.items()}
    return dict(manager.restore(step, args=ocp.args.Composite(**args)).items())


def _check_tokenizer(manager: ocp.CheckpointManager, step: int, wanted: str) -> None:
    saved = (manager.metadata(step).custom_metadata or {}).get(TOKENIZER, "")
    if saved and wanted and saved != wanted:
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} was trained on ids of the tokeniser {saved}, "
            f"and this is {wanted}"
        )


def _check_same(manager: ocp.CheckpointManager, step: int, targets: dict[str, Any]) -> None:
    """Orbax casts types, and loads 12 layers into 16, in silence: compare leaf by leaf first."""
    metadata = manager.item_metadata(step)
    problems = []
    for name, target in targets.items():
        saved_tree = getattr(metadata[name], "tree", None)
        saved, wanted = _leaves(saved_tree), _leaves(target)
        for path in sorted(saved.keys() | wanted.keys()):
            there, here = saved.get(path, "missing"), wanted.get(path, "missing")
            if there != here:
                problems.append(f"  {name}{path}: checkpoint {there}, this run {here}")
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} does not fit this run:\n" + "\n".join(problems[:20]) + more
        )


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> "shape dtype". Orbax stores tuples as lists and named tuples as dicts: paths are written alike."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape")):
        name = "".join(f"/{getattr(k, 'name', getattr(k, 'key', getattr(k, 'idx', k)))}" for k in path)
        found[name] = f"{tuple(leaf.shape)} {jax.numpy.dtype(leaf.dtype).name}"
    return found
