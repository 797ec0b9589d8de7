"""Reading a checkpoint back: only one that is whole, as its checksums say, and only what fits.

Orbax's manager is for those who write. Its parts read here without it: they wait for no other process, so one that
finds a file damaged can tell the others.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from data.json_text import parse_json
from train.checksum import checksums, path_of
from train.peers import peers

METADATA = "_CHECKPOINT_METADATA"  # of Orbax: a step has it from the moment that it appears under its number
TOKENIZER, LEAVES, DIGEST = "tokenizer_fingerprint", "leaves", "digest"
# What damaged files raise in Orbax, tensorstore and json. Not OSError as such: a disk that fails is no damaged file.
DAMAGE = (ValueError, TypeError, AttributeError, LookupError, EOFError, FileNotFoundError, NotADirectoryError)
# What tensorstore raises as ValueError too, where nothing says that the files are damaged.
OTHER_CAUSES = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Too many open files",
    "Input/output error",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class Damaged(Exception):
    """The files of a checkpoint are not what was written: another checkpoint may be whole."""


def is_damage(error: Exception) -> bool:
    """Whether this is what damaged files raise, and not a lack of memory, a permission, or a network that is away."""
    return isinstance(error, DAMAGE) and not any(other in str(error) for other in OTHER_CAUSES)


def finished_steps(folder: Path | epath.Path) -> list[int]:
    """Steps that were written to the end, and not begun to be deleted."""
    # In a bucket, a step is written under its own name from the start.
    marks = (METADATA, "commit_success.txt") if "://" in folder.as_posix() else (METADATA,)
    return [step for step in saved_steps(folder) if all((folder / str(step) / mark).is_file() for mark in marks)]


def saved_steps(folder: Path | epath.Path) -> list[int]:
    """Steps of which there is anything."""
    paths = [path for path in folder.iterdir() if is_step(path.name)] if folder.is_dir() else []
    return sorted(int(path.name) for path in paths if path.is_dir() and any(path.iterdir()))


def is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def saved_leaves(path: Path) -> dict[str, str]:
    """Path of each array in a checkpoint -> shape, type and checksum, as they were when it was saved.

    Raises:
        CheckpointError: not a finished checkpoint, or one without checksums.
    """
    try:
        return _undamaged("metadata", read_description, path)[LEAVES]
    except (Damaged, KeyError) as error:
        raise CheckpointError(f"{path} tells no checksums: {error}") from error


def description(items: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
    """What a checkpoint of `items` says of itself: shape, type and checksum of each leaf, and the tokeniser."""
    sums = checksums(items)
    leaves = {path: f"{kind} {sums[path]}" for path, kind in _kinds(items).items()}
    about = {TOKENIZER: tokenizer, LEAVES: leaves}
    return {**about, DIGEST: _digest(about)}


def read(
    path: Path, targets: Mapping[str, Any], tokenizer: str = "", warn: Callable[[str], None] = warnings.warn
) -> dict[str, Any]:
    """The items that `targets` names, from the checkpoint in `path`, in the shapes, types and shardings given there.

    What they hold is compared with the checksums of when it was saved. All processes must call it.

    Raises:
        Damaged: in all processes, if one finds the files damaged.
        CheckpointError: leaves that are missing, extra, or of another shape or type, listed; another tokeniser.
    """
    problem, items, sums = "", {}, {}
    try:
        about = _undamaged("metadata", read_description, path)
        _check_tokenizer(path, about.get(TOKENIZER, ""), tokenizer)
        if LEAVES in about:
            saved, sums = _recorded(about[LEAVES], targets)
        else:
            saved = _undamaged("metadata", _found, path, targets)
        _check_fits(path, saved, _kinds(targets))
        items = {name: _undamaged(name, _restored, path / name, target) for name, target in targets.items()}
    except Damaged as error:
        problem = str(error)
    if problems := list(filter(None, peers().gather(f"checkpoint {path.name}", problem))):
        raise Damaged(problems[0])
    if not sums:
        warn(f"checkpoint {path} has no checksums, as it is older than they are: whether it is whole is not known")
    elif wrong := [name for name, value in checksums(items).items() if value != sums[name]]:
        raise Damaged(f"not what was saved, by their checksums: {_listed(wrong)}")
    return items


def load_params(folder: Path, target: Any, step: int | None = None, tokenizer: str = "") -> tuple[Any, int]:
    """Parameters alone of `step` or the newest whole one: parameters like `target`, step. Another process may train.

    Raises:
        CheckpointError: no finished checkpoint, no such step, damage, another network, or one of another tokeniser than
            the fingerprint `tokenizer`.
    """
    damaged: dict[int, str] = {}
    while steps := [step for step in finished_steps(folder) if step not in damaged]:
        chosen = max(steps) if step is None else step
        if chosen not in steps:
            break
        try:
            return read(folder / str(chosen), {"params": target}, tokenizer)["params"], chosen
        except Damaged as error:
            if not (folder / str(chosen)).exists():  # the run deleted it in the meantime
                continue
            damaged[chosen] = str(error)
            if step is None:
                warnings.warn(
                    f"checkpoint {chosen} in {folder} is damaged, an older one is used: {error}", stacklevel=2
                )
    if damaged:
        raise CheckpointError(damage_report(folder, damaged))
    if step is not None and steps:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {steps}")
    raise CheckpointError(f"no finished checkpoint in {folder}: train the run until its first save")


def damage_report(folder: Path, damaged: Mapping[int, str]) -> str:
    return f"no whole checkpoint in {folder}:" + "".join(f"\n  step {step}: {why}" for step, why in damaged.items())


def read_description(path: Path | epath.Path) -> dict[str, Any]:
    """What the checkpoint in `path` says of itself. Raises, as damaged files do, where that is not what was saved."""
    about = parse_json((path / METADATA).read_bytes())["custom_metadata"] or {}
    digest = about.pop(DIGEST, None)
    if digest != _digest(about) and not (digest is None and set(about) <= {TOKENIZER}):
        raise ValueError("not what was saved, by its checksum")
    return about


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def _recorded(leaves: Mapping[str, str], targets: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Shapes with types, and checksums, of the leaves of the items that are asked for."""
    parts = {name: kind.rpartition(" ") for name, kind in leaves.items() if name.split("/")[1] in targets}
    return {name: part[0] for name, part in parts.items()}, {name: part[2] for name, part in parts.items()}


def _found(path: Path, targets: Mapping[str, Any]) -> dict[str, str]:
    """The same shapes and types as Orbax knows them."""
    handler = ocp.StandardCheckpointHandler()
    return _kinds({name: handler.metadata(epath.Path(path.resolve() / name)).tree for name in targets})


def _restored(path: Path, target: Any) -> Any:
    def describe(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    args = ocp.args.StandardRestore(jax.tree.map(describe, target))
    return ocp.StandardCheckpointHandler().restore(epath.Path(path.resolve()), args=args)


def _undamaged(part: str, call: Callable[..., Any], *args: Any) -> Any:
    """What `call` returns. Turns what damaged files raise into `Damaged`; the rest, as a lack of memory, passes."""
    try:
        return call(*args)
    except Exception as error:
        # Where Orbax reads a part of an array, it wraps what went wrong in a plain Exception.
        cause = error.__cause__ if type(error) is Exception and error.__cause__ else error
        if not isinstance(cause, DAMAGE):
            raise
        kind = Damaged if is_damage(cause) else OSError
        raise kind(f"{part}: {type(cause).__name__}: {str(cause)[:300]}") from error


def _check_tokenizer(path: Path, saved: str, wanted: str) -> None:
    if saved and wanted and saved != wanted:
        raise CheckpointError(
            f"checkpoint {path.name} in {path.parent} was trained on ids of the tokeniser {saved}, and this is {wanted}"
        )


def _check_fits(path: Path, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Orbax casts types, and loads 12 layers into 16, in silence: compare leaf by leaf first."""
    problems = [
        f"\n  {name[1:]}: checkpoint {saved.get(name, 'missing')}, this run {wanted.get(name, 'missing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"checkpoint {path.name} in {path.parent} does not fit this run:{''.join(problems[:20])}{more}"
        )


def _kinds(tree: Any) -> dict[str, str]:
    """Path -> "shape dtype"."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {path_of(path): f"{tuple(leaf.shape)} {jax.numpy.dtype(leaf.dtype).name}" for path, leaf in found}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[1:] for name in names[:3]) + more
