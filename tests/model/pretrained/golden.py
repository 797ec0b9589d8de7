"""Which recorded models there are, and where. Each folder holds the model as published and `case.npz`."""

from pathlib import Path

import numpy as np

from tests.model.pretrained.parity import Case

FOLDER = Path(__file__).with_name("golden")
KINDS = (
    "gpt2", "gpt2-untied", "bert-pretraining", "bert-classes", "bert-span", "roberta-mlm", "t5", "t5-1.1", "llama-3",
    "llama-biases", "mistral", "qwen3",
)  # fmt: skip
GENERATED = {"gpt2": 7, "t5": 12}  # those with generations, and how many tokens they add


def read(kind: str) -> Case:
    """The case of one recorded model."""
    with np.load(FOLDER / kind / "case.npz") as case:
        return dict(case)
