"""The Flax peer of bench/aot.py: a Llama-style decoder and its sharded training step as one writes them first.

Flax's own layers, one `nn.scan` over checkpointed blocks, attention as three lines of `jnp`, optax.adamw behind
optax.clip_by_global_norm. Every large weight lies on `fsdp` along its longest side, the batch along its rows, and one
line holds what enters a block to the same rows; the compiler works out the rest. Only the benchmarks read it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LARGE = 2**16  # numbers of a weight that is worth cutting


class Block(nn.Module):
    heads: int
    mlp: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        width, dense = x.shape[-1], lambda size: nn.Dense(size, use_bias=False, dtype=self.dtype)
        h = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype)(x)
        q, k, v = (dense(width)(h).reshape(*h.shape[:2], self.heads, -1) for _ in range(3))
        x = x + dense(width)(attend(rotate(q), rotate(k), v).reshape(h.shape))
        h = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype)(x)
        return by_rows(x + dense(width)(nn.silu(dense(self.mlp)(h)) * dense(self.mlp)(h))), None


class Llama(nn.Module):
    vocab: int
    width: int
    layers: int
    heads: int
    mlp: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = by_rows(nn.Embed(self.vocab, self.width, dtype=self.dtype)(ids))
        block = nn.remat(Block, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        x, _ = blocks(self.heads, self.mlp, self.dtype)(x, None)
        x = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype)(x)
        return nn.Dense(self.vocab, use_bias=False, dtype=self.dtype)(x).astype(jnp.float32)


def by_rows(x: jax.Array) -> jax.Array:
    """Without it the compiler does not keep the batch apart: 125 times as many bytes go over the wires."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp"))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores).astype(v.dtype), v)


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021), the two halves of a head as pairs."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def sharded_step(model: Llama, batch: int, length: int, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A jitted step(params, opt_state, inputs, targets) -> (params, opt_state, loss), and its abstract arguments."""
    decayed = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)  # noqa: E731
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 2000, 250_000, 3e-5)
    adamw = optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1, mask=decayed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes: list[str | None] = [None] * leaf.ndim
        if leaf.size >= LARGE:
            axes[max(range(leaf.ndim), key=lambda axis: leaf.shape[axis])] = "fsdp"
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(ids.shape, ids.dtype)))
    params = jax.tree.map(place, shapes)
    arguments = (params, jax.tree.map(place, jax.eval_shape(optimizer.init, params)), ids, ids)

    def loss_fn(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits: Any = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(params: Any, opt_state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, inputs, targets)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    placed = jax.tree.map(lambda x: x.sharding, arguments)
    return jax.jit(step, in_shardings=placed, out_shardings=(*placed[:2], whole), donate_argnums=(0, 1)), arguments
