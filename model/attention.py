"""Attention: one entry, a mask that is described rather than built, and the module that calls it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.layers import Dropout, Initializer, Linear
from model.positions import Rotate
from model.sharding import ShardingRules

MASKED = -1e30  # finite, so that a row with nothing to see stays free of NaN
CHUNKS = 4  # parts of the queries of causal attention, none of which looks at keys behind its end


class MaskSpec(struct.PyTreeNode):
    """Which keys a query sees: those at or before it, of its own segment.

    A *slot* is a place in the key array. Query t stands in slot `query_offset + t`, or t where that is None.
    Segment 0 is padding.
    """

    causal: bool = struct.field(pytree_node=False, default=True)
    query_offset: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None

    def allowed(self, T: int, S: int) -> jax.Array | None:
        """The mask as booleans, (1 or B, 1, T, S), or None where every query sees every key."""
        allowed = None
        if self.causal:
            query_slot_T1 = jnp.arange(T)[:, None] + (0 if self.query_offset is None else self.query_offset)
            allowed = (jnp.arange(S)[None, :] <= query_slot_T1)[None, None]
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            same = (self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :])[:, None]
            allowed = same if allowed is None else allowed & same
        return allowed

    def part(self, start: int, end: int) -> "MaskSpec":
        """The mask of queries `start` to `end` over keys 0 to `end`; only where there is no offset."""
        queries = None if self.query_segments_BT is None else self.query_segments_BT[:, start:end]
        keys = None if self.key_segments_BS is None else self.key_segments_BS[:, :end]
        return MaskSpec(self.causal, jnp.int32(start), queries, keys)


class Context(struct.PyTreeNode):
    """What every layer is told beside its input: where tokens stand, what they see, and whether we train."""

    positions_BT: jax.Array
    mask: MaskSpec
    train: bool = struct.field(pytree_node=False, default=False)


class Cache(struct.PyTreeNode):
    """Keys and values of the tokens seen so far, for all layers; `filled` slots are in use."""

    k_LBGSK: jax.Array
    v_LBGSK: jax.Array
    segments_BS: jax.Array  # 1 for a token, 0 for padding or a free slot
    filled: jax.Array  # int32 scalar


def attention(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: MaskSpec,
    *,
    impl: str = "xla",
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), o_BHTK in the type of `q_BHTK`.

    H query heads share G key-value heads, in order (H a multiple of G). `drop` acts on the attention weights.
    """
    return IMPLEMENTATIONS[impl](q_BHTK, k_BGSK, v_BGSK, mask, drop or (lambda weights: weights))


def reference_attention(q_BHTK, k_BGSK, v_BGSK, mask: MaskSpec, drop) -> jax.Array:
    """The definition, all in f32 with every key repeated for its queries. Other paths are tested against it."""
    repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    q, k, v = (x.astype(jnp.float32) for x in (q_BHTK, k_BGSK, v_BGSK))
    k_BHSK, v_BHSK = jnp.repeat(k, repeats, axis=1), jnp.repeat(v, repeats, axis=1)
    precise = jax.lax.Precision.HIGHEST
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q, k_BHSK, precision=precise) / jnp.sqrt(float(q.shape[-1]))
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores_BHTS = jnp.where(allowed, scores_BHTS, MASKED)
    weights_BHTS = drop(jax.nn.softmax(scores_BHTS, axis=-1))
    return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK, precision=precise).astype(q_BHTK.dtype)


def xla_attention(q_BHTK, k_BGSK, v_BGSK, mask: MaskSpec, drop) -> jax.Array:
    """Batched products in the type of the inputs, softmax in f32. Heads before length: twice as fast on CPU.

    Long causal rows are done in `CHUNKS` parts, which leaves out 3/8 of the scores: those that no query may see.
    """
    T = q_BHTK.shape[2]
    if not mask.causal or mask.query_offset is not None or T < 64 * CHUNKS or T % CHUNKS:
        return _attend(q_BHTK, k_BGSK, v_BGSK, mask, drop)
    parts = []
    for start in range(0, T, T // CHUNKS):
        end = start + T // CHUNKS
        k_part, v_part = k_BGSK[:, :, :end], v_BGSK[:, :, :end]
        parts.append(_attend(q_BHTK[:, :, start:end], k_part, v_part, mask.part(start, end), drop))
    return jnp.concatenate(parts, axis=2)


def _attend(q_BHTK, k_BGSK, v_BGSK, mask: MaskSpec, drop) -> jax.Array:
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    q_BGRTK = (q_BHTK * K**-0.5).reshape(B, G, H // G, T, K)
    scores = jnp.einsum("BGRTK,BGSK->BGRTS", q_BGRTK, k_BGSK, preferred_element_type=jnp.float32)
    allowed = mask.allowed(T, S)
    if allowed is not None:
        scores = jnp.where(allowed[:, :, None], scores, MASKED)
    weights_BGRTS = drop(jax.nn.softmax(scores, axis=-1)).astype(v_BGSK.dtype)
    return jnp.einsum("BGRTS,BGSK->BGRTK", weights_BGRTS, v_BGSK).reshape(B, H, T, K)


IMPLEMENTATIONS = {"reference": reference_attention, "xla": xla_attention}


class Attention(nn.Module):
    """Multi-head self-attention with shared key-value heads (Ainslie et al. 2023): x_BTD, cache -> x_BTD, cache."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    initializer: Initializer
    residual_initializer: Initializer
    rotate: Rotate
    impl: str
    dropout: float
    rules: ShardingRules
    bias: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Cache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        q_BHTK = self.rotate(self._project("query", "heads", self.num_heads, x_BTD), context.positions_BT)
        k_BGTK = self.rotate(self._project("key", "kv_heads", self.num_kv_heads, x_BTD), context.positions_BT)
        v_BGTK = self._project("value", "kv_heads", self.num_kv_heads, x_BTD)
        if cache is None:
            k_BGSK, v_BGSK = k_BGTK, v_BGTK
        else:
            cache = _write(cache, layer, k_BGTK, v_BGTK)
            k_BGSK = jax.lax.dynamic_index_in_dim(cache.k_LBGSK, layer, keepdims=False)
            v_BGSK = jax.lax.dynamic_index_in_dim(cache.v_LBGSK, layer, keepdims=False)
        dropout = Dropout(self.dropout)
        o_BHTK = attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            context.mask,
            impl=self.impl,
            drop=lambda weights: dropout(weights, context.train),
        )
        shape, axes = (self.num_heads, self.head_dim, self.embed_dim), ("heads", "head_dim", "embed")
        bias_axes = ("norm",) if self.bias else None
        output = Linear(
            "BTHK,HKD->BTD",
            shape,
            axes,
            self.residual_initializer,
            bias_axes,
            self.param_dtype,
            name="output",
        )
        return output(o_BHTK.swapaxes(1, 2)), cache

    def _project(self, name: str, heads: str, count: int, x_BTD: jax.Array) -> jax.Array:
        shape, axes = (self.embed_dim, count, self.head_dim), ("embed", heads, "head_dim")
        bias_axes = (heads, "head_dim") if self.bias else None
        y_BTHK = Linear("BTD,DHK->BTHK", shape, axes, self.initializer, bias_axes, self.param_dtype, name=name)(x_BTD)
        return self.rules.constrain(y_BTHK.swapaxes(1, 2), "batch", heads, "length", "head_dim")


def _write(cache: Cache, layer: jax.Array | int, k_BGTK: jax.Array, v_BGTK: jax.Array) -> Cache:
    """Puts the new keys and values of one layer behind the filled slots."""
    start = (layer, 0, 0, cache.filled, 0)
    return cache.replace(
        k_LBGSK=jax.lax.dynamic_update_slice(cache.k_LBGSK, k_BGTK[None].astype(cache.k_LBGSK.dtype), start),
        v_LBGSK=jax.lax.dynamic_update_slice(cache.v_LBGSK, v_BGTK[None].astype(cache.v_LBGSK.dtype), start),
    )
