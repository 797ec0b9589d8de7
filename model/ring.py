"""Ring attention: the length is sharded, and keys and values go round a ring of devices (Liu et al. 2023).

Each device keeps its queries and sees the keys of all devices, one block after the other. The softmax is computed
online (Milakov & Gimelshein 2018), so no device ever holds all keys, or the scores of all queries with all keys. The
backward pass sends the keys round once more, and their gradients with them.

Under a causal mask a device with early tokens would have little to do. So the loss splits each row into `2 n` chunks
and gives the first and the last to the first of n devices, and so on inwards (`dealt`). Masked blocks are skipped.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model.config import ModelConfig
from model.kernels import repeat_for_parts
from model.layers import WeightDropout
from model.mask import MASKED, MaskSpec, final_scores
from model.positions import ScoreBias
from model.sharding import ShardingRules, mesh_axes, shards

HALVES = (0, 1)  # a device holds an early and a late chunk


def parts(rules: ShardingRules) -> int:
    """How many shards the mesh makes of the length."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else shards(rules.spec("length")[0], dict(mesh.shape))


def cuts(rules: ShardingRules, batch: int, *lengths: int) -> bool:
    """Whether arrays of these sizes are sharded along their lengths. What does not divide stays whole."""
    n = parts(rules)
    if n == 1 or any(length % (2 * n) for length in lengths):
        return False
    return batch % shards(rules.spec("batch")[0], dict(jax.sharding.get_abstract_mesh().shape)) == 0


def check_cut(config: ModelConfig, rules: ShardingRules, mesh_shape: dict[str, int]) -> None:
    """Raises ValueError if the mesh shards the length for a network that reads one token after the other."""
    if not config.attends and (n := shards(rules.length, mesh_shape)) > 1:
        raise ValueError(
            f"mesh axes {rules.length!r} cut the length into {n} parts: an architecture {config.architecture!r} reads "
            "one token after the other, use mesh.context=1"
        )


def dealt(length: int, n: int) -> np.ndarray:
    """The slots of a row in the order in which n devices hold it, int32 (length,): chunks 0 and 2n-1, 1 and 2n-2, …
    (Brandon et al. 2023 balance the load by tokens; by chunks, whole blocks are left out).
    """
    chunks = np.arange(length, dtype=np.int32).reshape(2 * n, -1)
    return np.stack([chunks[:n], chunks[: n - 1 : -1]], axis=1).reshape(-1)


class Queries(NamedTuple):
    """What stays on its device."""

    q_BGRTK: Any
    slots_T: Any
    segments_BT: Any


class Keys(NamedTuple):
    """What goes round."""

    k_BGSK: Any
    v_BGSK: Any
    slots_S: Any
    segments_BS: Any
    prefix_BS: Any


class Softmax(NamedTuple):
    """Online softmax over the keys seen so far, f32: largest score, sum of exp(score - largest), weighted values."""

    most_BGRT: jax.Array
    sum_BGRT: jax.Array
    o_BGRTK: jax.Array


@dataclasses.dataclass(frozen=True)
class Ring:
    """The static settings of one call."""

    axes: tuple[str, ...]  # mesh axes of the length
    batch_axes: tuple[str, ...]
    heads_axes: tuple[str, ...]
    size: int  # devices
    causal: bool
    window: int
    scale: float
    softcap: float
    features: Callable[[jax.Array], jax.Array] | None  # of the bias
    rate: float  # of dropout


def ring_attention(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    bias: ScoreBias | None,
    mask: MaskSpec,
    scale: float,
    softcap: float,
    drop: WeightDropout | None,
    rules: ShardingRules,
) -> jax.Array:
    """`model.attention.attention` where `cuts` holds; o_BHTK lies as `q_BHTK` does.

    Raises:
        ValueError: two dimensions of an array on one mesh axis.
    """
    B, H, T, K = q_BHTK.shape
    batch, heads, length = map(mesh_axes, rules.spec("batch", "heads", "length"))
    k_BGSK, v_BGSK = (repeat_for_parts(x, rules) for x in (k_BGSK, v_BGSK))
    G = k_BGSK.shape[1]
    queries = Queries(q_BHTK.reshape(B, G, H // G, T, K), mask.query_slots(T), mask.query_segments_BT)
    slots_S = mask.key_slots(k_BGSK.shape[2])
    keys = Keys(k_BGSK, v_BGSK, slots_S, mask.key_segments_BS, mask.prefix_BS)
    ring = Ring(
        axes=length,
        batch_axes=batch,
        heads_axes=heads,
        size=parts(rules),
        causal=mask.causal,
        window=mask.window,
        scale=scale,
        softcap=softcap,
        features=None if bias is None else bias.features,
        rate=0.0 if drop is None else drop.rate,
    )
    weights_RH = None if bias is None else bias.weights_RH
    seed = None if drop is None else jax.random.key_data(drop.key)
    return cast(jax.Array, _attend(ring, queries, keys, weights_RH, seed)).reshape(B, H, T, K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, queries: Queries, keys: Keys, weights_RH: Any, seed: Any) -> jax.Array:
    return _attend_forward(ring, queries, keys, weights_RH, seed)[0]


def _attend_forward(ring: Ring, queries: Queries, keys: Keys, weights_RH: Any, seed: Any) -> tuple[jax.Array, Any]:
    specs = _specs(ring, queries, keys, weights_RH, seed)
    o, most, total = (specs[0].q_BGRTK, *[PartitionSpec(*specs[0].q_BGRTK[:-1])] * 2)
    forward = _on_devices(functools.partial(_forward, ring), specs, (o, most, total))
    o_BGRTK, most_BGRT, sum_BGRT = (
        checkpoint_name(x, "attention") for x in forward(queries, keys, weights_RH, seed)
    )  # fmt: skip
    return o_BGRTK, (queries, keys, weights_RH, seed, o_BGRTK, most_BGRT, sum_BGRT)


def _attend_backward(ring: Ring, saved: Any, do_BGRTK: jax.Array) -> tuple[Queries, Keys, Any, None]:
    queries, keys, weights_RH, seed, o_BGRTK, most_BGRT, sum_BGRT = saved
    rows_BGRT = jnp.sum(do_BGRTK.astype(jnp.float32) * o_BGRTK.astype(jnp.float32), axis=-1)
    specs = _specs(ring, queries, keys, weights_RH, seed)
    like_q, like_rows = specs[0].q_BGRTK, PartitionSpec(*specs[0].q_BGRTK[:-1])
    out = (like_q, specs[1].k_BGSK, specs[1].v_BGSK, specs[2])
    backward = _on_devices(functools.partial(_backward, ring), (*specs, like_q, like_rows, like_rows, like_rows), out)
    dq, dk, dv, dweights = backward(queries, keys, weights_RH, seed, do_BGRTK, rows_BGRT, most_BGRT, sum_BGRT)
    return Queries(dq, None, None), Keys(dk, dv, None, None, None), dweights, None


_attend.defvjp(_attend_forward, _attend_backward)


def _specs(ring: Ring, queries: Queries, keys: Keys, weights_RH: Any, seed: Any) -> tuple[Queries, Keys, Any, Any]:
    """The sharding of each array, None for those that are None."""
    batch, heads, length = ring.batch_axes, ring.heads_axes, ring.axes
    rows, slots = PartitionSpec(batch, length), PartitionSpec(length)
    keys_lie = PartitionSpec(batch, heads, length, None)
    of_queries = Queries(PartitionSpec(batch, heads, None, length, None), slots, rows)
    of_keys = Keys(keys_lie, keys_lie, slots, rows, rows)
    there = lambda spec, array: None if array is None else spec  # noqa: E731
    return (
        Queries(*map(there, of_queries, queries)),
        Keys(*map(there, of_keys, keys)),
        there(PartitionSpec(None, heads), weights_RH),
        there(PartitionSpec(), seed),
    )


def _on_devices(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's own shards; inside another `shard_map`, over the axes that it leaves."""
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    # Gradients are written out below, so JAX need not track what varies over which axis.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False)


def _forward(ring: Ring, queries: Queries, keys: Keys, weights_RH: Any, seed: Any) -> tuple[jax.Array, ...]:
    """One device: its output, and what the backward pass needs of the softmax."""
    add = functools.partial(_add_values, ring, weights_RH, seed)

    def look(keys: Keys, seen: tuple[Softmax, ...]) -> tuple[Softmax, ...]:
        for half in HALVES:
            theirs = _half_of_keys(keys, half)
            seen = tuple(_where_seen(ring, add, seen[a], _half_of_queries(queries, a), theirs) for a in HALVES)
        return seen

    q_BGRTK = _half_of_queries(queries, 0).q_BGRTK
    rows = q_BGRTK.shape[:-1]
    nothing = Softmax(jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros(q_BGRTK.shape))
    seen = _around(ring, look, keys, (nothing, nothing))
    most, total, o = (jnp.concatenate(pair, axis=3) for pair in zip(*seen, strict=True))
    return (o / total[..., None]).astype(q_BGRTK.dtype), most, total


def _add_values(ring: Ring, weights_RH: Any, seed: Any, seen: Softmax, mine: Queries, theirs: Keys) -> Softmax:
    """One block's part of the output (Milakov & Gimelshein 2018, algorithm 3)."""
    scores = _scores(ring, _products(ring, mine, theirs), weights_RH, mine, theirs)
    most = jnp.maximum(seen.most_BGRT, jnp.max(scores, axis=-1))
    weights, fade = jnp.exp(scores - most[..., None]), jnp.exp(seen.most_BGRT - most)
    total = seen.sum_BGRT * fade + jnp.sum(weights, axis=-1)
    weights = _drop(ring, seed, mine, theirs)(weights).astype(theirs.v_BGSK.dtype)
    return Softmax(most, total, seen.o_BGRTK * fade[..., None] + _product("BGRTS,BGSK->BGRTK", weights, theirs.v_BGSK))


def _backward(
    ring: Ring, queries: Queries, keys: Keys, weights_RH: Any, seed: Any, do_BGRTK: jax.Array, *rows_BGRT: jax.Array
) -> tuple[Any, ...]:
    """One device: gradients of its queries, keys and values, and of the bias's weights."""

    def look(keys: Keys, so_far: Any) -> Any:
        dq, dweights, traveller = list(so_far[0]), so_far[1], so_far[2]
        here = []
        for half in HALVES:
            theirs = _half_of_keys(keys, half)
            dkv = tuple(jnp.zeros(x.shape, jnp.float32) for x in (theirs.k_BGSK, theirs.v_BGSK))
            for a in HALVES:
                of_rows = [_half(x, a, 3) for x in (do_BGRTK, *rows_BGRT)]
                add = functools.partial(_add_gradients, ring, weights_RH, seed, *of_rows)
                mine = _half_of_queries(queries, a)
                dq[a], dweights, dkv = _where_seen(ring, add, (dq[a], dweights, dkv), mine, theirs)
            here.append(dkv)
        # The gradients of the keys so far travel with the keys, one step later.
        here = tuple(jnp.concatenate(pair, axis=2) for pair in zip(*here, strict=True))
        return tuple(dq), dweights, jax.tree.map(jnp.add, _passed(ring, traveller), here)

    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.float32))
    start = (_half(queries.q_BGRTK, 0, 3), _half(queries.q_BGRTK, 1, 3)), weights_RH, (keys.k_BGSK, keys.v_BGSK)
    dq, dweights, traveller = _around(ring, look, keys, zeros(start))
    dk, dv = _passed(ring, traveller)  # back to the device of these keys
    dweights = jax.lax.psum(dweights, ring.axes + ring.batch_axes)
    dtype = queries.q_BGRTK.dtype
    return jnp.concatenate(dq, axis=3).astype(dtype), dk.astype(dtype), dv.astype(dtype), dweights


def _add_gradients(
    ring: Ring, weights_RH: Any, seed: Any, do_BGRTK, inner_BGRT, most_BGRT, sum_BGRT, so_far, mine, theirs
) -> Any:
    """One block's part of the gradients (Dao et al. 2022, appendix B.4), with the dropout of the forward pass."""
    dq, dweights, (dk, dv) = so_far
    dtype, drop = theirs.v_BGSK.dtype, _drop(ring, seed, mine, theirs)
    bent = functools.partial(_scores, ring, mine=mine, theirs=theirs)
    scores, pull = jax.vjp(bent, _products(ring, mine, theirs), weights_RH)
    weights = jnp.exp(scores - most_BGRT[..., None]) / sum_BGRT[..., None]
    dscores = weights * (drop(_product("BGRTK,BGSK->BGRTS", do_BGRTK, theirs.v_BGSK)) - inner_BGRT[..., None])
    dproducts, of_bias = pull(dscores)
    dproducts = dproducts.astype(dtype)
    dq += _product("BGRTS,BGSK->BGRTK", dproducts, theirs.k_BGSK) * ring.scale
    dk += _product("BGRTS,BGRTK->BGSK", dproducts, mine.q_BGRTK * ring.scale)
    dv += _product("BGRTS,BGRTK->BGSK", drop(weights).astype(dtype), do_BGRTK)
    return dq, jax.tree.map(jnp.add, dweights, of_bias), (dk, dv)


def _around(ring: Ring, look: Callable[[Keys, Any], Any], keys: Keys, state: Any) -> Any:
    """Calls `look` with the keys of each device in turn, its own first; the next ones are sent meanwhile."""

    def step(now: tuple[Keys, Any], _: None) -> tuple[tuple[Keys, Any], None]:
        keys, state = now
        return (_passed(ring, keys), look(keys, state)), None

    (keys, state), _ = jax.lax.scan(step, (keys, state), length=ring.size - 1)
    return look(keys, state)


def _passed(ring: Ring, tree: Any) -> Any:
    """What the device before this one holds."""
    circle = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, circle), tree)


def _where_seen(ring: Ring, add: Callable[..., Any], state: Any, mine: Queries, theirs: Keys) -> Any:
    """`add(state, mine, theirs)` if any query of `mine` may see a key of `theirs`, judged by slots; else `state`."""
    ahead, behind = jnp.min(theirs.slots_S) - jnp.max(mine.slots_T), jnp.min(mine.slots_T) - jnp.max(theirs.slots_S)
    seen = jnp.bool(True)
    if ring.causal:
        seen = ahead <= 0
        if theirs.prefix_BS is not None:
            seen |= jnp.any(theirs.prefix_BS != 0)
    if ring.window:
        seen &= behind < ring.window
        if not ring.causal:
            seen &= ahead < ring.window
    return jax.lax.cond(seen, lambda: add(state, mine, theirs), lambda: state)


def _products(ring: Ring, mine: Queries, theirs: Keys) -> jax.Array:
    return _product("BGRTK,BGSK->BGRTS", mine.q_BGRTK * ring.scale, theirs.k_BGSK)


def _scores(ring: Ring, scores_BGRTS: jax.Array, weights_RH: Any, mine: Queries, theirs: Keys) -> jax.Array:
    bias_1HTS = None
    if ring.features is not None:
        bias_1HTS = ScoreBias(weights_RH, ring.features)(mine.slots_T, theirs.slots_S)
    mask = MaskSpec(
        ring.causal, ring.window, None, mine.segments_BT, theirs.segments_BS, theirs.prefix_BS, mine.slots_T,
        theirs.slots_S,
    )  # fmt: skip
    return final_scores(scores_BGRTS, ring.softcap, bias_1HTS, mask)


def _drop(ring: Ring, seed: Any, mine: Queries, theirs: Keys) -> Callable[[jax.Array], jax.Array]:
    """Dropout of one block of weights, the same forward and backward: its first slots are part of the key."""
    if seed is None:
        return lambda weights: weights
    axes = ring.batch_axes + ring.heads_axes
    of_rows = jax.lax.axis_index(axes) if axes else jnp.int32(0)
    drop = WeightDropout(jax.random.wrap_key_data(seed), ring.rate)
    return drop.block(of_rows, mine.slots_T[0], theirs.slots_S[0])


def _half_of_queries(queries: Queries, half: int) -> Queries:
    return Queries(*(_half(x, half, axis) for x, axis in zip(queries, (3, 0, 1), strict=True)))


def _half_of_keys(keys: Keys, half: int) -> Keys:
    return Keys(*(_half(x, half, axis) for x, axis in zip(keys, (2, 2, 0, 1, 1), strict=True)))


def _half(x: Any, half: int, axis: int) -> Any:
    return None if x is None else jnp.split(x, 2, axis=axis)[half]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
