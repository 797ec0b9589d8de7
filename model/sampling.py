"""How the next token is chosen: penalties on what was there before, filters of unlikely tokens, and the draw."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Number = Any  # float, a scalar array, or None: off


class Sampling(struct.PyTreeNode):
    """How the next token is chosen. What is left at its default is off and, after `checked`, costs nothing.

    Penalties hold always, the filters (top_k to typical_p) only where a token is drawn. Each filter sees the
    probabilities that the one before has left, and keeps at least one token.
    """

    temperature: Number = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = struct.field(pytree_node=False, default=0)  # draw from the k most likely (Fan et al. 2018)
    top_p: Number = 1.0  # from the smallest set of the most likely with this mass (nucleus; Holtzman et al. 2020)
    min_p: Number = 0.0  # from those with this part of the highest probability (Nguyen et al. 2024)
    typical_p: Number = 1.0  # from the smallest set with this mass nearest to the entropy (Meister et al. 2023)
    repetition_penalty: Number = 1.0  # of tokens in the prompt or the answer (CTRL; Keskar et al. 2019)
    no_repeat_ngram: int = struct.field(pytree_node=False, default=0)  # no n-gram of this length comes twice
    min_tokens: Number = 0  # new tokens before the end may be drawn

    def checked(self, vocab_size: int) -> "Sampling":
        """The same with None for each number that changes nothing, so that no code is compiled for it.

        Raises:
            ValueError: a setting outside its range, or `typical_p` at temperature 0, where nothing is drawn.
        """
        part = "use a number above 0, up to 1 (off)"
        rules: dict[str, tuple[Callable[[Any], bool], str, float]] = {
            "temperature": (lambda x: 0 <= x < math.inf, "use 0 (greedy) or a positive number", 0),
            "top_k": (lambda x: _whole(x) and x <= vocab_size, f"use 0 (off) to {vocab_size}, the vocabulary", -1),
            "top_p": (lambda x: 0 < x <= 1, part, 1),
            "min_p": (lambda x: 0 <= x <= 1, "use 0 (off) to 1", 0),
            "typical_p": (lambda x: 0 < x <= 1, part, 1),
            "repetition_penalty": (lambda x: 0 < x < math.inf, "use a positive number, 1 is off", 1),
            "no_repeat_ngram": (_whole, "use a length in tokens, 0 is off", -1),
            "min_tokens": (_whole, "use a number of tokens, 0 is off", 0),
        }
        for name, (holds, use, _) in rules.items():
            if (value := getattr(self, name)) is not None and not holds(value):
                raise ValueError(f"{name} is {value}: {use}")
        off = {name: None for name, (*_, neutral) in rules.items() if getattr(self, name) == neutral}
        checked = self.replace(**off)
        if checked.temperature is None and checked.typical_p is not None:
            raise ValueError(f"typical_p is {self.typical_p} and temperature 0: nothing is drawn, leave typical_p at 1")
        return checked

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on more than the logits: on the tokens so far."""
        return self.repetition_penalty is not None or self.no_repeat_ngram > 0


def penalize(
    logits_BV: jax.Array, sampling: Sampling, history_BS: Any, count: jax.Array, eos_ids: tuple[int, ...]
) -> jax.Array:
    """Logits after the penalties. `history_BS` may be None where `needs_history` is False; `count` tokens are new."""
    if sampling.repetition_penalty is not None:
        logits_BV = penalize_repetition(logits_BV, history_BS, sampling.repetition_penalty)
    if sampling.no_repeat_ngram:
        logits_BV = forbid_repeated_ngrams(logits_BV, history_BS, sampling.no_repeat_ngram)
    if sampling.min_tokens is not None and eos_ids:
        ended_BV = logits_BV.at[:, jnp.asarray(eos_ids)].set(-jnp.inf)
        logits_BV = jnp.where(count < sampling.min_tokens, ended_BV, logits_BV)
    return logits_BV


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One id a row, int32. Each row has a key of its own, so its draw does not depend on the other rows."""
    if sampling.temperature is None:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BC, ids_BC = candidates(logits_BV, sampling)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BC)
    return drawn_B.astype(jnp.int32) if ids_BC is None else jnp.take_along_axis(ids_BC, drawn_B[:, None], 1)[:, 0]


def candidates(logits_BV: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array | None]:
    """Logits that are left after the filters, and their ids where that is not the order of the vocabulary.

    The k most likely are cut out rather than masked: what follows has k columns instead of V. Of equal ones at the
    border the lower ids stay.
    """
    # The highest becomes 0 first: a very low temperature must not overflow.
    logits_BC, ids_BC = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature, None
    if sampling.top_k:
        # Without the barrier XLA makes a whole sort of it in a loop: a hundred times slower on CPU.
        logits_BC, ids_BC = jax.lax.optimization_barrier(jax.lax.top_k(logits_BC, sampling.top_k))
    if sampling.top_p is not None:
        logits_BC = keep_nucleus(logits_BC, sampling.top_p)
    if sampling.min_p is not None:
        logits_BC = keep_min_p(logits_BC, sampling.min_p)
    if sampling.typical_p is not None:
        logits_BC = keep_typical(logits_BC, sampling.typical_p)
    return logits_BC, ids_BC


def keep_nucleus(logits_BV: jax.Array, mass: Number) -> jax.Array:
    """The smallest set of the most likely tokens that holds `mass` (Holtzman et al. 2020, eq. 2), and their equals."""
    return _keep_nearest(logits_BV, jax.nn.log_softmax(logits_BV), mass)


def keep_typical(logits_BV: jax.Array, mass: Number) -> jax.Array:
    """The smallest set that holds `mass` whose surprise is nearest to the entropy (Meister et al. 2023, eq. 10)."""
    logp_BV = jax.nn.log_softmax(logits_BV)
    entropy_B1 = -jnp.sum(jnp.where(logp_BV > -jnp.inf, jnp.exp(logp_BV) * logp_BV, 0.0), axis=-1, keepdims=True)
    return _keep_nearest(logits_BV, logp_BV + entropy_B1, mass)


def keep_min_p(logits_BV: jax.Array, part: Number) -> jax.Array:
    """Tokens with at least `part` of the highest probability (Nguyen et al. 2024, eq. 2)."""
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(part)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def penalize_repetition(logits_BV: jax.Array, history_BS: jax.Array, penalty: Number) -> jax.Array:
    """Logits of tokens of the history, divided by `penalty` if positive, else times it (Keskar et al. 2019, 4.1).

    `history_BS`: the tokens so far, -1 where there is none.
    """
    seen_BV = _mark(history_BS, history_BS >= 0, logits_BV.shape[1])
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def forbid_repeated_ngrams(logits_BV: jax.Array, history_BS: jax.Array, n: int) -> jax.Array:
    """Forbids each token that would end an n-gram of the history a second time (Paulus et al. 2018, section 2.5).

    `history_BS`: the tokens so far, the newest in the last column, -1 before the first. Where nothing would be left,
    nothing is forbidden.
    """
    S, V = history_BS.shape[1], logits_BV.shape[1]
    if n > S:
        return logits_BV
    starts = S - n + 1
    repeats = history_BS[:, n - 1 :] >= 0
    for place in range(n - 1):
        repeats &= history_BS[:, place : place + starts] == history_BS[:, starts + place, None]
    left_BV = jnp.where(_mark(history_BS[:, n - 1 :], repeats, V), -jnp.inf, logits_BV)
    return jnp.where(jnp.max(left_BV, axis=1, keepdims=True) > -jnp.inf, left_BV, logits_BV)


def _mark(ids_BS: jax.Array, where_BS: jax.Array, V: int) -> jax.Array:
    """Booleans (B, V): ids that a row has, where that counts."""
    rows_B1 = jnp.arange(len(ids_BS))[:, None]
    return jnp.zeros((len(ids_BS), V), bool).at[rows_B1, jnp.where(where_BS, ids_BS, V)].set(True, mode="drop")


def _keep_nearest(logits_BV: jax.Array, distance_BV: jax.Array, mass: Number) -> jax.Array:
    """The smallest set of tokens that holds `mass`, those with the least absolute distance, and their equals.

    The border is found by bisection on the bits of floats, which are ordered as positive floats are: 31 sums over the
    vocabulary are several times faster than sorting it.
    """
    bits_BV = jax.lax.bitcast_convert_type(jnp.abs(distance_BV), jnp.int32)
    p_BV = jax.nn.softmax(logits_BV)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        enough_B = jnp.sum(jnp.where(bits_BV <= middle_B[:, None], p_BV, 0.0), axis=-1) >= mass
        return jnp.where(enough_B, low_B, middle_B + 1), jnp.where(enough_B, middle_B, high_B)

    infinity_B = jnp.full(len(bits_BV), 0x7F800000, jnp.int32)
    _, bound_B = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(infinity_B), infinity_B))
    return jnp.where(bits_BV <= bound_B[:, None], logits_BV, -jnp.inf)


def _whole(x: Any) -> bool:
    return isinstance(x, int) and x >= 0
