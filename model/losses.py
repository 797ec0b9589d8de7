"""From logits to nats. Losses are sums with their weights: the mean is taken once, over the whole global batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model import ring
from model.chunks import split, summed_in_chunks
from model.routing import RoutingSums, summed
from model.sharding import ShardingRules, shards
from model.transformer import Output, apply

Batch = Mapping[str, jax.Array]
# Features of a batch that a network takes as they are, with the name of the argument.
INPUTS = {
    "slots": "slots_T",
    "segments": "segments_BT",
    "positions": "positions_BT",
    "token_types": "token_types_BT",
    "prefix": "prefix_BT",
    "source": "source_BS",
    "source_segments": "source_segments_BS",
    "source_positions": "source_positions_BS",
}
KNOWN = {"inputs", "targets", "weights", *INPUTS}


class Sums(struct.PyTreeNode):
    """Sums over batches: `loss` in nats, `weight` in predicted tokens. `loss / weight` is the mean.

    `routing`: of a network with experts, in training.
    """

    loss: jax.Array
    weight: jax.Array
    routing: RoutingSums | None = None

    @property
    def objective(self) -> jax.Array:
        """What training minimises: the loss and the auxiliary losses of the routers."""
        return self.loss if self.routing is None else self.loss + self.routing.added


LossFn = Callable[[Any, Batch, jax.Array | None], Sums]


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sharded_vocab: bool = False,
) -> jax.Array:
    """Nats of each target in f32, over the last axis of `logits`.

    With `label_smoothing` e, the target has probability 1 - e and all classes share e (Szegedy et al. 2016, section 7).
    `z_loss` times the squared logarithm of the normaliser is added, which keeps it near 0 (Chowdhery et al. 2022).

    With a sharded vocabulary the target's logit is found by comparison, which each device does on its own shard; else
    by index, which is faster (25 % of a training step with 32k ids on CPU).
    """
    logits = logits.astype(jnp.float32)
    if sharded_vocab:
        hit = jnp.arange(logits.shape[-1]) == targets[..., None]
        target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    else:
        target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    nats = normaliser - target
    if label_smoothing:
        nats += label_smoothing * (target - jnp.mean(logits, axis=-1))
    return nats + z_loss * normaliser**2 if z_loss else nats


def language_model_loss(
    model: nn.Module,
    rules: ShardingRules | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunks: int = 1,
) -> LossFn:
    """The loss of any network that scores classes: the next token, a masked one, the label of a text or of a token.

    A batch has `inputs` (B, T), `targets` and `weights` of the shape of the logits without their last axis, and other
    inputs of the network (`INPUTS`). A key means training: it feeds dropout, and label smoothing and z-loss apply; None
    means evaluation. With `chunks` above 1, the logits are computed in that many parts of the tokens, one after the
    other (`model.chunks`): the same sum with less memory.
    """
    rules = rules or ShardingRules()

    def loss(params: Any, batch: Batch, key: jax.Array | None) -> Sums:
        batch, train = _dealt(batch, rules), key is not None
        entropy = functools.partial(
            cross_entropy,
            label_smoothing=label_smoothing if train else 0.0,
            z_loss=z_loss if train else 0.0,
            sharded_vocab=shards(rules.vocab, dict(jax.sharding.get_abstract_mesh().shape)) > 1,
        )

        def nats(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.sum(entropy(logits, targets) * weights)

        targets, weights = batch["targets"], batch["weights"]
        if chunks == 1:
            output = _output(model, params, batch, key)
            with jax.named_scope("loss"):
                return _sums(nats(output.logits, targets, weights), weights, output, train)
        body, scores = split(model)
        output = _output(body, params, batch, key)
        with jax.named_scope("loss"):
            total = summed_in_chunks(
                scores, nats, params, output.hidden_BTD, targets, weights, chunks=chunks, train=train, rules=rules
            )
            return _sums(total, weights, output, train)

    return loss


def span_loss(model: nn.Module) -> LossFn:
    """The loss of a span extractor: mean nats of the start and the end of the answer (Devlin et al. 2019, section 4.2).

    `targets` (B, 2) are the places of the first and the last token of the answer, `weights` (B,) those of the rows.
    """

    def loss(params: Any, batch: Batch, key: jax.Array | None) -> Sums:
        output = _output(model, params, batch, key)
        nats_B2 = cross_entropy(jnp.swapaxes(output.logits, 1, 2), batch["targets"])
        total = jnp.sum(jnp.mean(nats_B2, axis=1) * batch["weights"])
        return _sums(total, batch["weights"], output, key is not None)

    return loss


def _dealt(batch: Batch, rules: ShardingRules) -> Batch:
    """For ring attention, tokens in the order that balances the devices, and their slots; else the batch as it is.

    Reordering ids once is cheaper than reordering activations. A source is read in both directions and stays.
    """
    B, T = batch["inputs"].shape
    if not ring.cuts(rules, B, T):
        return batch
    slots_T = ring.dealt(T, ring.parts(rules))
    moved = {name: x for name, x in batch.items() if not name.startswith("source") and x.shape[:2] == (B, T)}
    moved = {name: rules.constrain(x[:, slots_T], "batch", "length") for name, x in moved.items()}
    return {**batch, **moved, "slots": jnp.asarray(slots_T)}


def _sums(loss: jax.Array, weights: jax.Array, output: Output, train: bool) -> Sums:
    routing = summed(output.routing, weights) if train and output.routing is not None else None
    return Sums(loss, jnp.sum(weights), routing)


def _output(model: nn.Module, params: Any, batch: Batch, key: jax.Array | None) -> Output:
    if unknown := sorted(set(batch) - KNOWN):
        raise ValueError(f"the batch has {', '.join(unknown)}: a network reads {', '.join(sorted(KNOWN))}")
    options = {INPUTS[name]: array for name, array in batch.items() if name in INPUTS}
    rngs = None if key is None else {"dropout": key}
    return apply(model, params, batch["inputs"], train=key is not None, rngs=rngs, **options)
