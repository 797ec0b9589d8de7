"""Supported without PyTorch at hand: outputs, losses, gradients and generations equal those it computed once."""

import jax
import numpy as np
import pytest

from model import parameters
from model.beam import Beams
from model.build import build
from model.decoding import Decoder
from model.parameters import named_leaves
from model.pretrained.folders import open_folder
from model.sampling import Sampling
from tests import tiny
from tests.model.pretrained import golden
from tests.model.pretrained.parity import check, check_outputs, close_gradients, load, part
from tests.model.pretrained.transformer_2017 import CONFIG, tree

EOS = 2


@pytest.mark.parametrize("kind", golden.KINDS)
def test_outputs_loss_and_gradients(kind):
    check(golden.FOLDER / kind, golden.read(kind))


def test_the_transformer_of_2017():
    case = golden.read(golden.TRANSFORMER)
    model = build(CONFIG)
    params, expected = tree(part(case, "weight")), named_leaves(tree(part(case, "gradient")))
    shapes = {path: leaf.shape for path, leaf in named_leaves(params).items()}
    assert shapes == {path: weight.shape for path, weight in named_leaves(parameters.weights(model)).items()}
    gradients = named_leaves(check_outputs(CONFIG, model, params, case))
    assert gradients.keys() == expected.keys()
    close_gradients(expected, gradients, gradients.__getitem__)


@pytest.fixture(scope="module", params=golden.GENERATED)
def generated(request):
    """What was recorded, a function that continues the prompts one way or another, and what it is told."""
    kind = request.param
    config, model, params = load(golden.FOLDER / kind)
    case = golden.read(kind)
    texts = [row[row >= 0].tolist() for row in case["prompts"]]
    given = {"prompts": texts}
    if config.architecture == "encoder_decoder":
        given = {"prompts": [[] for _ in texts], "sources": texts}
    given |= {"max_tokens": golden.GENERATED[kind], "vocab_limit": config.vocab_size, "eos_ids": (EOS,)}
    with jax.set_mesh(tiny.mesh()):
        yield case, Decoder(model, config), params, given


def until_end(row):
    """A row of ids up to its end, that included; without the filling."""
    row = [int(token) for token in row if token >= 0]
    return row[: row.index(EOS) + 1] if EOS in row else row


def test_cached_decoding_is_greedy_generation(generated):
    case, decoder, params, given = generated
    rows = len(given["prompts"])
    chunks = decoder.stream(params, **given, sampling=Sampling(0.0), seeds=[0] * rows)
    tokens_BN = np.concatenate([chunk.tokens_BN for chunk in chunks], axis=1)
    assert [until_end(row) for row in tokens_BN] == [until_end(row) for row in case["greedy/ids"]]
    assert 0 < (case["greedy/ids"] < 0).any(1).sum() < rows  # some end early, not all


def test_beams_are_the_recorded_ones(generated):
    case, decoder, params, given = generated
    beams = case["beam/ids"].shape[1]
    found = decoder.beam(params, **given, beams=Beams(beams), num_return=beams)
    for row, ids, scores in zip(found, case["beam/ids"], case["beam/scores"], strict=True):
        assert [hypothesis.tokens for hypothesis in row] == [until_end(beam) for beam in ids]
        np.testing.assert_allclose([hypothesis.score for hypothesis in row], scores, rtol=1e-4)


def close_cases(now, then):
    assert now.keys() == then.keys()
    for name, array in then.items():
        if name != "versions":
            np.testing.assert_allclose(now[name], array, atol=1e-5 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("kind", ["t5-1.1", "bert-pretraining"])
def test_the_files_are_what_pytorch_says_today(kind, tmp_path):
    record = recorder()
    close_cases(record.write(kind, tmp_path), golden.read(kind))
    weights, before = (
        {name: tensor.read() for name, tensor in open_folder(folder).items()}
        for folder in (tmp_path, golden.FOLDER / kind)
    )
    assert weights.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)


def test_so_is_the_file_of_2017(tmp_path):
    close_cases(recorder().write_2017(tmp_path), golden.read(golden.TRANSFORMER))


def recorder():
    for name in ("torch", "transformers"):
        pytest.importorskip(name)
    from tests.model.pretrained import record_golden

    return record_golden
