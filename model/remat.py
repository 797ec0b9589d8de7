"""Rematerialisation: which named activations are kept for the backward pass, chosen by name or by a memory budget."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import cast

import jax

from model.config import REMAT_NAMES, ModelConfig
from model.moe import hidden_rows
from model.pipeline import kept_rows
from model.sharding import ShardingRules, shards

HOST = "pinned_host"  # host memory that devices can read


@dataclasses.dataclass(frozen=True)
class Saving:
    """A named activation: over all layers, the bytes that keeping it costs a device and the FLOPs that it saves."""

    name: str
    bytes: int
    flops: float


def policy(config: ModelConfig) -> Callable[..., bool]:
    """What `jax.checkpoint` keeps under `model.remat` and `model.remat_offload`.

    Raises:
        ValueError: a budget that was not turned into names by `within_budget`.
    """
    if config.remat == "budget":
        raise ValueError("model.remat is 'budget': only a training run knows its batch and devices, name activations")
    if config.remat == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    kept, moved = ([] if names in ("full", "") else names.split(",") for names in (config.remat, config.remat_offload))
    policies = jax.checkpoint_policies
    if not moved:
        return policies.save_only_these_names(*kept)
    offload = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept,
        names_which_can_be_offloaded=moved,
        offload_src="device",
        offload_dst=HOST,
    )
    return cast(Callable[..., bool], offload)  # it returns where to keep an activation, not only whether


def within_budget(
    config: ModelConfig,
    rules: ShardingRules,
    mesh_shape: Mapping[str, int],
    *,
    rows: int,
    length: int,
    source_length: int = 0,
) -> ModelConfig:
    """The config with `remat` 'budget' replaced by names of activations that fit `remat_bytes`; others as they are.

    Greedy: activations that save the most FLOPs a byte first.

    Args:
        rows: of one microbatch, over all devices.

    Raises:
        ValueError: a budget below what even full recomputation keeps, the inputs of the blocks; or rows that the
            stages of a pipeline cannot share.
    """
    if config.remat != "budget":
        return config
    needed, savings = priced(config, rules, mesh_shape, rows=rows, length=length, source_length=source_length)
    if needed > config.remat_bytes:
        raise ValueError(
            f"model.remat_bytes is {config.remat_bytes:,.0f}: the inputs of the blocks alone take {needed:,} bytes on "
            "a device. Raise it to that at least, or use more train.microbatches or devices"
        )
    left, names = config.remat_bytes - needed, []
    for saving in sorted(savings, key=lambda saving: -saving.flops / saving.bytes):
        if saving.flops and saving.bytes <= left:
            left -= saving.bytes
            names.append(saving.name)
    return dataclasses.replace(config, remat=",".join(names) or "full", remat_bytes=0.0)


def priced(
    config: ModelConfig,
    rules: ShardingRules,
    mesh_shape: Mapping[str, int],
    *,
    rows: int,
    length: int,
    source_length: int = 0,
) -> tuple[int, list[Saving]]:
    """Bytes that the inputs of all blocks take on a device, and what each of `REMAT_NAMES` costs and saves there.

    Counts matrix products only, attention over all positions; repeated communication is not counted.

    Args:
        rows: of one microbatch, over all devices.

    Raises:
        ValueError: rows that the stages of a pipeline cannot share.
    """
    rows = kept_rows(rows, dict(mesh_shape), rules, config.pipeline_microbatches)
    c, shape = config.resolved(), dict(mesh_shape)
    size = 2 if c.compute_dtype == "bfloat16" else 4
    batch, heads, kv_heads = (shards(axis, shape) for axis in (rules.batch, rules.heads, rules.kv_heads))
    tokens_by = batch * shards(rules.length, shape)
    inputs, found = 0, {name: [0, 0.0] for name in REMAT_NAMES}

    def add(name: str, elements: int, parts: int, products: float) -> None:
        found[name][0] += elements * size // parts
        found[name][1] += 2.0 * elements * products / parts

    def add_attention(layers: int, queries: int, keys: int) -> None:
        q, k = (layers * rows * n * c.head_dim for n in (queries * c.num_heads, keys * c.num_kv_heads))
        add("query", q, tokens_by * heads, c.embed_dim)
        add("key", k, tokens_by * kv_heads, c.embed_dim)
        add("value", k, tokens_by * kv_heads, c.embed_dim)
        # cuDNN's backward pass also needs statistics that cannot be named, so attention is computed again anyway.
        add("attention", q, tokens_by * heads, 0 if c.attention_impl == "cudnn" else keys)
        # Each device sums over its own heads.
        width = layers * rows * queries * c.embed_dim
        parts = tokens_by * shards(rules.residual, shape)
        add("attention_output", width, parts, c.num_heads * c.head_dim // heads)

    def add_blocks(layers: int, tokens: int) -> int:
        add_attention(layers, tokens, tokens)
        width, cut = layers * c.mlp_dim * (2 if c.gated else 1), shards(rules.mlp, shape)
        if c.experts:
            room, multiplied = hidden_rows(c, rules, shape, rows, tokens)
            add("mlp_hidden", room * width, cut, c.embed_dim * multiplied / room)
        else:
            add("mlp_hidden", rows * tokens * width, tokens_by * cut, c.embed_dim)
        return layers * rows * tokens * c.embed_dim * size // (tokens_by * shards(rules.residual, shape))

    inputs = add_blocks(c.num_layers, length)
    if c.architecture == "encoder_decoder":
        inputs += add_blocks(c.num_encoder_layers, source_length)
        add_attention(c.num_layers, length, source_length)
    return inputs, [Saving(name, size, flops) for name, (size, flops) in found.items()]
