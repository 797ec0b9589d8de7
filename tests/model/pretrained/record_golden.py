"""Writes the files of `golden/`: `python -m tests.model.pretrained.record_golden [KIND …]`.

Needs torch and transformers. Do so when a kind is added, never to make a test pass: the files say what PyTorch
computes.
"""

import sys
from pathlib import Path

import numpy as np

from tests.model.pretrained import models
from tests.model.pretrained.golden import FOLDER, GENERATED, KINDS, TRANSFORMER
from tests.model.pretrained.parity import Case
from tests.model.pretrained.reference import generate, record, record_2017


def write(kind: str, folder: Path) -> Case:
    """Saves the model of `kind` in `folder`, and its case beside it."""
    model = models.save(kind, folder, KINDS[kind])
    case = record(model, folder)
    if kind in GENERATED:
        case |= generate(model, GENERATED[kind])
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    return save(case, folder)


def write_2017(folder: Path) -> Case:
    """The same of the Transformer of 2017, which has no published folder: its weights are in the case."""
    folder.mkdir(exist_ok=True)
    return save(record_2017(), folder)


def save(case: Case, folder: Path) -> Case:
    case["versions"] = np.array(f"torch {models.torch.__version__}, transformers {models.transformers.__version__}")
    np.savez_compressed(folder / "case.npz", **case)
    return case


if __name__ == "__main__":
    for kind in sys.argv[1:] or [*KINDS, TRANSFORMER]:
        write_2017(FOLDER / kind) if kind == TRANSFORMER else write(kind, FOLDER / kind)
        print(kind, f"{sum(file.stat().st_size for file in (FOLDER / kind).iterdir()):,} bytes")
