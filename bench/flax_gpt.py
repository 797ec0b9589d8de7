"""The Flax peer of bench/: a GPT-2-style decoder as one writes it first, with Flax's own layers and no sharding.

Separate blocks in a Python loop, `nn.Dense`, `nn.MultiHeadDotProductAttention` with a mask array, optax.adamw behind
optax.clip_by_global_norm, one `jax.jit` with a donated state. Only the benchmarks read it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(h, mask=mask)
        h = nn.LayerNorm(dtype=self.dtype)(x)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(h))
        return x + nn.Dense(width, dtype=self.dtype)(h)


class GPT(nn.Module):
    vocab: int
    length: int
    width: int
    layers: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        tokens = nn.Embed(self.vocab, self.width, dtype=self.dtype)
        x = tokens(ids) + nn.Embed(self.length, self.width, dtype=self.dtype)(jnp.arange(ids.shape[1]))
        mask = nn.make_causal_mask(ids)
        for _ in range(self.layers):
            x = Block(self.heads, self.dtype)(x, mask)
        return tokens.attend(nn.LayerNorm(dtype=self.dtype)(x)).astype(jnp.float32)


def flax_step(
    vocab: int, length: int, width: int, layers: int, heads: int, dtype: str
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Builds model and optimiser; returns step(inputs, targets) -> loss, one whole training step."""
    model = GPT(vocab, length, width, layers, heads, jnp.dtype(dtype))
    decayed = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)  # noqa: E731
    adamw = optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.1, mask=decayed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, length), jnp.int32))
    state = (params, jax.jit(optimizer.init)(params))

    def loss_fn(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, inputs), targets).mean()

    def update(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, inputs, targets)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    jitted = jax.jit(update, donate_argnums=0)

    def step(inputs: jax.Array, targets: jax.Array) -> jax.Array:
        nonlocal state
        state, loss = jitted(state, inputs, targets)
        return loss

    return step
