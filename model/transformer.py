"""The Transformer: blocks, a stack of them with one leading `layers` axis, and the networks made of stacks."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model import ring
from model.attention import Context
from model.cache import Cache
from model.layers import Dropout
from model.mask import MaskSpec
from model.routing import Routing
from model.sharding import ShardingRules

Factory = Callable[..., nn.Module]
Residual = Callable[..., tuple[jax.Array, Any]]


class Output(struct.PyTreeNode):
    """What a network returns. Parts that a network does not have are None.

    logits: f32; (B, T, vocabulary) of a language model, (B, labels) of a classifier, (B, T, labels) of a tagger,
        (B, T, 2) of a span extractor: start and end.
    hidden_BTD: the output of the last stack, before the head.
    pooled_BD: of the first token, for classifiers. next_sentence_B2: BERT's second pretraining task.
    source_BSD: the output of the encoder of an encoder-decoder, if a source was passed in.
    cache: the cache that was passed in, with the new tokens added.
    routing: the `model.routing.Routing` of all layers with experts.
    """

    hidden_BTD: Any = None
    logits: Any = None
    pooled_BD: Any = None
    next_sentence_B2: Any = None
    source_BSD: Any = None
    cache: Any = None
    routing: Any = None


def apply(model: nn.Module, params: Any, ids_BT: jax.Array, **options: Any) -> Output:
    """`model` as a function of its parameters; `options` are those of its `__call__`, and `rngs`."""
    return cast(Output, model.apply({"params": params}, ids_BT, **options))


def pre_norm(norm: nn.Module, layer: Callable[..., Any], drop: Callable, x_BTD: jax.Array) -> tuple[jax.Array, Any]:
    """`x + layer(norm(x))` (Xiong et al. 2020, table 1), and what else the layer returns."""
    h_BTD, rest = layer(norm(x_BTD))
    return x_BTD + drop(h_BTD), rest


def post_norm(norm: nn.Module, layer: Callable[..., Any], drop: Callable, x_BTD: jax.Array) -> tuple[jax.Array, Any]:
    """`norm(x + layer(x))` (Vaswani et al. 2017, section 3.1; BERT), and what else the layer returns."""
    h_BTD, rest = layer(x_BTD)
    return norm(x_BTD + drop(h_BTD)), rest


class Block(nn.Module):
    """Self-attention, in a decoder with an encoder cross-attention, and an MLP, each in a residual: BTD -> BTD."""

    norm: Factory
    attention: Factory
    cross_attention: Factory | None
    mlp: Factory
    residual: Residual  # pre_norm or post_norm
    dropout: float
    rules: ShardingRules

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache | None], layer: jax.Array, context: Context
    ) -> tuple[tuple[jax.Array, Cache | None], Routing | None]:
        x_BTD, cache = carry
        attention = self.attention(name="attention")
        x_BTD, cache = self._add("attention", lambda h: attention(h, context, cache, layer), x_BTD, context)
        if self.cross_attention is not None:
            cross = self.cross_attention(name="cross_attention")
            x_BTD, cache = self._add("cross_attention", lambda h: cross(h, context, cache, layer), x_BTD, context)
        mlp = self.mlp(name="mlp")
        x_BTD, routing = self._add("mlp", lambda h: mlp(h, context), x_BTD, context)
        return (x_BTD, cache), routing

    def _add(self, name: str, layer: Callable[..., Any], x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Any]:
        drop = Dropout(self.dropout)
        with jax.named_scope(name):
            norm, constrain = self.norm(name=f"{name}_norm"), self.rules.constrain
            # Inside a layer the length is sharded less than in the residual stream: see `ShardingRules.sequence`.
            inside = lambda h: layer(constrain(h, "batch", "length", "residual"))  # noqa: E731
            outside = lambda h: drop(constrain(h, "batch", "sequence", "residual"), context.train)  # noqa: E731
            x_BTD, rest = self.residual(norm, inside, outside, x_BTD)
            return constrain(x_BTD, "batch", "sequence", "residual"), rest


class Loop(nn.Module):
    """Blocks one by one, each with weights of its own, named "0", "1", …: see `model.parameters.unstack`."""

    block: Factory
    num_layers: int

    @nn.compact
    def __call__(self, carry: Any, layers: jax.Array, context: Context) -> tuple[Any, Routing | None]:
        routings = []
        for layer in range(self.num_layers):
            carry, routing = self.block(name=str(layer))(carry, layer, context)
            routings.append(routing)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *routings)


class Stack(nn.Module):
    """Positions, blocks and a last norm: x_BTD, cache -> x_BTD, cache, and the routing of layers with experts.

    Its parts are chosen by `model.build.build`.
    """

    positions: Factory
    token_types: Factory | None
    embedding_norm: Factory | None
    bias: Factory | None  # of attention scores, shared by all layers
    layers: Factory  # the stacked blocks
    run: Callable[..., Any]  # calls them: `model.pipeline.run_layers`, with its choices
    norm: Factory | None
    causal: bool
    window: int
    num_layers: int
    dropout: float
    rules: ShardingRules

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        slots_T: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        token_types_BT: jax.Array | None = None,
        prefix_BT: jax.Array | None = None,
        source_BSD: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None, Routing | None]:
        """The stack on embedded tokens. Integers are int32.

        Args:
            slots_T: the place in the row of each token, where they are not in order (see `model.ring`).
            segments_BT: tokens see only tokens of their own segment, 0 is padding. None: one segment.
            positions_BT: None: the slots, 0, 1, 2, … (after the filled slots of the cache).
            token_types_BT: which text of a pair a token is from. None: all 0.
            prefix_BT: a decoder's tokens of the prefix (not 0) are seen by their whole segment.
            source_BSD: what cross-attention looks at; None: what the cache keeps of it.
            source_segments_BS: 0 is padding of the source.
            cache: what a decoder keeps of earlier tokens, from `model.decoding.empty_cache` or an earlier call.

        Raises:
            ValueError: token types for a network that has no table of them.
        """
        B, T, _ = x_BTD.shape
        first = jnp.int32(0) if cache is None else cache.filled
        if positions_BT is None:
            slots = first + jnp.arange(T, dtype=jnp.int32) if slots_T is None else slots_T
            positions_BT = jnp.broadcast_to(slots, (B, T))
        if cache is None:
            mask = MaskSpec(self.causal, self.window, None, segments_BT, segments_BT, prefix_BT, slots_T, slots_T)
        else:
            segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
            segments_BS = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, first))
            cache = cache.replace(segments_BS=segments_BS)
            if prefix_BT is not None:
                prefix_BT = jax.lax.dynamic_update_slice(jnp.zeros_like(segments_BS), prefix_BT, (0, first))
            mask = MaskSpec(self.causal, self.window, first, segments_BT, segments_BS, prefix_BT)
        with jax.named_scope("embed"):
            x_BTD = self._embed(x_BTD, positions_BT, token_types_BT, train)
        source_mask = None
        if source_segments_BS is not None:
            queries_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
            source_mask = MaskSpec(False, query_segments_BT=queries_BT, key_segments_BS=source_segments_BS)
        S = T if cache is None else cache.segments_BS.shape[1]
        bias = None if self.bias is None else self.bias(name="relative")()
        if bias is not None and not ring.cuts(self.rules, B, T, S):  # built once, for all layers
            bias = bias(mask.query_slots(T), mask.key_slots(S))
        context = Context(positions_BT, mask, bias, source_BSD, source_mask, train)
        blocks, layers = self.layers(name="layers"), jnp.arange(self.num_layers)
        (x_BTD, cache), routing = self.run(blocks, (x_BTD, cache), layers, context)
        with jax.named_scope("norm"):
            x_BTD = x_BTD if self.norm is None else self.norm(name="norm")(x_BTD)
            x_BTD = self.rules.constrain(x_BTD, "batch", "length", "residual")
        return x_BTD, cache if cache is None else cache.replace(filled=first + T), routing

    def _embed(self, x_BTD: jax.Array, positions_BT: jax.Array, token_types_BT: Any, train: bool) -> jax.Array:
        x_BTD = self.positions(name="positions")(x_BTD, positions_BT)
        if self.token_types is None and token_types_BT is not None:
            raise ValueError("token types are given, but model.token_types is 0: this network has no table of them")
        if self.token_types is not None:
            x_BTD = self.token_types(name="token_types")(x_BTD, token_types_BT)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(name="embedding_norm")(x_BTD)
        return self.rules.constrain(Dropout(self.dropout)(x_BTD, train), "batch", "sequence", "residual")


class Transformer(nn.Module):
    """One stack with a head: a decoder (GPT, Llama) or an encoder (BERT)."""

    embedding: Factory
    stack: Factory  # carries its name, "decoder" or "encoder"
    head: Factory

    @nn.compact
    def __call__(self, ids_BT: jax.Array, *, train: bool = False, last: bool = False, **inputs: Any) -> Output:
        """The network on token ids, int32.

        Args:
            train: dropout is on, and needs the random stream "dropout".
            last: the head sees the last position only.
            inputs: those of `Stack.__call__`.
        """
        embedding = self.embedding(name="embedding")
        x_BTD, cache, routing = self.stack()(embedding(ids_BT), train=train, **inputs)
        output = _scored(self.head, x_BTD, embedding, train, last)
        return output.replace(cache=cache, routing=routing)


class EncoderDecoder(nn.Module):
    """An encoder that reads a source and a decoder that looks at it (Vaswani et al. 2017; T5)."""

    embedding: Factory
    encoder: Factory
    decoder: Factory
    head: Factory

    @nn.compact
    def __call__(
        self,
        ids_BT: jax.Array,
        *,
        source_BS: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
        source_positions_BS: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
        last: bool = False,
        **inputs: Any,
    ) -> Output:
        """As `Transformer`, on the decoder's tokens; the encoder reads `source_BS`, whose segment 0 is padding.

        With a cache, the source is given once: the cache keeps what cross-attention needs of it.

        Raises:
            ValueError: neither a source nor a cache, or a source of another length than the cache was made for.
        """
        embedding = self.embedding(name="embedding")
        if self.is_initializing():
            source_BS = ids_BT
        if source_BS is not None:
            if cache is not None:
                cache = _with_source(cache, source_BS, source_segments_BS)
            source_BSD, _, source_routing = self.encoder()(
                embedding(source_BS), segments_BT=source_segments_BS, positions_BT=source_positions_BS, train=train
            )
        elif cache is None:
            raise ValueError("an encoder-decoder needs source_BS, or the cache of an earlier call that had it")
        else:
            source_BSD, source_segments_BS, source_routing = None, cache.source_segments_BS, None
        source = {"source_BSD": source_BSD, "source_segments_BS": source_segments_BS}
        x_BTD, cache, routing = self.decoder()(embedding(ids_BT), cache=cache, train=train, **source, **inputs)
        if source_routing is not None:
            routing = jax.tree.map(lambda *parts: jnp.concatenate(parts), source_routing, routing)
        output = _scored(self.head, x_BTD, embedding, train, last)
        return output.replace(source_BSD=source_BSD, cache=cache, routing=routing)


def _scored(head: Factory, x_BTD: jax.Array, embedding: nn.Module, train: bool, last: bool) -> Output:
    with jax.named_scope("head"):
        output = head(name="head")(x_BTD[:, -1:] if last else x_BTD, embedding, train)
    return output.replace(hidden_BTD=x_BTD)


def _with_source(cache: Cache, source_BS: jax.Array, segments_BS: jax.Array | None) -> Cache:
    if cache.source_segments_BS is None or cache.source_segments_BS.shape != source_BS.shape:
        made_for = None if cache.source_segments_BS is None else cache.source_segments_BS.shape
        raise ValueError(f"the source has shape {source_BS.shape}, the cache was made for {made_for}")
    return cache.replace(source_segments_BS=jnp.ones_like(source_BS) if segments_BS is None else segments_BS)
