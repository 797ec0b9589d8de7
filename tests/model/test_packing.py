"""Documents that share a row: none learns from another, and all cost together what they cost alone."""

import dataclasses
import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.objectives.causal import CausalLM
from data.objectives.denoising import SpanCorruption
from data.objectives.masking import MaskedLM
from data.rows import store_rows
from model import parameters
from model.build import build
from model.losses import language_model_loss
from tests import tiny

TEXT, PAD, MASK, CLS, SEP, EOS, START = 40, 40, 41, 42, 43, 44, 45
SENTINELS = tuple(range(50, 60))
DECODER = dataclasses.replace(tiny.GPT, num_layers=1, embed_dim=16, num_heads=2)
ENCODER = dataclasses.replace(DECODER, architecture="encoder", head="masked_lm")
PAIR = dataclasses.replace(DECODER, architecture="encoder_decoder", num_encoder_layers=1)
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 12}
OBJECTIVES = {
    "causal": CausalLM(32),
    "prefix": CausalLM(32, random_prefix=True),
    "masked": MaskedLM(32, PAD, MASK, np.arange(64) < TEXT, CLS, SEP, rate=0.4),
    "spans": SpanCorruption(32, PAD, EOS, SENTINELS, START, 0.3, 2.0),
}
CASES = {
    "decoder-learned": (DECODER, "causal"),
    "decoder-rotary": (dataclasses.replace(DECODER, positions="rotary"), "causal"),
    "decoder-relative": (dataclasses.replace(DECODER, **RELATIVE), "causal"),
    "decoder-prefix": (DECODER, "prefix"),
    "lstm": (dataclasses.replace(DECODER, architecture="lstm"), "causal"),
    "encoder-learned": (ENCODER, "masked"),
    "encoder-rotary": (dataclasses.replace(ENCODER, positions="rotary"), "masked"),
    "pair-learned": (PAIR, "spans"),
    "pair-relative": (dataclasses.replace(PAIR, **RELATIVE), "spans"),
}


def packed_row(objective):
    """One row with documents of 9, 7 and 5 tokens."""
    starts = np.array([0, 9, 16, 21])
    store = SimpleNamespace(folder="", document_starts=starts, num_tokens=21, tokens=np.arange(21, dtype=np.uint16))
    rows = store_rows(store, objective, "best_fit")
    row = rows.example(0, np.random.default_rng(1))
    assert len(rows) == 1 and row["segments"].max() == 3
    return {name: values[None] for name, values in row.items()}


def rows_alone(row):
    """Each document of the row in a row of its own, from the first slot on, with neither positions nor neighbours."""
    shapes = {name: (3, values.shape[1]) for name, values in row.items() if not name.endswith("positions")}
    made = {name: np.zeros(shape, row[name].dtype) for name, shape in shapes.items()}
    for name, values in made.items():
        segments = row["source_segments" if name.startswith("source") else "segments"]
        for document in (1, 2, 3):
            own = row[name][segments == document]
            values[document - 1, : len(own)] = 1 if name.endswith("segments") else own
    return made


@functools.cache
def measured(name):
    """Loss of the packed row, of its documents alone, and what the loss of each document touches on each side."""
    config, objective = CASES[name]
    row, model = packed_row(OBJECTIVES[objective]), build(config)
    loss = language_model_loss(model)
    sides = [row[name] for name in ("source_segments", "segments") if name in row]  # as the network looks them up
    zeros = [jnp.zeros((*segments.shape, config.embed_dim)) for segments in sides]

    @jax.jit
    def run():
        params = parameters.init(model, jax.random.key(0))
        # Weights that are large enough to see every wrong path.
        params = jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x, params)

        def total(added, weights):
            left = list(added)

            def add(call, args, kwargs, context):
                looked_up = call(*args, **kwargs)
                embeds = context.module.name == "embedding" and context.method_name == "__call__"
                return looked_up + left.pop(0) if embeds else looked_up

            with nn.intercept_methods(add):
                cost = loss(params, {**row, "weights": weights}, None).loss
            assert not left
            return cost

        of_document = jnp.stack([jnp.where(row["segments"] == n, row["weights"], 0) for n in (1, 2, 3)])
        costs, gradients = jax.lax.map(lambda weights: jax.value_and_grad(total)(zeros, weights), of_document)
        touched = [jnp.abs(gradient).sum(axis=-1) > 0 for gradient in gradients]
        return costs, touched, loss(params, rows_alone(row), None)

    with jax.set_mesh(tiny.mesh()):
        costs, touched, alone = run()
    assert float(alone.weight) == row["weights"].sum() > 0
    return costs, alone.loss, sides, touched


@pytest.mark.parametrize("name", CASES)
def test_a_packed_row_costs_what_its_documents_cost_alone(name):
    costs, alone, _, _ = measured(name)
    assert float(costs.sum()) == pytest.approx(float(alone), rel=1e-6) and (costs > 0).all()


@pytest.mark.parametrize("name", CASES)
def test_no_document_learns_from_another(name):
    """Gradient of one document's loss: exactly nothing for what is read of the others, something for its own."""
    _, _, sides, touched = measured(name)
    for segments, touched_N1T in zip(sides, touched, strict=True):
        for document, touched_1T in enumerate(touched_N1T, 1):
            assert not touched_1T[segments != document].any()
            assert touched_1T[segments == document].mean() > 0.5
