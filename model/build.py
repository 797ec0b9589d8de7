"""From a description to a network: every string of the config is resolved here, once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn

from model import positions, remat
from model.attention import Attention, CrossAttention, Heads, attention
from model.config import RECURRENT, ModelConfig
from model.heads import LanguageModelHead, MaskedLanguageModelHead, NoHead, PoolerHead, TokenHead, dense
from model.layers import Embedding, Initializer, LayerNorm, Linear, RMSNorm, TokenTypes
from model.mlp import MLP, gelu_exact, gelu_tanh
from model.moe import MoE
from model.ngram import NGram
from model.pipeline import run_layers
from model.rnn import CELLS, Recurrent
from model.sharding import ShardingRules
from model.transformer import Block, EncoderDecoder, Factory, Loop, Stack, Transformer, post_norm, pre_norm

ACTIVATIONS = {
    "gelu": gelu_tanh,
    "gelu_exact": gelu_exact,
    "relu": nn.relu,
    "silu": nn.silu,
    "swiglu": nn.silu,
    "geglu": gelu_tanh,
    "geglu_exact": gelu_exact,
    "reglu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class Initializers:
    """How each kind of weight starts."""

    embedding: Initializer
    query: Initializer
    inner: Initializer  # keys, values, and the MLP's way up
    attention_output: Initializer
    mlp_down: Initializer
    output: Initializer


def build(config: ModelConfig, rules: ShardingRules | None = None, *, stacked: bool = True) -> nn.Module:
    """The network that `config` describes, laid out by `rules`. Weights come from `model.parameters.init`.

    Without `stacked`, a Transformer that takes its layers apart (`model.parameters.unstack`): for decoding on a CPU.
    """
    c, rules = config.resolved(), rules or ShardingRules()
    if c.architecture == "ngram":
        return NGram(c.ngram_order)
    init = _initializers(c)
    embedding = functools.partial(
        Embedding, c.vocab_size, c.embed_dim, c.scale_embeddings, rules, **_table(c, init.embedding)
    )
    head = _head(c, init, rules)
    if c.architecture in RECURRENT:
        norm = None if c.norm == "none" else _norm(c)
        cell = CELLS[c.architecture]
        return Recurrent(embedding, cell, norm, head, c.num_layers, c.embed_dim, c.dropout, rules, c.param_dtype)
    if c.architecture == "encoder_decoder":
        encoder = _stack(c, init, rules, "encoder", c.num_encoder_layers, cross=False, stacked=stacked)
        decoder = _stack(c, init, rules, "decoder", c.num_layers, cross=True, stacked=stacked)
        return EncoderDecoder(embedding, encoder, decoder, head)
    stack = _stack(c, init, rules, c.architecture, c.num_layers, cross=False, stacked=stacked)
    return Transformer(embedding, stack, head)


def _initializers(c: ModelConfig) -> Initializers:
    """GPT-2: normal(0, init_std), and what writes to a pre-norm residual stream smaller by sqrt(2 L) (Radford et al.
    2019, section 2.3). T5: by fan-in, queries also by head size, since their products are not scaled. From a base
    width on, hidden weights go by fan-in: their variance falls with the width (Yang et al. 2022, table 8).
    """
    normal = nn.initializers.normal
    if c.init_scheme == "gpt2":
        outer, hidden = normal(c.init_std), c.init_std * c.width_ratio**0.5
        std, small = normal(hidden), normal(hidden / (2 * c.num_layers) ** 0.5)
        residual = small if c.norm_placement == "pre" else std
        return Initializers(outer, std, std, residual, residual, outer)
    D, K = c.embed_dim, c.head_dim
    query = normal((D * K) ** -0.5 if c.attention_scale else D**-0.5)
    attention_output, mlp_down = normal((c.num_heads * K) ** -0.5), normal(c.mlp_dim**-0.5)
    return Initializers(normal(1.0), query, normal(D**-0.5), attention_output, mlp_down, normal(D**-0.5))


def _stack(
    c: ModelConfig, init: Initializers, rules: ShardingRules, name: str, layers: int, *, cross: bool, stacked: bool
) -> Factory:
    norm = _norm(c)
    heads = Heads(
        embed_dim=c.embed_dim,
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        query_initializer=init.query,
        initializer=init.inner,
        output_initializer=init.attention_output,
        norm=functools.partial(RMSNorm, c.norm_epsilon, c.param_dtype) if c.qk_norm else None,
        rules=rules,
        qkv_bias=c.bias in ("qkv", "attention", "all"),
        output_bias=c.bias in ("attention", "all"),
        param_dtype=c.param_dtype,
    )
    scale = c.attention_scale or c.head_dim**-0.5 * ((c.base_head_dim or c.head_dim) / c.head_dim) ** 0.5
    attend = functools.partial(attention, scale=scale, softcap=c.attention_softcap, impl=c.attention_impl, rules=rules)
    mlp = functools.partial(
        MoE if c.experts else MLP,
        c.embed_dim, c.mlp_dim, ACTIVATIONS[c.mlp], c.gated, init.inner, init.mlp_down, rules,
        c.bias in ("mlp", "all"), c.param_dtype,
    )  # fmt: skip
    if c.experts:
        names = ("experts", "experts_per_token", "capacity_factor", "load_balance_loss", "router_z_loss")
        mlp = functools.partial(mlp, **{name: getattr(c, name) for name in names})
    block = functools.partial(
        _stacked(c, layers) if stacked else Block,
        norm=norm,
        attention=functools.partial(Attention, heads, _rotation(c), attend, c.dropout),
        cross_attention=functools.partial(CrossAttention, heads, attend, c.dropout) if cross else None,
        mlp=mlp,
        residual={"pre": pre_norm, "post": post_norm}[c.norm_placement],
        dropout=c.dropout,
        rules=rules,
    )
    added = {
        "learned": functools.partial(
            positions.LearnedPositions,
            c.max_length,
            c.embed_dim,
            rules,
            offset=c.position_offset,
            **_table(c, init.embedding),
        ),
        "sinusoidal": functools.partial(positions.SinusoidalPositions, c.embed_dim),
    }
    relative = functools.partial(
        positions.RelativePositions, c.relative_buckets, c.relative_max_distance, c.num_heads, name == "encoder",
        init.output, c.param_dtype,
    )  # fmt: skip
    biases = {"relative": relative, "alibi": functools.partial(positions.ALiBi, c.num_heads)}
    types = functools.partial(TokenTypes, c.token_types, c.embed_dim, **_table(c, init.embedding))
    return functools.partial(
        Stack,
        positions=added.get(c.positions, positions.NoPositions),
        token_types=types if c.token_types else None,
        embedding_norm=norm if c.embedding_norm else None,
        bias=biases.get(c.positions),
        layers=block if stacked else functools.partial(Loop, block, layers),
        run=functools.partial(run_layers, rules=rules, microbatches=c.pipeline_microbatches)
        if stacked
        else lambda loop, *inputs: loop(*inputs),
        norm=norm if c.norm_placement == "pre" else None,
        causal=name == "decoder",
        window=c.window,
        num_layers=layers,
        dropout=c.dropout,
        rules=rules,
        name=name,
    )


def _head(c: ModelConfig, init: Initializers, rules: ShardingRules) -> Factory:
    D, V = c.embed_dim, c.vocab_size
    if c.head == "lm":
        axes = ("embed", "vocab")
        own = functools.partial(Linear, "BTD,DV->BTV", (D, V), axes, init.output, None, c.param_dtype, "float32")
        scale = D**-0.5 if c.scale_output else c.width_ratio
        return functools.partial(LanguageModelHead, None if c.tied_output else own, scale, c.logits_softcap, rules)
    square = dense("BTD,DE->BTE", (D, D), init.inner, c.param_dtype)
    if c.head in ("masked_lm", "pretraining"):
        pair = dense("BD,DE->BE", (D, 2), init.inner, c.param_dtype) if c.head == "pretraining" else None
        activation = ACTIVATIONS[c.mlp]
        return functools.partial(
            MaskedLanguageModelHead, square, _norm(c), activation, pair, c.vocab_size, rules, c.param_dtype
        )
    if c.head in ("classification", "pooler"):
        labels = dense("BD,DE->BE", (D, c.num_labels), init.inner, c.param_dtype) if c.num_labels else None
        return functools.partial(PoolerHead, square, labels, c.dropout)
    if c.head in ("token_classification", "span"):
        labels = dense("BTD,DE->BTE", (D, c.num_labels or 2), init.inner, c.param_dtype)
        return functools.partial(TokenHead, labels, c.dropout)
    return NoHead


def _norm(c: ModelConfig) -> Callable[..., nn.Module]:
    if c.norm == "rms":
        return functools.partial(RMSNorm, c.norm_epsilon, c.param_dtype)
    return functools.partial(LayerNorm, c.norm_epsilon, c.bias == "all", c.param_dtype)


def _table(c: ModelConfig, initializer: Initializer) -> dict[str, Any]:
    return {"initializer": initializer, "dtype": c.compute_dtype, "param_dtype": c.param_dtype}


def _rotation(c: ModelConfig) -> positions.Rotate:
    if c.positions != "rotary":
        return positions.no_rotation
    rescale = {
        "none": positions.interpolated(1.0),
        "linear": positions.interpolated(c.rope_factor),
        "llama3": positions.llama3_scaled(c.rope_factor, c.rope_low_factor, c.rope_high_factor, c.rope_original_length),
    }[c.rope_scaling]
    return positions.rotary(c.rope_theta, rescale)


def _stacked(c: ModelConfig, layers: int) -> Callable[..., nn.Module]:
    """`Block`, scanned over stacked weights with a leading `layers` axis, whatever the unrolling."""
    unroll = min(c.scan_unroll, layers) or layers
    block = Block
    if c.remat != "none":
        # Inside a real loop nothing can be merged across iterations, so the costly barrier against it is not needed.
        block = nn.remat(Block, prevent_cse=unroll > 1, policy=remat.policy(c))
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (0, nn.broadcast)),
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
