"""The decoder: embeddings, a stack of blocks with one leading `layers` axis, and the output projection."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.attention import Cache, Context, MaskSpec
from model.layers import Dropout
from model.sharding import ShardingRules

Factory = Callable[..., nn.Module]


class Output(struct.PyTreeNode):
    """What a network returns: logits_BTV in f32, and the cache behind the new tokens where one was passed in."""

    logits_BTV: jax.Array
    cache: Any = None  # Cache where one was passed in


def apply(model: nn.Module, params: Any, ids_BT: jax.Array, **options: Any) -> Output:
    """`model` as a function of its parameters; `options` are those of `Transformer.__call__`, and `rngs`."""
    return cast(Output, model.apply({"params": params}, ids_BT, **options))


class Block(nn.Module):
    """Pre-norm Transformer block (Xiong et al. 2020, table 1): x_BTD -> x_BTD."""

    norm: Factory
    attention: Factory
    mlp: Factory
    dropout: float
    rules: ShardingRules

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache | None], layer: jax.Array, context: Context
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        x_BTD, cache = carry
        drop = Dropout(self.dropout)
        with jax.named_scope("attention"):
            h_BTD = self.norm(name="attention_norm")(x_BTD)
            h_BTD, cache = self.attention(name="attention")(h_BTD, context, cache, layer)
            x_BTD = self.rules.constrain(x_BTD + drop(h_BTD, context.train), "batch", "length", "residual")
        with jax.named_scope("mlp"):
            h_BTD = self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD))
            x_BTD = self.rules.constrain(x_BTD + drop(h_BTD, context.train), "batch", "length", "residual")
        return (x_BTD, cache), None


class Transformer(nn.Module):
    """A decoder-only language model. Its parts are factories that `model.build.build` has chosen."""

    embedding: Factory
    positions: Factory
    layers: Factory  # the stacked blocks
    norm: Factory
    output: Factory | None  # None: the embedding table
    num_layers: int
    dropout: float
    rules: ShardingRules

    @nn.compact
    def __call__(
        self,
        ids_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Logits of the token after each token.

        Args:
            ids_BT: int32 token ids.
            segments_BT: int32; tokens see only tokens of their own segment, 0 is padding. None: one segment.
            positions_BT: int32; None: 0, 1, 2, … (after the filled slots of the cache).
            cache: keys and values of earlier tokens, from `model.decoding.empty_cache` or an earlier call.
            train: dropout is on, and needs the random stream "dropout".
        """
        B, T = ids_BT.shape
        first = jnp.int32(0) if cache is None else cache.filled
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(first + jnp.arange(T, dtype=jnp.int32), (B, T))
        if cache is None:
            mask = MaskSpec(causal=True, query_segments_BT=segments_BT, key_segments_BS=segments_BT)
        else:
            segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
            segments_BS = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, first))
            cache = cache.replace(segments_BS=segments_BS)
            mask = MaskSpec(True, first, segments_BT, segments_BS)
        embedding = self.embedding(name="embedding")
        with jax.named_scope("embed"):
            x_BTD = self.positions(name="positions")(embedding(ids_BT), positions_BT)
            x_BTD = Dropout(self.dropout)(x_BTD, train)
            x_BTD = self.rules.constrain(x_BTD, "batch", "length", "residual")
        context = Context(positions_BT, mask, train)
        (x_BTD, cache), _ = self.layers(name="layers")((x_BTD, cache), jnp.arange(self.num_layers), context)
        with jax.named_scope("output"):
            x_BTD = self.norm(name="output_norm")(x_BTD)
            logits_BTV = embedding.logits(x_BTD) if self.output is None else self.output(name="output")(x_BTD)
            logits_BTV = self.rules.constrain(logits_BTV.astype(jnp.float32), "batch", "length", "vocab")
        return Output(logits_BTV, cache.replace(filled=first + T) if cache is not None else None)
