"""The loss over a large vocabulary in chunks of tokens, so that the logits of all tokens never exist at once."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.heads import NoHead
from model.sharding import ShardingRules, shards
from model.transformer import Factory

Weights = Any  # those that the head reads


class Scores(nn.Module):
    """The head of a network as a module of its own, with the network's weights: x_BTD -> logits (B, T, V)."""

    embedding: Factory
    head: Factory

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        return self.head(name="head")(x_BTD, self.embedding(name="embedding"), train).logits


def split(model: Any) -> tuple[nn.Module, Scores]:
    """A network without its head, and the head; both take the parameters of the whole."""
    return model.clone(head=NoHead), Scores(model.embedding, model.head)


def check_chunks(chunks: int, length: int, rules: ShardingRules, mesh_shape: dict[str, int]) -> None:
    """Fails if the tokens of a row that a device holds cannot be cut into `chunks` equal parts.

    Raises:
        ValueError: with the numbers, and those that would work.
    """
    devices = shards(rules.length, mesh_shape)
    if chunks < 1 or length % (chunks * devices):
        here = length // devices
        fits = ", ".join(str(n) for n in range(1, min(here, 64) + 1) if here % n == 0)
        raise ValueError(f"train.loss_chunks is {chunks}: a device has {here} tokens of a row, use one of {fits}")


def summed_in_chunks(
    scores: Scores,
    nats: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunks: int,
    train: bool,
    rules: ShardingRules,
) -> jax.Array:
    """The sum of `nats(logits, targets, weights)` over `chunks` parts of the tokens, one after the other.

    Under differentiation, the forward pass computes the gradient of each part while its logits exist, so nothing is
    computed twice (Hsu et al. 2024, Liger Kernel, section 3.2). Gradients of the weights are summed in f32.

    Raises:
        ValueError: tokens that do not divide into `chunks` parts, or targets that are not one per token.
    """
    check_chunks(chunks, x_BTD.shape[1], rules, dict(jax.sharding.get_abstract_mesh().shape))
    if targets_BT.shape != x_BTD.shape[:2]:
        raise ValueError(
            f"train.loss_chunks is {chunks} and cuts tokens, {x_BTD.shape[:2]}, but the targets have the shape "
            f"{targets_BT.shape}: use 1"
        )

    def nats_of(weights: Weights, x_BtD: jax.Array, targets_Bt: jax.Array, weights_Bt: jax.Array) -> jax.Array:
        return nats(cast(jax.Array, scores.apply({"params": weights}, x_BtD, train)), targets_Bt, weights_Bt)

    @jax.custom_vjp
    def summed(weights: Weights, parts: Any) -> jax.Array:
        return jax.lax.scan(lambda total, part: (total + nats_of(weights, *part), None), jnp.float32(0), parts)[0]

    def forward(weights: Weights, parts: Any) -> tuple[jax.Array, Any]:
        def add(carry: Any, part: Any) -> tuple[Any, jax.Array]:
            value, (weights_gradient, x_gradient) = jax.value_and_grad(nats_of, argnums=(0, 1))(weights, *part)
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry, (value, weights_gradient)), x_gradient

        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
        (total, weights_gradient), x_gradient = jax.lax.scan(add, (jnp.float32(0), zeros), parts)
        return total, (jax.tree.map(lambda g, w: g.astype(w.dtype), weights_gradient, weights), x_gradient)

    def backward(gradients: Any, scale: jax.Array) -> Any:
        weights_gradient, x_gradient = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradients)
        return weights_gradient, (x_gradient, None, None)

    summed.defvjp(forward, backward)
    read = jax.eval_shape(lambda: scores.init(jax.random.key(0), x_BTD, train))["params"]
    parts = (_cut(x_BTD, chunks, rules), _cut(targets_BT, chunks, rules), _cut(weights_BT, chunks, rules))
    return summed({name: params[name] for name in read}, parts)


def _cut(x_BT: jax.Array, chunks: int, rules: ShardingRules) -> jax.Array:
    """(chunks, B, T / chunks): each part takes every n-th token of n = chunks, so tokens stay on their device."""
    B, T, *rest = x_BT.shape
    parts = jnp.moveaxis(x_BT.reshape(B, T // chunks, chunks, *rest), 2, 0)
    axes = ("batch", "length", *("residual" for _ in rest))
    return jax.lax.with_sharding_constraint(parts, jax.sharding.PartitionSpec(None, *rules.spec(*axes)))
