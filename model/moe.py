"""A sparse MLP: a router sends each token to a few of many experts (Shazeer et al. 2017; GShard, Lepikhin et al. 2020).

With a capacity, an expert takes at most that many tokens of a row, which keeps the work even and the shapes fixed. A
token whose expert is full is dropped: only the residual connection carries it on (Fedus et al. 2022, section 2.2).
Without a capacity no token is dropped (Gale et al. 2022). Capacity limits training only. Evaluation and generation drop
nothing, so the output of a token depends neither on the rest of the batch nor on how it is split into calls.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model.attention import Context
from model.config import ModelConfig
from model.layers import Initializer, Linear, small_lookup
from model.mlp import Activation, hidden
from model.parameters import declare
from model.routing import Routing, choose_experts, report
from model.sharding import ShardingRules, mesh_axes, shards
from model.slots import grouped_matmul, move, place

LARGEST_BLOCK = 512  # without a capacity: most rows of one matrix product
Kernels = dict[str, tuple[jax.Array, jax.Array | None]]  # of each linear map, for all experts


class ExpertLinear(nn.Module):
    """The weights of a linear map of each expert: kernel (E, in, out) and bias (E, out) or None."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    initializer: Initializer
    bias_axes: tuple[str, str] | None
    param_dtype: str

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
        kernel_EDF = self.param("kernel", declare(self.initializer, *self.axes), self.shape, self.param_dtype)
        if self.bias_axes is None:
            return kernel_EDF.astype(dtype), None
        zeros = declare(nn.initializers.zeros_init(), *self.bias_axes)
        bias_EF = self.param("bias", zeros, (self.shape[0], self.shape[2]), self.param_dtype)
        return kernel_EDF.astype(dtype), bias_EF.astype(dtype)


class MoE(nn.Module):
    """`sum_k weight_k MLP_k(x)` over the k chosen experts of each token: x_BTD -> x_BTD, and its `Routing`.

    The router works in f32 whatever the type of x is (Switch, section 2.4). Padding uses no capacity.
    """

    embed_dim: int
    mlp_dim: int
    activation: Activation
    gated: bool
    initializer: Initializer
    down_initializer: Initializer
    rules: ShardingRules
    bias: bool
    param_dtype: str
    experts: int
    experts_per_token: int
    capacity_factor: float  # 0: none is dropped
    load_balance_loss: float
    router_z_loss: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Routing | None]:
        kernels = {name: self._linear(name, x_BTD.dtype) for name in (("gate", "up") if self.gated else ("up",))}
        down_EFD, bias_ED = self._linear("down", x_BTD.dtype)
        kernels["down"] = down_EFD, None
        shape, axes = (self.embed_dim, self.experts), ("embed", "gates")
        router = Linear("BTD,DE->BTE", shape, axes, self.initializer, None, self.param_dtype, name="router")
        with jax.named_scope("router"), jax.default_matmul_precision("highest"):
            logits_BTE = self.rules.constrain(router(x_BTD.astype(jnp.float32)), "batch", "length", "gates")
            choices = choose_experts(logits_BTE, self.experts_per_token)
        if self.is_initializing():  # its batch of one token cannot be sharded
            return x_BTD, None
        B, T, _ = x_BTD.shape
        segments_BT = context.mask.query_segments_BT
        valid_BT = jnp.ones((B, T), bool) if segments_BT is None else segments_BT != 0
        owner_BTK = jnp.where(valid_BT[:, :, None], choices.experts_BTK, self.experts)
        if context.train and self.capacity_factor:
            capacity = _capacity(self.capacity_factor, self.experts_per_token, T, self.experts)
            slots_T = context.mask.query_slots(T)
            y_BTKD, kept_BTK = limited(self._network, kernels, x_BTD, owner_BTK, slots_T, capacity, self.rules)
            weights_BTK = choices.weights_BTK * kept_BTK
            y_BTD = jnp.einsum("BTKD,BTK->BTD", y_BTKD, weights_BTK.astype(x_BTD.dtype))
            dropped_B = jnp.sum(valid_BT[:, :, None] & ~kept_BTK, axis=(1, 2)).astype(jnp.float32)
        else:
            weights_BTK = choices.weights_BTK * valid_BT[:, :, None]
            y_BTD = dropless(self._network, kernels, x_BTD, owner_BTK, weights_BTK.astype(x_BTD.dtype), self.rules)
            dropped_B = jnp.zeros(B)
        if bias_ED is not None:  # added once, here: products with the kernel may be partial sums over devices
            one_hot_BTKE = jax.nn.one_hot(choices.experts_BTK, self.experts, dtype=jnp.float32)
            weights_BTE = jnp.einsum("BTKE,BTK->BTE", one_hot_BTKE, weights_BTK)
            y_BTD += weights_BTE.astype(x_BTD.dtype) @ bias_ED
        return y_BTD, report(
            logits_BTE,
            choices.experts_BTK,
            valid_BT,
            dropped_B,
            load_balance_loss=self.load_balance_loss,
            router_z_loss=self.router_z_loss,
        )

    def _linear(self, name: str, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
        E, D, F = self.experts, self.embed_dim, self.mlp_dim
        shape, axes, bias, initializer = (E, D, F), ("experts", "embed", "mlp"), "mlp", self.initializer
        if name == "down":
            shape, axes, bias, initializer = (E, F, D), ("experts", "mlp", "embed"), "norm", self.down_initializer
        bias_axes = ("experts", bias) if self.bias else None
        return ExpertLinear(shape, axes, initializer, bias_axes, self.param_dtype, name=name)(dtype)

    def _network(self, multiply: "Multiply", kernels: Kernels, x: jax.Array) -> jax.Array:
        """The MLP of each expert on the rows that `multiply` pairs with it, without the last bias."""

        def wide(name: str) -> jax.Array:
            return checkpoint_name(multiply(x, *kernels[name]), "mlp_hidden")

        return multiply(hidden(self.activation, self.gated, wide), *kernels["down"])


Multiply = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
Network = Callable[[Multiply, Kernels, jax.Array], jax.Array]


def limited(
    network: Network,
    kernels: Kernels,
    x_BTD: jax.Array,
    owner_BTK: jax.Array,
    slots_T: jax.Array,
    capacity: int,
    rules: ShardingRules,
) -> tuple[jax.Array, jax.Array]:
    """Each expert takes the first `capacity` choices of a row: y_BTKD, and which choices were taken, kept_BTK.

    Earlier tokens of the row come first (`slots_T` gives their places), so a decoder's token does not depend on later
    ones; GShard takes the first choices of all tokens, then the second. For the products the rows are sharded by
    `experts`, which is an all-to-all if experts lie on mesh axes of the batch.
    """
    B, T, D = x_BTD.shape
    K, E = owner_BTK.shape[2], len(kernels["up"][0])
    owner_BN = owner_BTK.reshape(B, T * K)
    counts_BE = jnp.sum(owner_BN[:, :, None] == jnp.arange(E), axis=1)
    parts = shards(rules.length, dict(jax.sharding.get_abstract_mesh().shape))
    C = _slots(capacity, parts)
    first_E, room_E, owner_S = jnp.arange(E) * C, jnp.full(E, capacity), jnp.repeat(jnp.arange(E), C)
    turn_N = (slots_T[:, None] * K + jnp.arange(K)).reshape(-1)
    in_axes = (0, None, 0, None, None, None)
    row_BS, slot_BN = jax.vmap(place, in_axes)(owner_BN, turn_N, counts_BE, first_E, room_E, owner_S)
    inside = dataclasses.replace(rules, batch=_outside(rules))
    with jax.named_scope("dispatch"):
        x_BSD = jax.vmap(move)(jnp.repeat(x_BTD, K, axis=1), row_BS, slot_BN)
        x_BECD = rules.constrain(x_BSD.reshape(B, E, C, D), "batch", None, "length", "residual")
        x_EBCD = inside.constrain(x_BECD.swapaxes(0, 1), "experts", "batch", "length", "residual")

    def multiply(x_EBCD: jax.Array, kernel_EDF: jax.Array, bias_EF: jax.Array | None) -> jax.Array:
        y_EBCF = jnp.einsum("EBCD,EDF->EBCF", x_EBCD, kernel_EDF)
        return y_EBCF if bias_EF is None else y_EBCF + bias_EF[:, None, None]

    y_EBCD = inside.constrain(network(multiply, kernels, x_EBCD), "experts", "batch", "length", "residual")
    with jax.named_scope("combine"):
        y_BECD = rules.constrain(y_EBCD.swapaxes(0, 1), "batch", None, "length", "residual")
        y_BND = jax.vmap(move)(y_BECD.reshape(B, E * C, D), slot_BN, row_BS)
        return y_BND.reshape(B, T, K, D), (slot_BN < E * C).reshape(B, T, K)


def dropless(
    network: Network,
    kernels: Kernels,
    x_BTD: jax.Array,
    owner_BTK: jax.Array,
    weights_BTK: jax.Array,
    rules: ShardingRules,
) -> jax.Array:
    """The weighted sum of all choices of each token, y_BTD.

    Each device sorts the choices of its own experts into blocks, one expert a block. If experts lie on mesh axes of the
    batch, it first gathers the tokens along these axes and scatters the sums back afterwards. Since all tokens may
    choose the experts of one device, fixed shapes need room for all of them in any case.
    """
    (B, T, _), E = x_BTD.shape, len(kernels["up"][0])
    mesh = jax.sharding.get_abstract_mesh()
    # Axes that are manual here, the stages of a pipeline, have cut the arrays already.
    mesh_shape = {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}
    shared = shared_axes(rules)
    summed = tuple(axis for axis in (*mesh_axes(rules.experts), *mesh_axes(rules.mlp)) if axis not in shared)

    def local(x_BTD: jax.Array, owner_BTK: jax.Array, weights_BTK: jax.Array, kernels: Kernels) -> jax.Array:
        x, owner, weights = (jax.lax.all_gather(a, shared, tiled=True) for a in (x_BTD, owner_BTK, weights_BTK))
        here, K, D = len(kernels["up"][0]), owner.shape[2], x.shape[2]
        mine = owner.reshape(-1) - jax.lax.axis_index(mesh_axes(rules.experts)) * here
        owner_N = jnp.where((mine >= 0) & (mine < here), mine, here)
        counts_E = jnp.sum(owner_N[:, None] == jnp.arange(here), axis=0)
        blocks, M = _blocks(len(owner_N), E, here)
        blocks_E = -(-counts_E // M)
        first_E = jnp.cumsum(blocks_E) - blocks_E
        owner_B = jnp.minimum(jnp.searchsorted(jnp.cumsum(blocks_E), jnp.arange(blocks), side="right"), here - 1)
        turn_N, first_E = jnp.arange(len(owner_N)), first_E * M
        row_S, slot_N = place(owner_N, turn_N, counts_E, first_E, counts_E, jnp.repeat(owner_B, M))

        def multiply(x_BMD: jax.Array, kernel_EDF: jax.Array, bias_EF: jax.Array | None) -> jax.Array:
            y_BMF = grouped_matmul(x_BMD, kernel_EDF, owner_B, jnp.sum(blocks_E))
            return y_BMF if bias_EF is None else y_BMF + small_lookup(bias_EF, owner_B)[:, None]

        x_ND = jnp.repeat(x.reshape(-1, D), K, axis=0)
        y_BMD = network(multiply, kernels, move(x_ND, row_S, slot_N).reshape(blocks, M, D))
        y_BTKD = move(y_BMD.reshape(-1, D), slot_N, row_S).reshape(*owner.shape, D)
        y_BTD = jax.lax.psum(jnp.einsum("BTKD,BTK->BTD", y_BTKD, weights), summed)
        return jax.lax.psum_scatter(y_BTD, shared, tiled=True)

    rows, columns = (-size % shards(axes, mesh_shape) for size, axes in ((B, rules.batch), (T, rules.length)))
    pad = ((0, rows), (0, columns), (0, 0))  # to sizes that the mesh divides; padding chooses no expert
    tokens = PartitionSpec(*rules.spec("batch", "length"))
    placed = {
        name: (
            rules.spec("experts", "mlp", None) if name == "down" else rules.spec("experts", None, "mlp"),
            None if bias is None else rules.spec("experts", "mlp"),
        )
        for name, (_, bias) in kernels.items()
    }
    mapped = jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, placed),
        out_specs=tokens,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )
    padded = jnp.pad(x_BTD, pad), jnp.pad(owner_BTK, pad, constant_values=E), jnp.pad(weights_BTK, pad)
    return mapped(*padded, kernels)[:B, :T]


def hidden_rows(
    config: ModelConfig, rules: ShardingRules, mesh_shape: Mapping[str, int], rows: int, length: int
) -> tuple[int, float]:
    """Rows of the hidden layers of one layer's experts on a device in training: how many it allocates, and how many it
    multiplies if all experts have the same load.

    Args:
        rows: of the batch, over all devices.
    """
    shape, K, E = dict(mesh_shape), config.experts_per_token, config.experts
    parts, here = shards(rules.length, shape), E // shards(rules.experts, shape)
    if config.capacity_factor:
        C = _slots(_capacity(config.capacity_factor, K, length, E), parts) // parts
        room = here * (rows // shards(_outside(rules), shape)) * C
        return room, room
    choices = rows // shards(rules.batch, shape) * (length // parts) * K * shards(shared_axes(rules), shape)
    blocks, M = _blocks(choices, E, here)
    return blocks * M, choices * here / E


def shared_axes(rules: ShardingRules) -> tuple[str, ...]:
    """The mesh axes that hold both the batch and, inside the layer, the experts."""
    return tuple(axis for axis in mesh_axes(rules.experts) if axis in mesh_axes(rules.batch))


def _outside(rules: ShardingRules) -> tuple[str, ...]:
    """The mesh axes of the batch that experts do not use."""
    return tuple(axis for axis in mesh_axes(rules.batch) if axis not in mesh_axes(rules.experts))


def _capacity(factor: float, choices: int, length: int, experts: int) -> int:
    """The most tokens of a row that an expert takes."""
    return min(math.ceil(factor * choices * length / experts), length)


def _slots(capacity: int, parts: int) -> int:
    """The capacity, rounded up to a multiple of `parts`; the slots added stay empty."""
    return -(-capacity // parts) * parts


def _blocks(choices: int, experts: int, here: int) -> tuple[int, int]:
    """How many blocks hold any `choices` among the `here` experts of this device, and the rows of a block."""
    M = min(LARGEST_BLOCK, 1 << max((choices // (4 * experts)).bit_length() - 1, 0))
    return min(choices, choices // M + here), M
