"""Fills docs/plans.md: what the shipped configs need on real TPU slices, one `tessera plan` a row.

    python docs/plans.py                              # the rows that are missing, one after the other
    python docs/plans.py "gpt_7b v5p:4x4x8"           # these rows, anew

Needs the extra `tpu`. A row takes minutes; each is kept in docs/plans.json as soon as it is made.
"""

import importlib
import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from launch.plan.plan import plan
from train.console import duration, size

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE / "plans.json", HERE / "plans.md"
# Config and topology, and what differs from the config: mesh axes.
ROWS = [
    "gpt2_124m v5e:2x2",
    "gpt2_124m v6e:2x2",
    "gpt2_1558m v5e:4x4 fsdp=16",
    "gpt2_1558m v6e:4x4 fsdp=16",
    "gpt_7b v4:4x4x8",
    "gpt_7b v5e:16x16",
    "gpt_7b v5p:4x4x8",
    "gpt_7b v6e:8x16",
    "llama3_8b v5p:4x4x8",
    "gpt_13b v5p:4x8x8",
    "gpt_70b v5p:8x8x8",
    "gpt_70b v6e:16x16",
]
FIELDS = ("config", "topology", "mesh", "fits", "limit_bytes", "bytes", "step_seconds", "mfu_bound", "days")
FIELDS += ("chip_hours",)
HEAD = """# What the configs need on TPU slices

Made by `python docs/plans.py`: the real training step of each config, compiled by libtpu on a machine without a TPU.
Memory is the compiler's; the step is a bound (compute, memory traffic and wires overlap in full), and nothing was run.

| config | topology | mesh | memory a device | step | MFU | all steps of the config | chip-hours |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
What the rows say, read with `tessera plan`, which names what bounds a step:

- `gpt2_1558m` is bound by its wires: it takes the batch in 8 parts (`train.microbatches`), each of which fetches all
  weights. In 16 parts it needed 7.2 GiB and 6.10 s on v5e; in 4 parts it fits only with `model.remat=full`, at 3.23 s.
  On v6e 4 parts fit (21.2 GiB), but 2.55 s of memory traffic then bound the step.
- `gpt2_124m` on v6e is bound by memory traffic: 452 GiB take 0.30 s, its products 0.14 s.
- `gpt_70b` needs more than 256 chips of v6e when only `fsdp` cuts it.
"""


def main(wanted: list[str]) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for row in wanted or missing(kept):
        name, topology, *sizes = row.split()
        mesh = {axis: int(size) for axis, size in (pair.split("=") for pair in sizes)} or None
        config = importlib.import_module(f"configs.{name}").get_config()
        made = plan(config, topology, mesh=mesh).to_dict()
        kept[row] = {name: value for name, value in made.items() if name in FIELDS}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(kept), encoding="utf-8")
        print(line(kept[row]), flush=True)


def missing(kept: dict) -> list[str]:
    """Rows that are not made, or without the time of a step."""
    return [row for row in ROWS if row not in kept or kept[row]["step_seconds"] is None]


def page(kept: dict) -> str:
    lines = [line(kept[row]) for row in [*ROWS, *sorted(kept.keys() - set(ROWS))] if row in kept]
    left = ", ".join(f"`{row}`" for row in missing(kept))
    foot = f"\nNot made yet, or without its time (-): {left}.\n" if left else ""
    return HEAD + "\n".join(lines) + "\n" + foot + NOTES


def line(made: dict) -> str:
    """One row of the table."""
    axes = ", ".join(f"{axis} {n}" for axis, n in made["mesh"].items() if n > 1)
    memory = f"{size(made['bytes']['total'])} of {size(made['limit_bytes'])}"
    speed = ["-"] * 4 if made["fits"] else ["does not fit", "", "", ""]
    if made["fits"] and made["step_seconds"]:
        days = duration(86_400 * made["days"])
        speed = [f"{made['step_seconds']:.2f} s", f"{made['mfu_bound']:.0%}", days, f"{made['chip_hours']:,.0f}"]
    cells = [made["config"], made["topology"], axes, memory, *speed]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
