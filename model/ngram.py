"""n-gram language models with the interface of the networks: probabilities are looked up in a counted table.

The table, made by `model.ngram_table.count_ngrams`, takes the place of the parameters. All that a model remembers of
the tokens so far is, for each length m below its order, the number of the m-gram that they end with: its *state*, -1
where that m-gram was never counted or would reach beyond the start of the row or segment.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.losses import Batch, LossFn, Sums
from model.ngram_table import table_order
from model.transformer import Output

Params = dict[str, jax.Array]

CHILDREN = 256  # successors of a context that are spread over the vocabulary at once


class NGramCache(struct.PyTreeNode):
    """What to remember of each row: M = order - 1 numbers, however many tokens it has."""

    states_BM: jax.Array  # int32: column m-1 is the number of the m-gram that the row ends with, or -1
    segment_B: jax.Array  # int32: of the last token that was no padding; 0: none yet
    filled: jax.Array  # int32 scalar: tokens read

    def take(self, rows_B: jax.Array) -> "NGramCache":
        """The cache of these rows of the batch, in this order; a row may be taken more than once."""
        return self.replace(
            states_BM=jnp.take(self.states_BM, rows_B, axis=0), segment_B=jnp.take(self.segment_B, rows_B)
        )


def empty_ngram_cache(order: int, batch: int) -> NGramCache:
    """The cache of `batch` rows without any token, for a model of this order."""
    return NGramCache(jnp.full((batch, order - 1), -1, jnp.int32), jnp.zeros(batch, jnp.int32), jnp.int32(0))


class NGram(nn.Module):
    """The model of `order` tokens, the predicted one included, from a table of this order or a higher one.

    It is called as `Transformer` is. Positions mean nothing to it.
    """

    order: int

    def __call__(
        self,
        ids_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        cache: NGramCache | None = None,
        train: bool = False,
        last: bool = False,
    ) -> Output:
        """Log-probabilities of the token after each token, f32 (B, T, V).

        Args:
            ids_BT: int32 token ids. A row with an id outside the vocabulary gets NaN.
            segments_BT: int32; context ends where the segment changes, 0 is padding and passed over. None: one segment.
            positions_BT, train: of no effect.
            cache: what was remembered of earlier tokens, from `empty_ngram_cache` or an earlier call.
            last: of the last position only, (B, 1, V).

        Raises:
            ValueError: a table or a cache of another order.
        """
        del positions_BT, train
        params = _checked(self.variables["params"], self.order)
        states_BTM, after = _read(params, self.order, ids_BT, segments_BT, cache)
        if last:
            states_BTM = states_BTM[:, -1:]
        B, T, M = states_BTM.shape
        p_RV = _distributions(params, self.order, states_BTM.reshape(B * T, M))
        known_B11 = jnp.all(_in_vocabulary(params, ids_BT), axis=1)[:, None, None]
        logits_BTV = jnp.where(known_B11, jnp.log(p_RV).reshape(B, T, -1), jnp.nan)
        return Output(logits=logits_BTV, cache=None if cache is None else after)


def ngram_loss(order: int) -> LossFn:
    """The loss of `NGram(order)` on `inputs`, `targets`, `weights` and perhaps `segments`, each (B, T).

    It looks up the targets alone: no array has a vocabulary axis. A row with an id outside the vocabulary costs NaN.
    `positions` are of no effect; anything else in a batch, or a table of a lower order, raises ValueError.
    """

    def loss(params: Any, batch: Batch, key: jax.Array | None) -> Sums:
        if unknown := sorted(set(batch) - {"inputs", "targets", "weights", "segments", "positions"}):
            raise ValueError(f"the batch has {', '.join(unknown)}: an n-gram model sees the tokens before, no more")
        with jax.named_scope("ngram_loss"):
            params = _checked(params, order)
            inputs_BT, targets_BT = jnp.asarray(batch["inputs"]), jnp.asarray(batch["targets"])
            states_BTM, _ = _read(params, order, inputs_BT, batch.get("segments"), None)
            p_BT = _target_probabilities(params, order, states_BTM, targets_BT)
            known_BT = _in_vocabulary(params, inputs_BT) & _in_vocabulary(params, targets_BT)
            nats_BT = jnp.where(jnp.all(known_BT, axis=1, keepdims=True), -jnp.log(p_BT), jnp.nan)
            return Sums(jnp.sum(nats_BT * batch["weights"]), jnp.sum(batch["weights"]))

    return loss


def _checked(params: Any, order: int) -> Params:
    if not 1 <= order <= table_order(params):
        raise ValueError(f"order is {order}: the table was counted for orders 1 to {table_order(params)}")
    return jax.tree.map(jnp.asarray, dict(params))


def _in_vocabulary(params: Params, ids: jax.Array) -> jax.Array:
    return (ids >= 0) & (ids < len(params["top_mass_1"]))


def _children(params: Params, n: int, parent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first n-gram that continues (n-1)-gram `parent`, and the end. Of parent -1: the last offset and 0, none."""
    children = params[f"children_{n - 1}"]
    return children[parent], children[parent + 1]


def _find(params: Params, n: int, parent: jax.Array, token: jax.Array) -> jax.Array:
    """The number of the n-gram that continues (n-1)-gram `parent` by `token`, or -1: a binary search, elementwise."""
    tokens = params[f"tokens_{n}"]
    first, end = _children(params, n, parent)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        less = tokens[middle] < token
        return jnp.where((low < high) & less, middle + 1, low), jnp.where((low < high) & ~less, middle, high)

    widest = min(len(tokens), len(params["top_mass_1"]))  # no parent has more children than there are tokens
    place, _ = jax.lax.fori_loop(0, widest.bit_length(), halve, (first, end))
    return jnp.where((place < end) & (tokens[place] == token), place, -1)


def _read(
    params: Params, order: int, ids_BT: jax.Array, segments_BT: jax.Array | None, cache: NGramCache | None
) -> tuple[jax.Array, NGramCache]:
    """states_BTM after each token, and the cache after the last. Padding leaves the state as it is.

    An m-gram is the (m-1)-gram that ended one token earlier, and the token: one search finds it.
    """
    B, T = ids_BT.shape
    start = empty_ngram_cache(order, B) if cache is None else cache
    if start.states_BM.shape != (B, order - 1):
        raise ValueError(f"the cache has states {start.states_BM.shape}, the tokens need {(B, order - 1)}")
    ids_BT = ids_BT.astype(jnp.int32)
    segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT.astype(jnp.int32)
    real_BT = (segments_BT > 0) & _in_vocabulary(params, ids_BT)
    # Where the last real token stands, at or before each: 0 is in the cache, t + 1 is token t.
    here_BT = jax.lax.cummax(jnp.where(real_BT, jnp.arange(1, T + 1), 0), axis=1)
    before_BT = jnp.pad(here_BT[:, :-1], ((0, 0), (1, 0)))

    def at(place_BT: jax.Array, first_B: jax.Array, x_BT: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.concatenate([first_B[:, None], x_BT], axis=1), place_BT, axis=1)

    joined_BT = real_BT & (at(before_BT, start.segment_B, segments_BT) == segments_BT)
    found_BT, states = jnp.where(real_BT, ids_BT, -1), []
    for m in range(1, order):
        if m > 1:
            shorter_BT = at(before_BT, start.states_BM[:, m - 2], found_BT)
            found_BT = _find(params, m, jnp.where(joined_BT, shorter_BT, -1), ids_BT)
        states.append(at(here_BT, start.states_BM[:, m - 1], found_BT))
    states_BTM = jnp.stack(states, axis=-1) if states else jnp.zeros((B, T, 0), jnp.int32)
    segment_B = at(here_BT, start.segment_B, segments_BT)[:, -1]
    return states_BTM, NGramCache(states_BTM[:, -1], segment_B, start.filled + T)


def _weights(params: Params, n: int, order: int) -> tuple[jax.Array, jax.Array]:
    """Mass of the n-grams and rest of their contexts in a model of `order`."""
    kind = "top_" if n == order else ""
    return params[f"{kind}mass_{n}"], params[f"{kind}rest_{n}"]


def _target_probabilities(params: Params, order: int, states_BTM: jax.Array, targets_BT: jax.Array) -> jax.Array:
    mass_V, rest_1 = _weights(params, 1, order)
    p_BT = mass_V[targets_BT] + rest_1 / len(mass_V)
    for n in range(2, order + 1):
        mass, rest = _weights(params, n, order)
        context_BT = states_BTM[:, :, n - 2]
        found_BT = _find(params, n, context_BT, targets_BT)
        rest_BT = jnp.where(context_BT >= 0, rest[context_BT], 1.0)
        p_BT = jnp.where(found_BT >= 0, mass[found_BT], 0.0) + rest_BT * p_BT
    return p_BT


def _distributions(params: Params, order: int, states_RM: jax.Array) -> jax.Array:
    """p_RV: the probability of every token after each of R states."""
    mass_V, rest_1 = _weights(params, 1, order)
    p_RV = jnp.broadcast_to(mass_V + rest_1 / len(mass_V), (len(states_RM), len(mass_V)))
    for n in range(2, order + 1):
        mass, rest = _weights(params, n, order)
        context_R = states_RM[:, n - 2]
        p_RV = jnp.where(context_R >= 0, rest[context_R], 1.0)[:, None] * p_RV
        p_RV = _add_children(p_RV, params[f"tokens_{n}"], mass, *_children(params, n, context_R))
    return p_RV


def _add_children(
    p_RV: jax.Array, tokens: jax.Array, mass: jax.Array, first_R: jax.Array, end_R: jax.Array
) -> jax.Array:
    """Adds the mass of the n-grams `first_R` to `end_R` to their last tokens, some columns of children at a time.

    Most contexts have few children, a few have thousands: the number of steps is that of the widest here.
    """
    V = p_RV.shape[1]
    columns = jnp.arange(min(CHILDREN, V))

    def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        p_RV, start_R = carry
        child_RC = start_R[:, None] + columns
        token_RC = jnp.where(child_RC < end_R[:, None], tokens[child_RC].astype(jnp.int32), V)
        p_RV = p_RV.at[jnp.arange(len(p_RV))[:, None], token_RC].add(mass[child_RC], mode="drop")
        return p_RV, start_R + len(columns)

    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] < end_R), add, (p_RV, first_R))[0]
