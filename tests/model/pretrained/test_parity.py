"""Every family against PyTorch itself; `test_golden.py` has what needs no PyTorch."""

import pytest

from tests.model.pretrained import models
from tests.model.pretrained.parity import check
from tests.model.pretrained.reference import record

MAIN = ("gpt2", "bert", "t5", "t5-1.1", "llama")


def run(kind, folder, seed, *, larger=False):
    model = models.save(kind, folder, seed, larger=larger)
    check(folder, record(model, folder, seed))


@pytest.mark.parametrize("kind", models.MODELS)
def test_outputs_loss_and_gradients(kind, tmp_path):
    run(kind, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", models.MODELS)
def test_other_weights(kind, seed, tmp_path):
    run(kind, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAIN)
def test_other_sizes(kind, tmp_path):
    run(kind, tmp_path, seed=3, larger=True)
