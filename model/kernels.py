"""Fused attention: cuDNN on NVIDIA GPUs, splash on TPUs; what each supports, and which one a run uses."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from model.config import ModelConfig
from model.mask import MaskSpec
from model.sharding import ShardingRules, shards

PLATFORMS = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}  # as JAX names the devices
BLOCKS = (512, 256, 128)  # block sizes of splash: the largest that divides the number of queries or keys is used
QUERIES = ("batch", "heads", "length", "head_dim")


class Cuts(NamedTuple):
    """The number of shards of the queries of a call along each logical axis."""

    batch: int = 1
    heads: int = 1
    length: int = 1
    head_dim: int = 1


class Need(NamedTuple):
    """What a call of attention requires of a kernel. Sizes that are not known yet are 0."""

    dtype: str
    head_dim: int
    queries: int
    keys: int
    causal: bool
    window: bool = False
    segments: bool = False
    prefix: bool = False
    in_order: bool = True
    bias: bool = False
    softcap: bool = False
    dropout: bool = False
    rows: int = 0
    heads: int = 0
    cuts: Cuts = Cuts()


def refusal(impl: str, need: Need) -> str:
    """What the kernel does not support of a call, in words; "" if it supports all of it."""
    both = {
        "a bias on the scores": need.bias,
        "dropout of attention weights": need.dropout,
        "a prefix that is seen from both sides": need.prefix,
        "queries that begin behind the first slot": not need.in_order,
        f"{need.rows} rows that {need.cuts.batch} devices share": need.rows % need.cuts.batch,
        f"{need.heads} heads that {need.cuts.heads} devices share": need.heads % need.cuts.heads,
        "a length that the mesh cuts (keys go round a ring)": need.cuts.length > 1,
        "a head size that the mesh cuts": need.cuts.head_dim > 1,
    }
    own = {
        "cudnn": {
            f"{need.dtype} (only bfloat16)": need.dtype != "bfloat16",
            # From Hopper on it would be up to 256.
            f"heads of size {need.head_dim} (multiples of 8 up to 128)": need.head_dim % 8 or need.head_dim > 128,
            "a softcap": need.softcap,
            "segments": need.segments,
            "a window to both sides": need.window and not need.causal,
        },
        "splash": {
            f"heads of size {need.head_dim} (multiples of 64)": need.head_dim % 64,
            f"{need.queries} queries and {need.keys} keys (multiples of {BLOCKS[-1]})": (
                need.queries % BLOCKS[-1] or need.keys % BLOCKS[-1]
            ),
        },
    }
    return ", ".join(what for what, asked in (both | own[impl]).items() if asked)


def choose_attention(
    config: ModelConfig,
    platform: str,
    rules: ShardingRules,
    mesh_shape: Mapping[str, int],
    *,
    length: int = 0,
    source_length: int = 0,
    segments: bool = False,
) -> tuple[str, str]:
    """The implementation of attention on a platform, and the reason: `model.attention_impl`, or the best one if that is
    'auto'. The number of rows does not matter: training refuses a batch that its devices cannot share.

    Args:
        platform: of the devices: "cpu", "gpu" or "tpu". length, source_length: of the rows; 0 = of any length.
        segments: whether rows have segments or padding.

    Raises:
        ValueError: a kernel that the config names and that these devices or this network cannot use.
    """
    named = config.attention_impl
    if named in ("xla", "reference"):
        return named, "as the config says"
    if not config.attends:
        return "xla", f"an architecture {config.architecture!r} has no attention"
    kernel = named if named != "auto" else next((k for k, on in PLATFORMS.items() if platform in on), "")
    if not kernel:
        return "xla", f"no kernel for {platform}"
    if platform not in PLATFORMS[kernel]:
        raise ValueError(
            f"model.attention_impl is {kernel!r}, for {' or '.join(PLATFORMS[kernel])}, and the devices are "
            f"{platform}: use auto"
        )
    cuts = _cuts(rules, mesh_shape)
    needs = _needs(config.resolved(), length, source_length, segments)
    lacking = [refusal(kernel, need._replace(cuts=cuts)) for need in needs]
    why = "; ".join(dict.fromkeys(filter(None, lacking)))
    if why and named == kernel:
        raise ValueError(f"model.attention_impl is {kernel!r}, which does not do {why}: use auto or xla")
    return ("xla", f"{kernel} does not do {why}") if why else (kernel, f"fused, for {platform}")


def _cuts(rules: ShardingRules, mesh_shape: Mapping[str, int]) -> Cuts:
    return Cuts(*(shards(getattr(rules, name), dict(mesh_shape)) for name in Cuts._fields))


def _needs(c: ModelConfig, length: int, source_length: int, segments: bool) -> list[Need]:
    def need(queries: int, keys: int, causal: bool, **what: Any) -> Need:
        softcap, dropout = c.attention_softcap > 0, c.dropout > 0
        return Need(
            c.compute_dtype,
            c.head_dim,
            queries,
            keys,
            causal,
            segments=segments,
            softcap=softcap,
            dropout=dropout,
            heads=c.num_heads,
            **what,
        )

    own = {"window": c.window > 0, "bias": c.positions in ("relative", "alibi")}
    if c.architecture != "encoder_decoder":
        return [need(length, length, c.architecture == "decoder", prefix=c.prefix_lm, **own)]
    return [
        need(length, length, True, **own),
        need(source_length, source_length, False, **own),
        need(length, source_length, False),
    ]


def able(
    impl: str, q_BHTK: jax.Array, k_BGSK: jax.Array, bias: Any, mask: MaskSpec, softcap: float, drop: Any, rules: Any
) -> bool:
    """Whether a kernel supports this call; a step of decoding, for example, is left to XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    # Axes that are manual here, such as the stages of a pipeline, have cut the arrays already.
    here = {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}
    need = Need(
        dtype=q_BHTK.dtype.name,
        head_dim=q_BHTK.shape[-1],
        queries=q_BHTK.shape[2],
        keys=k_BGSK.shape[2],
        causal=mask.causal,
        window=mask.window > 0,
        segments=mask.query_segments_BT is not None,
        prefix=mask.prefix_BS is not None,
        in_order=mask.in_order,
        bias=bias is not None,
        softcap=softcap > 0,
        dropout=drop is not None,
        rows=q_BHTK.shape[0],
        heads=q_BHTK.shape[1],
        cuts=_cuts(rules, here),
    )
    return not refusal(impl, need)


def cudnn(q_BHTK, k_BGSK, v_BGSK, mask: MaskSpec, scale: float, softcap: float, rules: ShardingRules) -> jax.Array:
    """Flash attention of cuDNN (Dao 2023), on the batch and the heads of each device: o_BHTK."""
    del softcap  # it has none
    # JAX partitions it over batch and heads if queries and keys are sharded alike.
    k_BGSK, v_BGSK = (rules.constrain(repeat_for_parts(x, rules), *QUERIES) for x in (k_BGSK, v_BGSK))
    o_BTHK = jax.nn.dot_product_attention(
        q_BHTK.swapaxes(1, 2),
        k_BGSK.swapaxes(1, 2),
        v_BGSK.swapaxes(1, 2),
        scale=scale,
        is_causal=mask.causal,
        local_window_size=(mask.window - 1, 0) if mask.window else None,
        implementation="cudnn",
    )
    return checkpoint_name(o_BTHK.swapaxes(1, 2), "attention")


def splash(
    q_BHTK,
    k_BGSK,
    v_BGSK,
    mask: MaskSpec,
    scale: float,
    softcap: float,
    rules: ShardingRules,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention (Pallas), on the batch and the heads of each device: o_BHTK. `interpret`: slowly, on a CPU."""
    # Imported here: Pallas takes a second, and most machines are no TPU.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    q_block, k_block = (next(block for block in BLOCKS if length % block == 0) for length in (T, S))
    blocks = kernel.BlockSizes(
        block_q=q_block, block_kv=k_block, block_kv_compute=k_block,
        block_q_dkv=q_block, block_kv_dkv=k_block, block_kv_dkv_compute=k_block,
        block_q_dq=q_block, block_kv_dq=k_block,
    )  # fmt: skip

    def local(q_BHTK, k_BGSK, v_BGSK, segments):
        attend = kernel.make_splash_mha(
            _splash_mask(mask, T, S, q_BHTK.shape[1]),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap or None,
            residual_checkpoint_name="attention",  # names the softmax statistics of the backward pass too
            interpret=interpret,
        )
        ids = None if segments is None else kernel.SegmentIds(*segments)
        return jax.vmap(attend)(q_BHTK * jnp.asarray(scale, q_BHTK.dtype), k_BGSK, v_BGSK, ids)

    segments = None
    if mask.query_segments_BT is not None and mask.key_segments_BS is not None:
        segments = (mask.query_segments_BT, mask.key_segments_BS)
    k_BGSK, v_BGSK = (repeat_for_parts(x, rules) for x in (k_BGSK, v_BGSK))
    mesh, cut, rows = jax.sharding.get_abstract_mesh(), rules.spec(*QUERIES), rules.spec("batch", "length")
    split = jax.shard_map(
        local,
        in_specs=(cut, cut, cut, None if segments is None else (rows, rows)),
        out_specs=cut,
        axis_names={axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto},
        check_vma=False,  # the kernel does not declare it
    )
    return cast(jax.Array, split(q_BHTK, k_BGSK, v_BGSK, segments))


def repeat_for_parts(x_BGSK: jax.Array, rules: ShardingRules) -> jax.Array:
    """Keys or values, repeated until they can be sharded like the queries, each on the device of its query heads."""
    parts = shards(rules.heads, dict(jax.sharding.get_abstract_mesh().shape))
    return jnp.repeat(x_BGSK, math.lcm(x_BGSK.shape[1], parts) // x_BGSK.shape[1], axis=1)


def _splash_mask(mask: MaskSpec, T: int, S: int, heads: int) -> Any:
    """The mask without segments, which the kernel compares itself."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if mask.window:
        one = masks.LocalMask((T, S), (mask.window - 1, 0 if mask.causal else mask.window - 1), 0)
    else:
        one = masks.CausalMask((T, S)) if mask.causal else masks.FullMask((T, S))
    return masks.MultiHeadMask([one] * heads)


KERNELS: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn, "splash": splash}
