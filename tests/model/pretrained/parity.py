"""Supported means the same: outputs, loss and gradients of a case that PyTorch computed, in f32.

A case is a dict of arrays: the inputs `batch/*`; `targets` of a language model's loss, or else for each output a
direction `probe/*` whose inner product with it is the loss; then what came out, `output/*`, `loss` and `gradient/*` by
the name of the published tensor. A tensor without a gradient in the case must have none here.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.pretrained.export import published
from model.pretrained.weights import load_weights, read_config
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

Case = dict[str, np.ndarray]
RELATIVE = 2e-5  # of the norm of what is compared; outputs agree to 1e-6, the gradients of T5 to 5e-6
IS_LM = ("lm", "masked_lm")  # heads that the loss of a language model fits


def part(case, name):
    """What the case has under `name/`."""
    return {key.removeprefix(f"{name}/"): array for key, array in case.items() if key.startswith(f"{name}/")}


def make_batch(config, rng):
    """Rows of the full context (relative positions: behind the last distance told apart) and shorter ones, padded on
    the right. Every id is in them: that of the padding only as such, for it counts no position in RoBERTa."""
    T, pad = min(config.max_length, 2 * config.relative_max_distance), max(config.position_offset - 1, 0)
    mask = np.arange(T) < np.array([[T], [T - 3], [T // 2]])
    tokens = np.setdiff1d(np.arange(config.vocab_size), [pad])
    ids = np.resize(rng.permutation(tokens), int(mask.sum()))
    made = {"ids": np.full((3, T), pad), "mask": mask}
    made["ids"][mask] = rng.permutation(ids)
    if config.token_types > 1:
        made["types"] = rng.integers(0, config.token_types, (3, T))
    if config.architecture == "encoder_decoder":
        S = config.relative_max_distance + 13
        made["source"], made["source_mask"] = rng.choice(tokens, (3, S)), np.arange(S) < np.array([[S], [5], [20]])
    return {name: array.astype(np.int32) for name, array in made.items()}


def load(folder):
    """Config, network and parameters of a published folder."""
    config, _ = read_config(folder)
    model = build(config)
    weights = parameters.weights(model)
    params, _ = load_weights(folder, config, weights, parameters.shardings(weights, ShardingRules(), tiny.mesh()))
    return config.resolved(), model, params


def close(a, b, what, floor=0.0):
    difference, size = np.linalg.norm(np.asarray(a) - np.asarray(b)), np.linalg.norm(b)
    assert np.isfinite(difference) and difference <= RELATIVE * size + floor, f"{what}: {difference} of {size}"


def check(folder: Path, case: Case) -> None:
    """Asserts that the network of a published folder computes what the case says."""
    config, model, params = load(folder)
    gradients = check_outputs(config, model, params, case)
    close_gradients(part(case, "gradient"), *published(gradients, config, config.vocab_size))


def check_outputs(config, model, params, case):
    """Asserts that outputs and loss are those of the case; the gradients of the loss."""
    assert sorted(np.unique(case["batch/ids"])) == list(range(config.vocab_size))
    with jax.set_mesh(tiny.mesh()):
        gradient = jax.jit(jax.value_and_grad(loss_of(config, model, case), has_aux=True))
        (loss, out), gradients = jax.device_get(gradient(params))
    expected = part(case, "output")
    for name, value in expected.items():
        keep = case["batch/mask"][..., None] if value.ndim == 3 else 1
        close(out[name] * keep, value * keep, name)
    probes = part(case, "probe")
    terms = [np.linalg.norm(probes[name] * value) for name, value in expected.items() if name in probes]
    close(loss, case["loss"], "loss", floor=RELATIVE * max(terms, default=0.0))
    return gradients


def loss_of(config, model, case):
    """The function params -> (loss, outputs)."""
    batch = part(case, "batch")

    def loss(params):
        out = outputs(config, model, params, batch)
        if config.head not in IS_LM:
            return sum(jnp.sum(out[name] * probe) for name, probe in part(case, "probe").items()), out
        names = {"ids": "inputs", "mask": "segments", "types": "token_types", "source_mask": "source_segments"}
        fed = {names.get(name, name): array for name, array in batch.items()}
        weights = batch["mask"].astype(np.float32)
        sums = language_model_loss(model)(params, fed | {"targets": case["targets"], "weights": weights}, None)
        return sums.loss / sums.weight, out

    return loss


def outputs(config, model, params, batch):
    """What the head puts out, and the hidden states behind it."""
    names = {
        "mask": "segments_BT",
        "types": "token_types_BT",
        "source": "source_BS",
        "source_mask": "source_segments_BS",
    }
    out = apply(model, params, batch["ids"], **{names[key]: batch[key] for key in batch if key != "ids"})
    kinds = {"hidden": "hidden_BTD", "logits": "logits", "pooled": "pooled_BD", "next": "next_sentence_B2"}
    return {name: value for name, ours in kinds.items() if (value := getattr(out, ours)) is not None}


def close_gradients(expected, declared, compute):
    assert expected.keys() <= declared.keys()  # each weight that learns there has a place here
    # A bias of keys moves no attention weight: its gradient is noise around 0, so small ones are measured by the whole.
    whole = np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in expected.values()))
    assert whole > 0
    for name in declared:
        if name in expected:
            close(compute(name), expected[name], name, floor=1e-6 * whole)
        else:
            assert not np.any(compute(name)), f"{name} has a gradient here and none there"
