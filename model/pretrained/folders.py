"""The folder of a model: one safetensors file, or shards and the index that says which tensor is in which."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from model.pretrained.safetensors_files import (
    Declared,
    Tensor,
    WeightsError,
    open_file,
    read_json,
    replace_file,
    write_file,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def open_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model: of `model.safetensors`, or of the shards that its index lists.

    Raises:
        WeightsError: no such file, a pickle instead, or a file that contradicts itself.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise WeightsError(f"{folder} has both {SINGLE} and {INDEX}: remove the one that is not meant")
    if single.exists():
        return open_file(inside(folder, SINGLE))
    if not index.exists():
        _no_weights(folder)
    listed = _weight_map(inside(folder, INDEX))
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(listed.values())):
        found = open_file(inside(folder, shard))
        if absent := sorted(name for name, file in listed.items() if file == shard and name not in found):
            raise WeightsError(f"{index}: {shard} has no tensor {', '.join(absent[:5])}: get both files again")
        if twice := sorted(found.keys() & tensors.keys()):
            raise WeightsError(f"{folder}: tensor {twice[0]} is in {shard} and in another shard: get the files again")
        tensors |= found
    return tensors


def write_folder(
    folder: Path,
    tensors: Declared,
    compute: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes tensors of the given types and shapes, calling `compute(name)` for one at a time.

    Up to `max_shard_bytes` a file, or one tensor. Each file appears whole or not at all, the index last.

    Raises:
        WeightsError: weights in the folder that this would not replace.
    """
    shards: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    room = max_shard_bytes
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * math.prod(shape)
        if size > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = (dtype, shape)
        room -= size
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    written = {*names, *([INDEX] if count > 1 else [])}
    if stale := sorted({path.name for path in folder.glob("model*.safetensors*")} - written):
        raise WeightsError(f"{folder} already holds {', '.join(stale[:5])}: remove them, or choose another folder")
    (folder / INDEX).unlink(missing_ok=True)  # of new shards and old ones it would make one model
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, compute)
    if count > 1:
        total = sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())
        listed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": listed}, indent=2)
        replace_file(folder / INDEX, [text.encode()])


def _weight_map(path: Path) -> dict[str, str]:
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise WeightsError(f"{path}: weight_map does not name a file for each tensor: the index is damaged")
    for file in set(listed.values()):
        if not file.endswith(".safetensors") or file.startswith(".") or {"/", "\\", "\0"} & set(file):
            raise WeightsError(f"{path}: {file[:80]!r} is not the name of a .safetensors file in the same folder")
    return listed


def inside(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`; a link may lead to the blobs of a Hugging Face cache, and nowhere else."""
    try:
        path, home = (folder / name).resolve(), folder.resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that no file can have
        raise WeightsError(f"{folder}: {name[:80]!r} cannot be opened ({error}): get the model again") from error
    allowed = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if path.parent not in allowed:
        raise WeightsError(f"{folder / name} is a link out of its folder, to {path}: copy the file there instead")
    if not there:
        raise WeightsError(f"{folder / name}: there is no such file: get the model again")
    return path


def _no_weights(folder: Path) -> NoReturn:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{folder} has {pickles[0]} but no {SINGLE}: such files can run code when read, so they are not; convert "
            "it with transformers: AutoModel….from_pretrained(folder).save_pretrained(new, safe_serialization=True)"
        )
    raise WeightsError(f"{folder} has neither {SINGLE} nor {INDEX}: give the folder of a Hugging Face model")
