"""How a network knows where a token stands: added to the embeddings, or turned into queries and keys."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import Initializer
from model.parameters import declare

Rotate = Callable[[jax.Array, jax.Array], jax.Array]


class LearnedPositions(nn.Module):
    """A table with one row a position (Gehring et al. 2017; GPT-2)."""

    max_length: int
    embed_dim: int
    initializer: Initializer
    dtype: str
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        declared = declare(self.initializer, "position", "embed")
        table = self.param("embedding", declared, (self.max_length, self.embed_dim), self.param_dtype)
        return x_BTD + table.astype(self.dtype)[positions_BT]


class NoPositions(nn.Module):
    """Adds nothing: for rotary positions, or for none (Kazemnejad et al. 2023)."""

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        del positions_BT
        return x_BTD


def rotary(theta: float) -> Rotate:
    """Rotary positions (Su et al. 2021, eq. 15): turns the pair (i, i + K/2) of a head by position * theta^(-2i/K).

    The pairs are the two halves of a head, as in Llama checkpoints of the Hugging Face layout. Angles are f32.
    """

    def rotate(x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        half = x_BHTK.shape[-1] // 2
        inverse_wavelength = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_B1TK = positions_BT[:, None, :, None].astype(jnp.float32) * inverse_wavelength
        sin, cos = jnp.sin(angle_B1TK), jnp.cos(angle_B1TK)
        a, b = jnp.split(x_BHTK.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BHTK.dtype)

    return rotate


def no_rotation(x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Leaves queries and keys as they are."""
    del positions_BT
    return x_BHTK
