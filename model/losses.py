"""From logits to nats. Losses are sums with their weights: the mean is taken once, over the whole global batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.transformer import apply

Batch = dict[str, jax.Array]


class Sums(struct.PyTreeNode):
    """What batches add up to: `loss` in nats, `weight` in predicted tokens. `loss / weight` is the mean."""

    loss: jax.Array
    weight: jax.Array


LossFn = Callable[[Any, Batch, jax.Array | None], Sums]


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Nats of each target, in f32. Picking it by comparison needs no gather over a sharded vocabulary."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    hit_BTV = jnp.arange(logits_BTV.shape[-1])[None, None, :] == targets_BT[:, :, None]
    target_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def causal_lm(model: nn.Module) -> LossFn:
    """Next-token loss of a decoder on batches of `inputs`, `targets` and `weights`, each (B, T).

    The key switches training on: it feeds dropout. None evaluates.
    """

    def loss(params: Any, batch: Batch, key: jax.Array | None) -> Sums:
        rngs = None if key is None else {"dropout": key}
        output = apply(model, params, batch["inputs"], train=key is not None, rngs=rngs)
        with jax.named_scope("loss"):
            nats_BT = cross_entropy(output.logits_BTV, batch["targets"])
            return Sums(jnp.sum(nats_BT * batch["weights"]), jnp.sum(batch["weights"]))

    return loss
