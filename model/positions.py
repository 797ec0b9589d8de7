"""Positions of tokens: added to embeddings, rotated into queries and keys, or added to attention scores."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from model.layers import Initializer, look_up
from model.parameters import declare
from model.sharding import ShardingRules

Rotate = Callable[[jax.Array, jax.Array], jax.Array]
Rescale = Callable[[np.ndarray], np.ndarray]


class LearnedPositions(nn.Module):
    """A table with one row a position (Gehring et al. 2017; GPT-2), the first of them in row `offset`."""

    max_length: int
    embed_dim: int
    rules: ShardingRules
    initializer: Initializer
    dtype: str
    param_dtype: str = "float32"
    offset: int = 0

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        declared = declare(self.initializer, "position", "embed")
        shape = (self.max_length + self.offset, self.embed_dim)
        table = self.param("embedding", declared, shape, self.param_dtype)
        return x_BTD + look_up(table.astype(self.dtype), positions_BT + self.offset, self.rules, "position")


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i/D) in columns 2i and 2i+1 (Vaswani et al. 2017, section 3.5)."""

    embed_dim: int

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        frequency = 10_000.0 ** (-np.arange(0, self.embed_dim, 2, dtype=np.float32) / self.embed_dim)
        angle_BTd = positions_BT[:, :, None].astype(jnp.float32) * frequency
        waves = jnp.stack([jnp.sin(angle_BTd), jnp.cos(angle_BTd)], axis=-1)
        return x_BTD + waves.reshape(*angle_BTd.shape[:2], self.embed_dim).astype(x_BTD.dtype)


class NoPositions(nn.Module):
    """Adds nothing: positions enter in attention, or not at all (Kazemnejad et al. 2023)."""

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        del positions_BT
        return x_BTD


class ScoreBias(struct.PyTreeNode):
    """A bias of attention scores, as a description: a weighted sum of features of the distance from query to key."""

    weights_RH: jax.Array  # f32
    features: Callable[[jax.Array], jax.Array] = struct.field(pytree_node=False)  # int32 (T, S) -> f32 (T, S, R)

    def __call__(self, query_slots_T: jax.Array, key_slots_S: jax.Array) -> jax.Array:
        """bias_1HTS, f32."""
        distance_TS = key_slots_S[None, :] - query_slots_T[:, None]
        return jnp.transpose(self.features(distance_TS) @ self.weights_RH, (2, 0, 1))[None]


class RelativePositions(nn.Module):
    """A learned bias for each head and bucket of distances (Raffel et al. 2020, section 2.1)."""

    buckets: int
    max_distance: int
    num_heads: int
    bidirectional: bool
    initializer: Initializer
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self) -> ScoreBias:
        declared = declare(self.initializer, "position", "heads")
        table = self.param("embedding", declared, (self.buckets, self.num_heads), self.param_dtype)
        return ScoreBias(table.astype(jnp.float32), Buckets(self.buckets, self.max_distance, self.bidirectional))


@dataclasses.dataclass(frozen=True)
class Buckets:
    """One feature a bucket of distances: 1 in it, 0 elsewhere. A product with them has a product as gradient, where
    a look-up has a scatter-add, slow on GPUs.

    Half of the buckets are one distance each, the others grow geometrically up to `max_distance`. Where queries see
    both sides, half of all buckets are for keys after the query.
    """

    buckets: int
    max_distance: int
    bidirectional: bool

    def __call__(self, distance_TS: jax.Array) -> jax.Array:
        return jax.nn.one_hot(self._bucket(distance_TS), self.buckets, dtype=jnp.float32)

    def _bucket(self, distance: jax.Array) -> jax.Array:
        buckets, first = self.buckets, jnp.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first = jnp.where(distance > 0, buckets, 0)
            distance = jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        # Distance 0 takes the exact branch; the maximum keeps the unused logarithm finite.
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(self.max_distance / exact)
        far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class ALiBi(nn.Module):
    """Scores fall linearly with distance, at a slope of each head's own (Press et al. 2022)."""

    num_heads: int

    def __call__(self) -> ScoreBias:
        return ScoreBias(-jnp.asarray(alibi_slopes(self.num_heads))[None, :], farness)


def farness(distance_TS: jax.Array) -> jax.Array:
    """The absolute distance of a key: f32 (T, S, 1)."""
    return jnp.abs(distance_TS).astype(jnp.float32)[:, :, None]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2^(-8/n), 2^(-16/n), … for n heads; where n is no power of two, every second slope of 2n fills up."""
    power = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: num_heads - power]]).astype(np.float32)


def rotary(theta: float, rescale: Rescale) -> Rotate:
    """Rotary positions (Su et al. 2021, eq. 15): turns the pair (i, i + K/2) of a head by position * theta^(-2i/K).

    The pairs are the two halves of a head, as in Llama checkpoints of the Hugging Face layout. Angles are f32.
    `rescale` changes the frequencies, for contexts longer than those of the training.
    """

    def rotate(x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        half = x_BHTK.shape[-1] // 2
        frequency = rescale(theta ** (-np.arange(half, dtype=np.float32) / half))
        angle_B1TK = positions_BT[:, None, :, None].astype(jnp.float32) * frequency
        sin, cos = jnp.sin(angle_B1TK), jnp.cos(angle_B1TK)
        a, b = jnp.split(x_BHTK.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BHTK.dtype)

    return rotate


def no_rotation(x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Leaves queries and keys as they are."""
    del positions_BT
    return x_BHTK


def interpolated(factor: float) -> Rescale:
    """All frequencies divided by `factor`: positions are squeezed (Chen et al. 2023). 1 changes nothing."""
    return lambda frequency: frequency / np.float32(factor)


def llama3_scaled(factor: float, low: float, high: float, original_length: int) -> Rescale:
    """Llama 3.1's scaling: long waves are stretched by `factor`, short ones kept, and a ramp lies between.

    A wave is long where it turns less than `low` times in `original_length` positions, short from `high` times on.
    """

    def rescale(frequency: np.ndarray) -> np.ndarray:
        turns = original_length * frequency / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (kept * frequency + (1 - kept) * frequency / factor).astype(np.float32)

    return rescale
