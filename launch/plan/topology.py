"""Devices that are not here: real TPU topologies for the compiler of libtpu, or emulated ones on the CPU."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, cast

import jax

from train.chips import CHIPS, Chip

COMPILED, EMULATED = "compiled for TPU", "emulated"
EXAMPLES = "v5e:4x4, v5p:4x4x8, h100:8 or cpu:8"
# What libtpu would ask a metadata server, or write to the terminal; and two plans may be made at the same time.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. `chip` is None for plain CPU devices, which have no data sheet."""

    name: str
    slices: int
    chip: Chip | None
    sizes: tuple[int, ...]  # of one slice, in chips
    devices: list[Any]
    method: str  # COMPILED | EMULATED


def find_topology(name: str, slices: int = 1) -> Topology:
    """The devices of `slices` copies of "v5p:4x4x8": a chip of `train.chips.CHIPS` or "cpu", and how they are laid out.

    TPUs are those of libtpu, where it is installed (extra `tpu`); all others are emulated on the CPU.

    Raises:
        ValueError: a chip or a layout that does not exist, or more emulated devices than this process has.
    """
    found = re.fullmatch(r"([\w\-]+):(\d+(?:x\d+)*)", name)
    kind = found[1].lower() if found else ""
    if not found or kind not in (*CHIPS, "cpu"):
        raise ValueError(f"no topology {name!r}: use CHIP:SIZE such as {EXAMPLES}. Chips: {', '.join(CHIPS)}, cpu")
    if slices < 1:
        raise ValueError(f"slices is {slices}: it must be at least 1")
    chip, sizes = CHIPS.get(kind), tuple(int(size) for size in found[2].split("x"))
    if not math.prod(sizes):
        raise ValueError(f"topology {name!r} has no chips: use {EXAMPLES}")
    if chip is not None and chip.torus and len(sizes) != chip.torus:
        example = "x".join(["4"] * chip.torus)
        raise ValueError(f"topology {name!r}: {kind} has {chip.torus} dimensions, such as {kind}:{example}")
    if chip is not None and chip.torus and importlib.util.find_spec("libtpu"):
        return Topology(name, slices, chip, sizes, _of_libtpu(name, kind, slices), COMPILED)
    count = math.prod(sizes) * slices * (chip.devices if chip else 1)
    return Topology(name, slices, chip, sizes, _emulated(name, count), EMULATED)


def _of_libtpu(name: str, kind: str, slices: int) -> list[Any]:
    from jax.experimental import topologies

    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as `tessera train` has it there
    if math.prod(int(size) for size in name.split(":")[1].split("x")) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name.lower(), **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ValueError(f"libtpu knows no topology {name!r}: {error}. There is, for example, {EXAMPLES}") from error


def _emulated(name: str, count: int) -> list[Any]:
    with contextlib.suppress(RuntimeError):  # jax is awake already: it has what it has
        jax.config.update("jax_num_cpu_devices", max(count, cast(Any, jax.config).jax_num_cpu_devices))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology {name!r} needs {count} emulated devices, jax has started with {len(devices)}: plan in a fresh "
            f'process, or call jax.config.update("jax_num_cpu_devices", {count}) before the first use of jax'
        )
    return devices[:count]
