"""Tessera: language models in JAX and Flax, to read and to run.

    import tessera
    lm = tessera.load("runs/gpt_demo")
    lm.generate("def ", max_tokens=50); lm.logits(ids_BT); lm.loss(["some text"])
    tessera.read_runs("runs/*")           # a pandas DataFrame
    tessera.inspect_data("python-stdlib") # what is in a corpus
    tessera.plan(config, "v5p:4x4x8")      # would it fit there, and how fast could it be
    tessera.picture(lm, mesh={"fsdp": 4, "tensor": 2})  # how its weights would lie on eight devices

The names below are imported when they are first used, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from launch.cli import main

if TYPE_CHECKING:
    from data.inspection.inspection import inspect_data
    from launch.load import load
    from launch.plan.picture import picture
    from launch.plan.plan import plan
    from studies.plot import plot_runs
    from studies.runs import read_runs

__all__ = ["inspect_data", "load", "main", "picture", "plan", "plot_runs", "read_runs"]
__version__ = "0.1.0"

_HOMES = {
    "inspect_data": "data.inspection.inspection",
    "load": "launch.load",
    "picture": "launch.plan.picture",
    "plan": "launch.plan.plan",
    "read_runs": "studies.runs",
    "plot_runs": "studies.plot",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"tessera has no {name!r}: it has {', '.join(__all__)}")


if __name__ == "__main__":
    raise SystemExit(main())
