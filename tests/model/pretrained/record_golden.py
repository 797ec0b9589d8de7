"""Writes the files of `golden/`: `python -m tests.model.pretrained.record_golden [KIND …]`, with torch and transformers.

Do so when a kind is added, never to make a test pass: the files say what PyTorch computes.
"""

import sys
from pathlib import Path

import numpy as np

from tests.model.pretrained import models
from tests.model.pretrained.golden import FOLDER, GENERATED, KINDS
from tests.model.pretrained.parity import Case
from tests.model.pretrained.reference import generate, record


def write(kind: str, folder: Path) -> Case:
    """Saves the model of `kind` in `folder`, and its case beside it."""
    model = models.save(kind, folder, KINDS[kind])
    case = record(model, folder)
    if kind in GENERATED:
        case |= generate(model, GENERATED[kind])
    case["versions"] = np.array(f"torch {models.torch.__version__}, transformers {models.transformers.__version__}")
    np.savez_compressed(folder / "case.npz", **case)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return case


if __name__ == "__main__":
    for kind in sys.argv[1:] or KINDS:
        write(kind, FOLDER / kind)
        print(kind, f"{sum(file.stat().st_size for file in (FOLDER / kind).iterdir()):,} bytes")
