"""Which experts each token goes to, and the losses that keep their loads even.

A router scores the experts for each token; the best k are its choices (Shazeer et al. 2017, section 2.1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct


class Choices(NamedTuple):
    """The k experts of each token, best first, with the weights of their outputs (f32)."""

    experts_BTK: jax.Array
    weights_BTK: jax.Array


class Routing(struct.PyTreeNode):
    """Statistics of a router for each row of a batch, all f32. A stack of layers has a leading axis of layers.

    Each row is a group of its own (GShard, section 2.2), so that rows add up alike on any mesh and in any microbatch.
    """

    load_balance_B: jax.Array  # 1 if all experts have the same load, E if one has all of it
    router_z_B: jax.Array
    added_B: jax.Array  # their weighted sum, the auxiliary loss of the row
    load_BE: jax.Array  # how often each expert was chosen
    dropped_B: jax.Array  # choices that found their expert full


class RoutingSums(struct.PyTreeNode):
    """Sums of `Routing` over rows. The first three are weighted by the predicted tokens of a row, like the loss."""

    load_balance: jax.Array  # mean of the layers
    router_z: jax.Array  # mean of the layers
    added: jax.Array  # sum of the layers
    load_LE: jax.Array
    dropped: jax.Array

    def metrics(self, weight: jax.Array) -> dict[str, jax.Array]:
        """`load_balance` and `router_z` a token; `dropped`, the share of all choices that found their expert full;
        `busiest`, the largest share of one layer's choices that one expert got."""
        share_LE = self.load_LE / jnp.maximum(jnp.sum(self.load_LE, axis=1, keepdims=True), 1.0)
        return {
            "load_balance": self.load_balance / weight,
            "router_z": self.router_z / weight,
            "dropped": self.dropped / jnp.maximum(jnp.sum(self.load_LE), 1.0),
            "busiest": jnp.max(share_LE),
        }


def choose_experts(logits_BTE: jax.Array, k: int) -> Choices:
    """The k experts with the largest probability, ties to the first.

    Their weights are their probabilities, which for k > 1 are divided by their sum (GShard, algorithm 1; Mixtral). One
    expert keeps its probability as weight (Switch, eq. 2): divided by itself it would be 1, and the router would get
    no gradient from the loss.
    """
    weights_BTK, experts_BTK = jax.lax.top_k(jax.nn.softmax(logits_BTE, axis=-1), k)
    if k > 1:
        weights_BTK /= jnp.sum(weights_BTK, axis=-1, keepdims=True)
    return Choices(experts_BTK, weights_BTK)


def report(
    logits_BTE: jax.Array,
    experts_BTK: jax.Array,
    valid_BT: jax.Array,
    dropped_B: jax.Array,
    *,
    load_balance_loss: float,
    router_z_loss: float,
) -> Routing:
    """The routing of each row, over its tokens that are `valid` (no padding).

    Load balance: E sum_e f_e P_e, with f_e the share of the choices that expert e got and P_e its mean probability
    (Fedus et al. 2022, eq. 4 to 6, there with one choice a token). Router z: the mean square of the logarithm of the
    normaliser (Zoph et al. 2022, eq. 5).
    """
    E = logits_BTE.shape[-1]
    valid = valid_BT.astype(jnp.float32)
    tokens_B = jnp.maximum(jnp.sum(valid, axis=1), 1.0)
    chosen_BTE = jnp.sum(jax.nn.one_hot(experts_BTK, E, dtype=jnp.float32), axis=2)
    load_BE = jnp.einsum("BTE,BT->BE", chosen_BTE, valid)
    mean_BE = jnp.einsum("BTE,BT->BE", jax.nn.softmax(logits_BTE, axis=-1), valid) / tokens_B[:, None]
    part_BE = load_BE / jnp.maximum(jnp.sum(load_BE, axis=1, keepdims=True), 1.0)
    load_balance_B = E * jnp.sum(part_BE * mean_BE, axis=1)
    router_z_B = jnp.sum(valid * jax.nn.logsumexp(logits_BTE, axis=-1) ** 2, axis=1) / tokens_B
    added_B = load_balance_loss * load_balance_B + router_z_loss * router_z_B
    return Routing(load_balance_B, router_z_B, added_B, load_BE, dropped_B)


def summed(routing: Routing, weights: jax.Array) -> RoutingSums:
    """The sums of a batch, from the routing of its layers and the weights of its predictions, (B,) or (B, T)."""
    weights_B = jnp.sum(weights, axis=tuple(range(1, weights.ndim)))
    return RoutingSums(
        load_balance=jnp.mean(routing.load_balance_B @ weights_B),
        router_z=jnp.mean(routing.router_z_B @ weights_B),
        added=jnp.sum(routing.added_B @ weights_B),
        load_LE=jnp.sum(routing.load_BE, axis=1),
        dropped=jnp.sum(routing.dropped_B),
    )
