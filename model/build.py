"""From a description to a network: every string of the config is resolved here, once."""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax

from model.attention import Attention
from model.config import ModelConfig
from model.layers import Embedding, LayerNorm, Linear, RMSNorm
from model.mlp import MLP, SwiGLU
from model.positions import LearnedPositions, NoPositions, no_rotation, rotary
from model.sharding import ShardingRules
from model.transformer import Block, Transformer

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def build(config: ModelConfig, rules: ShardingRules | None = None) -> Transformer:
    """The network that `config` describes, laid out by `rules`. Weights come from `model.parameters.init`.

    Weights start as in GPT-2: normal(0, init_std), and the two projections of a block that write to the residual
    stream smaller by sqrt(2 L) (Radford et al. 2019, section 2.3).
    """
    c, rules = config.resolved(), rules or ShardingRules()
    init = nn.initializers.normal(c.init_std)
    residual_init = nn.initializers.normal(c.init_std / (2 * c.num_layers) ** 0.5)
    norm = {
        "layer": functools.partial(LayerNorm, c.norm_epsilon, c.bias, c.param_dtype),
        "rms": functools.partial(RMSNorm, c.norm_epsilon, c.param_dtype),
    }[c.norm]
    mlp = functools.partial(
        {"gelu": MLP, "swiglu": SwiGLU}[c.mlp],
        c.embed_dim, c.mlp_dim, init, residual_init, rules, c.bias, c.param_dtype,
    )  # fmt: skip
    attention = functools.partial(
        Attention,
        embed_dim=c.embed_dim,
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        initializer=init,
        residual_initializer=residual_init,
        rotate=rotary(c.rope_theta) if c.positions == "rotary" else no_rotation,
        impl=c.attention_impl,
        dropout=c.dropout,
        rules=rules,
        bias=c.bias,
        param_dtype=c.param_dtype,
    )
    tables = {"initializer": init, "dtype": c.compute_dtype, "param_dtype": c.param_dtype}
    learned = functools.partial(LearnedPositions, c.max_length, c.embed_dim, **tables)
    output = functools.partial(
        Linear, "BTD,DV->BTV", (c.embed_dim, c.vocab_size), ("embed", "vocab"), init, None, c.param_dtype, "float32"
    )
    return Transformer(
        embedding=functools.partial(Embedding, c.vocab_size, c.embed_dim, **tables),
        positions={"learned": learned, "rotary": NoPositions, "none": NoPositions}[c.positions],
        layers=functools.partial(_stacked(c), norm=norm, attention=attention, mlp=mlp, dropout=c.dropout, rules=rules),
        norm=norm,
        output=None if c.tied_output else output,
        num_layers=c.num_layers,
        dropout=c.dropout,
        rules=rules,
    )


def _stacked(c: ModelConfig) -> Callable[..., nn.Module]:
    """`Block`, scanned over stacked weights with a leading `layers` axis, whatever the unrolling."""
    unroll = c.scan_unroll or c.num_layers
    block = Block
    if c.remat != "none":
        # Inside a real loop nothing can be merged across iterations, so the costly barrier against it is not needed.
        block = nn.remat(Block, prevent_cse=unroll > 1, policy=REMAT_POLICIES[c.remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (0, nn.broadcast)),
        length=c.num_layers,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
