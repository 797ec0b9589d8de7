"""Attention: one entry, a mask that is described rather than built, and the modules that call it."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from model import kernels, ring
from model.cache import Cache
from model.layers import Initializer, Linear, WeightDropout, capped, side_by_side
from model.mask import MASKED, MaskSpec, final_scores
from model.positions import Rotate, ScoreBias
from model.sharding import ShardingRules

CHUNKS = 4  # causal attention computes queries in so many parts, each with only the keys up to its end


class Context(struct.PyTreeNode):
    """What all layers get in addition to their input."""

    positions_BT: jax.Array
    mask: MaskSpec
    bias: jax.Array | ScoreBias | None = None  # added to the scores of self-attention; see `attention`
    source_BSD: jax.Array | None = None  # what cross-attention looks at; None: keys and values are in the cache
    source_mask: MaskSpec | None = None
    train: bool = struct.field(pytree_node=False, default=False)


def attention(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    bias: jax.Array | ScoreBias | None,
    mask: MaskSpec,
    *,
    scale: float,
    softcap: float = 0.0,
    impl: str = "xla",
    drop: WeightDropout | None = None,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), o_BHTK in the type of `q_BHTK`.

    H query heads share G key-value heads, in order (H a multiple of G). Scores are `scale * q·k`, then capped to
    `c * tanh(scores / c)` with a `softcap` c, then `bias` is added: an array (1, H, T, S) or a `ScoreBias`. `drop` acts
    on the attention weights. If `rules` shard the length, ring attention (`model.ring`) is used, whatever `impl`; not
    with a bias that is an array. What a kernel does not support, such as a step of decoding, is left to XLA.
    """
    B, _, T, _ = q_BHTK.shape
    if rules is not None and not isinstance(bias, jax.Array) and ring.cuts(rules, B, T, k_BGSK.shape[2]):
        o_BHTK = ring.ring_attention(q_BHTK, k_BGSK, v_BGSK, bias, mask, scale, softcap, drop, rules)
        return checkpoint_name(o_BHTK, "attention")
    kernel = kernels.KERNELS.get(impl)
    if kernel and rules is not None and kernels.able(impl, q_BHTK, k_BGSK, bias, mask, softcap, drop, rules):
        return kernel(q_BHTK, k_BGSK, v_BGSK, mask, scale, softcap, rules)
    if isinstance(bias, ScoreBias):
        bias = bias(mask.query_slots(T), mask.key_slots(k_BGSK.shape[2]))
    attend = IMPLEMENTATIONS["xla" if kernel or impl == "auto" else impl]
    o_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, bias, mask, scale, softcap, drop)
    return checkpoint_name(o_BHTK, "attention")


def reference_attention(q_BHTK, k_BGSK, v_BGSK, bias_1HTS, mask: MaskSpec, scale, softcap, drop) -> jax.Array:
    """The definition, all in f32 with every key repeated for its queries. Other paths are tested against it."""
    repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    q, k, v = (x.astype(jnp.float32) for x in (q_BHTK, k_BGSK, v_BGSK))
    k_BHSK, v_BHSK = jnp.repeat(k, repeats, axis=1), jnp.repeat(v, repeats, axis=1)
    precise = jax.lax.Precision.HIGHEST
    scores_BHTS = capped(jnp.einsum("BHTK,BHSK->BHTS", q, k_BHSK, precision=precise) * scale, softcap)
    if bias_1HTS is not None:
        scores_BHTS += bias_1HTS
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores_BHTS = jnp.where(allowed, scores_BHTS, MASKED)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
    weights_BHTS = drop(weights_BHTS) if drop else weights_BHTS
    return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK, precision=precise).astype(q_BHTK.dtype)


def xla_attention(q_BHTK, k_BGSK, v_BGSK, bias_1HTS, mask: MaskSpec, scale, softcap, drop) -> jax.Array:
    """Batched products in the type of the inputs, softmax in f32. Heads before length: twice as fast on CPU.

    Long causal rows are computed in `CHUNKS` parts, which skips 3/8 of the scores, all of them masked.
    """
    T = q_BHTK.shape[2]
    whole = not mask.causal or not mask.in_order or mask.prefix_BS is not None
    if whole or T < 64 * CHUNKS or T % CHUNKS:
        return _attend(q_BHTK, k_BGSK, v_BGSK, bias_1HTS, mask, scale, softcap, drop)
    parts = []
    for start in range(0, T, T // CHUNKS):
        end = start + T // CHUNKS
        k_part, v_part = k_BGSK[:, :, :end], v_BGSK[:, :, :end]
        bias = None if bias_1HTS is None else bias_1HTS[:, :, start:end, :end]
        part, own = mask.part(start, end), drop and drop.block(start)  # independent dropout for each part
        parts.append(_attend(q_BHTK[:, :, start:end], k_part, v_part, bias, part, scale, softcap, own))
    return jnp.concatenate(parts, axis=2)


def _attend(q_BHTK, k_BGSK, v_BGSK, bias_1HTS, mask: MaskSpec, scale, softcap, drop) -> jax.Array:
    B, H, T, K = q_BHTK.shape
    G = k_BGSK.shape[1]
    q_BGRTK = (q_BHTK * scale).reshape(B, G, H // G, T, K)
    products_BGRTS = jnp.einsum("BGRTK,BGSK->BGRTS", q_BGRTK, k_BGSK, preferred_element_type=jnp.float32)
    weights_BGRTS = jax.nn.softmax(final_scores(products_BGRTS, softcap, bias_1HTS, mask), axis=-1)
    weights_BGRTS = drop(weights_BGRTS) if drop else weights_BGRTS
    return jnp.einsum("BGRTS,BGSK->BGRTK", weights_BGRTS.astype(v_BGSK.dtype), v_BGSK).reshape(B, H, T, K)


IMPLEMENTATIONS = {"reference": reference_attention, "xla": xla_attention}


@dataclasses.dataclass(frozen=True)
class Heads:
    """The linear maps between the residual stream and the heads of one attention. Used inside a module's call."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_initializer: Initializer
    initializer: Initializer
    output_initializer: Initializer
    norm: Callable[..., nn.Module] | None  # of each query and key
    rules: ShardingRules
    qkv_bias: bool
    output_bias: bool
    param_dtype: str = "float32"

    def query(self, x_BTD: jax.Array) -> jax.Array:
        """q_BHTK."""
        return self._query(self._linear("query")(x_BTD))

    def keys_values(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k_BGSK and v_BGSK."""
        k_BSGK, v_BSGK = side_by_side([self._linear("key"), self._linear("value")], x_BSD)
        return self._key(k_BSGK), self._split("kv_heads", v_BSGK)

    def query_keys_values(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q_BHTK, k_BGTK and v_BGTK of the same input."""
        linears = [self._linear(name) for name in ("query", "key", "value")]
        q_BTHK, k_BTGK, v_BTGK = side_by_side(linears, x_BTD)
        return self._query(q_BTHK), self._key(k_BTGK), self._split("kv_heads", v_BTGK)

    def output(self, o_BHTK: jax.Array) -> jax.Array:
        """x_BTD."""
        shape, axes = (self.num_heads, self.head_dim, self.embed_dim), ("heads", "head_dim", "embed")
        bias_axes = ("norm",) if self.output_bias else None
        initializer = self.output_initializer
        linear = Linear("BTHK,HKD->BTD", shape, axes, initializer, bias_axes, self.param_dtype, name="output")
        # Said here for the gradient: the compiler would cut it along the length, and all of attention's with it.
        o_BTHK = self.rules.constrain(o_BHTK.swapaxes(1, 2), "batch", "length", "heads", "head_dim")
        return checkpoint_name(linear(o_BTHK), "attention_output")

    def _linear(self, name: str) -> Linear:
        query = name == "query"
        heads, count = ("heads", self.num_heads) if query else ("kv_heads", self.num_kv_heads)
        shape, axes = (self.embed_dim, count, self.head_dim), ("embed", heads, "head_dim")
        bias_axes = (heads, "head_dim") if self.qkv_bias else None
        initializer = self.query_initializer if query else self.initializer
        return Linear("BTD,DHK->BTHK", shape, axes, initializer, bias_axes, self.param_dtype, name=name)

    def _query(self, q_BTHK: jax.Array) -> jax.Array:
        return self._normed("query_norm", self._split("heads", q_BTHK))

    def _key(self, k_BSGK: jax.Array) -> jax.Array:
        return self._normed("key_norm", self._split("kv_heads", k_BSGK))

    def _split(self, heads: str, y_BTHK: jax.Array) -> jax.Array:
        return self.rules.constrain(y_BTHK.swapaxes(1, 2), "batch", heads, "length", "head_dim")

    def _normed(self, name: str, x_BHTK: jax.Array) -> jax.Array:
        return x_BHTK if self.norm is None else self.norm(name=name)(x_BHTK)


class Attention(nn.Module):
    """Multi-head self-attention with shared key-value heads (Ainslie et al. 2023): x_BTD, cache -> x_BTD, cache."""

    heads: Heads
    rotate: Rotate
    attend: Callable[..., jax.Array]  # `attention`, with its scale, softcap and impl
    dropout: float

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Cache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        q_BHTK, k_BGSK, v_BGSK = self.heads.query_keys_values(x_BTD)
        q_BHTK = checkpoint_name(self.rotate(q_BHTK, context.positions_BT), "query")
        k_BGSK = checkpoint_name(self.rotate(k_BGSK, context.positions_BT), "key")
        v_BGSK = checkpoint_name(v_BGSK, "value")
        if cache is not None:
            cache = cache.write(layer, k_BGSK, v_BGSK)
            k_BGSK, v_BGSK = cache.read(layer)
        drop = _drop(self, self.dropout, context.train)
        o_BHTK = self.attend(q_BHTK, k_BGSK, v_BGSK, context.bias, context.mask, drop=drop)
        return self.heads.output(o_BHTK), cache


class CrossAttention(nn.Module):
    """Attention of a decoder to the output of its encoder (Vaswani et al. 2017, section 3.2.3)."""

    heads: Heads
    attend: Callable[..., jax.Array]
    dropout: float

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Cache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        q_BHTK = checkpoint_name(self.heads.query(x_BTD), "query")
        if context.source_BSD is not None:
            k_BGSK, v_BGSK = self.heads.keys_values(context.source_BSD)
            k_BGSK, v_BGSK = checkpoint_name(k_BGSK, "key"), checkpoint_name(v_BGSK, "value")
            cache = cache if cache is None else cache.write_source(layer, k_BGSK, v_BGSK)
        else:
            assert cache is not None, "EncoderDecoder asks for a source or a cache"
            k_BGSK, v_BGSK = cache.read_source(layer)
        drop, mask = _drop(self, self.dropout, context.train), context.source_mask or MaskSpec(causal=False)
        o_BHTK = self.attend(q_BHTK, k_BGSK, v_BGSK, None, mask, drop=drop)
        return self.heads.output(o_BHTK), cache


def _drop(module: nn.Module, rate: float, train: bool) -> WeightDropout | None:
    return WeightDropout(module.make_rng("dropout"), rate) if train and rate else None
