"""Which recorded models there are, and where. Each folder holds the model as published and `case.npz`."""

from pathlib import Path

import numpy as np

from tests.model.pretrained.parity import Case

FOLDER = Path(__file__).with_name("golden")
KINDS = {  # and the seed of the weights; of those that generate, one whose answers differ and of which some end early
    "gpt2": 0, "gpt2-untied": 14, "bert-pretraining": 0, "bert-classes": 0, "bert-span": 0, "roberta-mlm": 0, "t5": 0,
    "t5-1.1": 31, "llama-3": 0, "llama-biases": 0, "mistral": 0, "qwen3": 0,
}  # fmt: skip
TRANSFORMER = "transformer-2017"  # torch.nn.Transformer
GENERATED = {"gpt2-untied": 7, "t5-1.1": 12}  # how many tokens


def read(kind: str) -> Case:
    """The case of one recorded model."""
    with np.load(FOLDER / kind / "case.npz") as case:
        return dict(case)
