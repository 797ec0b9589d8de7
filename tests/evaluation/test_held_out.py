"""Held-out scores against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.held_out import make_evaluator
from model import parameters
from model.build import build
from model.losses import Sums, language_model_loss
from tests import tiny

BYTES = np.concatenate([[0], np.random.default_rng(1).integers(1, 6, 63)]).astype(np.int32)  # id 0 ends a document


@pytest.fixture(scope="module")
def network():
    """A tiny GPT with fresh parameters, under the mesh that it is built for."""
    model = build(tiny.GPT)
    with jax.set_mesh(tiny.mesh()):
        params = jax.jit(lambda: parameters.init(model, jax.random.key(0)))()
        yield model, jax.tree.map(lambda p: p * 8, params)  # so that no token is as likely as another


def evaluate(network, batches):
    model, params = network
    return make_evaluator(
        language_model_loss(model),
        batches if isinstance(batches, dict) else {"": batches},
        lambda batch: jax.tree.map(jnp.asarray, dict(batch)),
        BYTES,
    )(params)


def by_hand(network, batches):
    """Nats, tokens and bytes of the predicted tokens, row by row in float64."""
    model, params = network
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids).logits)
    nats, tokens, count = 0.0, 0, 0
    for batch in batches:
        logits = np.asarray(apply(batch["inputs"]), np.float64)
        for b, t in np.argwhere(batch["weights"] > 0):
            target = batch["targets"][b, t]
            nats += np.log(np.exp(logits[b, t]).sum()) - logits[b, t, target]
            tokens, count = tokens + 1, count + int(BYTES[target])
    return nats, tokens, count


def merged(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_scores_are_the_sums_by_hand(network):
    """Half of the weights of the second batch are 0, as in padding: neither nats nor bytes of them count."""
    batches = [tiny.batch(rows=4, seed=0), tiny.batch(rows=4, seed=1)]
    batches[1]["weights"][2:] = 0
    nats, tokens, count = by_hand(network, batches)
    scores = evaluate(network, batches)
    assert scores.keys() == {"eval/loss", "eval/perplexity", "eval/bits_per_byte"}
    assert scores["eval/loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["eval/perplexity"] == pytest.approx(np.exp(nats / tokens), rel=1e-4)
    assert scores["eval/bits_per_byte"] == pytest.approx(nats / np.log(2) / count, rel=1e-5)
    # The mean of the two batches' means is another number: batches count by their tokens.
    means = [evaluate(network, [batch])["eval/loss"] for batch in batches]
    assert abs(sum(means) / 2 - scores["eval/loss"]) > 1e-3


def test_scores_do_not_depend_on_the_batching(network):
    whole = [tiny.batch(rows=8, seed=2)]
    rows = [{name: value[b : b + 1] for name, value in whole[0].items()} for b in range(8)]
    empty = {name: np.zeros_like(value) for name, value in rows[0].items()}
    padded = [merged(rows[:5]), merged([*rows[5:], empty, empty])]
    expected = evaluate(network, whole)
    for batches in (rows, padded):
        assert evaluate(network, batches) == pytest.approx(expected, rel=1e-5)


def test_several_texts_are_scored_together_and_each_for_itself(network):
    batches = {"a": [tiny.batch(rows=4, seed=0)], "b": [tiny.batch(rows=4, seed=1), tiny.batch(rows=4, seed=2)]}
    batches["b"][1]["weights"][1:] = 0
    scores = evaluate(network, batches)
    own = {f"eval/{name}/loss": evaluate(network, text)["eval/loss"] for name, text in batches.items()}
    together = evaluate(network, [batch for text in batches.values() for batch in text])
    assert scores == pytest.approx(together | own, rel=1e-6)


def test_an_end_of_document_costs_nats_and_has_no_bytes(network):
    batch = tiny.batch(rows=2, seed=3)
    batch["weights"][:] = 1
    batch["targets"][:, ::2] = 0
    nats, tokens, count = by_hand(network, [batch])
    assert tokens == 64 and count == BYTES[batch["targets"][:, 1::2]].sum()
    assert evaluate(network, [batch])["eval/bits_per_byte"] == pytest.approx(nats / np.log(2) / count, rel=1e-5)


def test_nothing_to_predict_is_an_error(network):
    batch = tiny.batch(rows=2)
    batch["weights"][:] = 0
    for batches in ([batch], []):
        with pytest.raises(ValueError, match="no token to predict: raise data.held_out"):
            evaluate(network, batches)


def test_a_loss_beyond_floats_still_has_a_perplexity():
    scores = make_evaluator(
        lambda params, batch, key: Sums(jnp.float32(5000.0), jnp.float32(1.0)), {"": [tiny.batch()]}, dict, BYTES
    )(None)
    assert scores["eval/loss"] == 5000.0 and np.isfinite(scores["eval/perplexity"])
