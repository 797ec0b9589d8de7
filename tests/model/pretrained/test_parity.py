"""Supported means the same: outputs, loss and gradients of every family are those of PyTorch, in f32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.pretrained.export import published
from model.pretrained.weights import load_weights, read_config
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny
from tests.model.pretrained import models

torch = models.torch
RELATIVE = 2e-5  # of the norm of what is compared; outputs agree to 1e-6, the gradients of T5 to 5e-6


def make_batch(config, rng):
    """Rows of full context (T5: behind the last distance that it tells apart) and shorter ones, padded on the right."""
    T = min(config.max_length, 40)
    lengths = np.array([T, T - 3, T // 2])
    made = {"ids": rng.integers(3, 19, (3, T)), "mask": np.arange(T) < lengths[:, None]}
    made["ids"] = np.where(made["mask"], made["ids"], max(config.position_offset - 1, 0))
    if config.token_types > 1:
        made["types"] = rng.integers(0, config.token_types, (3, T))
    if config.architecture == "encoder_decoder":
        made["source"], made["source_mask"] = rng.integers(3, 19, (3, 33)), np.arange(33) < np.array([[33], [5], [20]])
    return {name: array.astype(np.int32) for name, array in made.items()}


def ours(config, model, params, batch):
    names = {
        "mask": "segments_BT",
        "types": "token_types_BT",
        "source": "source_BS",
        "source_mask": "source_segments_BS",
    }
    out = apply(model, params, batch["ids"], **{names[key]: batch[key] for key in batch if key != "ids"})
    if config.head == "pooler":
        return {"hidden": out.hidden_BTD, "pooled": out.pooled_BD}
    return {"logits": out.logits} | ({"next": out.next_sentence_B2} if config.head == "pretraining" else {})


def theirs(config, model, batch):
    t = {name: torch.tensor(array).long() for name, array in batch.items()}
    if config.architecture == "encoder_decoder":
        out = model(
            input_ids=t["source"], attention_mask=t["source_mask"],
            decoder_input_ids=t["ids"], decoder_attention_mask=t["mask"],
        )  # fmt: skip
    else:
        types = {"token_type_ids": t["types"]} if "types" in t else {}
        out = model(input_ids=t["ids"], attention_mask=t["mask"], **types)
    if config.head == "pooler":
        return {"hidden": out.last_hidden_state, "pooled": out.pooler_output}
    if config.head == "pretraining":
        return {"logits": out.prediction_logits, "next": out.seq_relationship_logits}
    if config.head == "span":
        return {"logits": torch.stack([out.start_logits, out.end_logits], -1)}
    return {"logits": out.logits}


def close(a, b, what, floor=0.0):
    difference, size = np.linalg.norm(np.asarray(a) - np.asarray(b)), np.linalg.norm(b)
    assert np.isfinite(difference) and difference <= RELATIVE * size + floor, f"{what}: {difference} of {size}"


@pytest.mark.parametrize("kind", models.MODELS)
def test_outputs_loss_and_gradients(kind, tmp_path):
    reference = models.save(kind, tmp_path)
    config, _ = read_config(tmp_path)
    model = build(config)
    weights = parameters.weights(model)
    mesh = tiny.mesh()
    params, _ = load_weights(tmp_path, config, weights, parameters.shardings(weights, ShardingRules(), mesh))
    rng = np.random.default_rng(0)
    batch = make_batch(config, rng)
    valid = batch["mask"].astype(np.float32)
    expected = theirs(config, reference, batch)
    probes, sizes = {}, {name: tuple(value.shape) for name, value in expected.items()}
    for name, size in sizes.items():  # a random direction for each output, nothing for padding
        probes[name] = rng.normal(size=size).astype(np.float32) * (valid[..., None] if len(size) == 3 else 1)
    targets, is_lm = rng.integers(0, 19, batch["ids"].shape), config.head in ("lm", "masked_lm")

    def our_loss(params):
        out = ours(config, model, params, batch)
        if not is_lm:
            return sum(jnp.sum(out[name] * probes[name]) for name in out), out
        names = {"ids": "inputs", "mask": "segments", "types": "token_types", "source_mask": "source_segments"}
        fed = {names.get(name, name): array for name, array in batch.items()} | {"targets": targets, "weights": valid}
        sums = language_model_loss(model)(params, fed, None)
        return sums.loss / sums.weight, out

    with jax.set_mesh(mesh):
        (loss, out), gradients = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(params)
    if is_lm:
        mask = torch.tensor(valid).bool()
        their_loss = torch.nn.functional.cross_entropy(expected["logits"][mask], torch.tensor(targets)[mask])
    else:
        their_loss = sum((expected[name] * torch.tensor(probes[name])).sum() for name in expected)
    their_loss.backward()
    their_loss = their_loss.item()

    for name, value in expected.items():
        keep = valid[..., None] if value.dim() == 3 else 1
        close(out[name] * keep, value.detach().numpy() * keep, name)
    size = (
        their_loss
        if is_lm
        else max(np.linalg.norm(probes[name] * value.detach().numpy()) for name, value in expected.items())
    )
    assert abs(float(loss) - their_loss) <= RELATIVE * size
    declared, compute = published(jax.device_get(gradients), config, config.vocab_size)
    their_weights = dict(reference.named_parameters(remove_duplicate=False))
    # Each weight that learns has a place, a tied one under one of its names.
    learning = {id(weight) for weight in their_weights.values() if weight.grad is not None}
    assert learning <= {id(their_weights[name]) for name in declared}
    # A bias of keys moves no attention weight: its gradient is noise around 0, so small ones are measured by the whole.
    whole = float(torch.sqrt(sum((w.grad**2).sum() for w in reference.parameters() if w.grad is not None)))
    for name in declared:
        if their_weights[name].grad is None:
            assert not np.any(compute(name)), f"{name} has a gradient here and none there"
        else:
            close(compute(name), their_weights[name].grad.numpy(), name, floor=1e-6 * whole)
