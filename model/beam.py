"""Beam search: the most likely sequences, found by keeping some of the best beginnings at each length."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct


class Beams(struct.PyTreeNode):
    """How beams are searched.

    A sequence of n tokens, its end included, scores `log p / n ** length_penalty` (Wu et al. 2016, section 7, in the
    form of transformers). A prompt is done once `size` ended sequences are held and, if `early_stopping` is

    - True: at once;
    - False: the best running beam, scored at its present length, would not get among them;
    - "never": nor would it at the length that is best for its score (the same as False if the penalty is not positive).
    """

    size: int = struct.field(pytree_node=False, default=4)  # W: beams of a prompt
    length_penalty: Any = 1.0  # above 0 favours long sequences: their log-probabilities are negative
    early_stopping: bool | str = struct.field(pytree_node=False, default=False)

    def check(self) -> None:
        """Raises ValueError: a setting outside its range."""
        if not (isinstance(self.size, int) and self.size >= 1):
            raise ValueError(f"size is {self.size}: use a number of beams, at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty}: use a number, 0 is none")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}: use True, False or 'never'")


class Hypothesis(NamedTuple):
    """A sequence that beam search found: its tokens, with the end if it has one, and its score."""

    tokens: list[int]
    score: float


class Ended(struct.PyTreeNode):
    """The best sequences that have ended, best first; score -inf where there are fewer than W."""

    tokens_BWN: jax.Array
    lengths_BW: jax.Array
    scores_BW: jax.Array


class _Search(struct.PyTreeNode):
    network: Any  # what `log_probs` and `extend` know, for B * W rows
    tokens_BWN: jax.Array  # of the running beams
    scores_BW: jax.Array  # sums of log-probabilities, the highest first
    ended: Ended
    open_B: jax.Array  # whether more is to be found
    length: jax.Array  # tokens of the running beams


def beam_search(
    log_probs: Callable[[Any], jax.Array],
    extend: Callable[[Any, jax.Array, jax.Array], Any],
    network: Any,
    beams: Beams,
    max_tokens: jax.Array,
    *,
    batch: int,
    capacity: int,
    eos_ids: tuple[int, ...],
) -> Ended:
    """Searches for each of `batch` prompts the best continuations of at most `max_tokens` (<= `capacity`) tokens.

    A token of `eos_ids` ends a sequence, and so does the length. Pure; rows do not depend on each other.

    Args:
        log_probs: (rows, V) of the next token, for the `batch * beams.size` rows that `network` stands for.
        extend: `network` with `rows_R` of it, in this order, each continued by `token_R`.
        network: the state after the prompts, each repeated `beams.size` times.
    """
    B, W = batch, beams.size
    tokens_BWN, none_BW = jnp.zeros((B, W, capacity), jnp.int32), jnp.full((B, W), -jnp.inf)
    # All beams of a prompt are the same at first: only one of them counts.
    first_BW = jnp.broadcast_to(jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf), (B, W))
    ended = Ended(tokens_BWN, jnp.zeros((B, W), jnp.int32), none_BW)
    search = _Search(network, tokens_BWN, first_BW, ended, jnp.ones(B, bool), jnp.int32(0))

    def step(search: _Search) -> _Search:
        logp_RV = log_probs(search.network)
        V, length = logp_RV.shape[1], search.length + 1
        total_BM = (logp_RV.reshape(B, W, V) + search.scores_BW[:, :, None]).reshape(B, W * V)
        # Enough that W of them continue even if all ends of all beams are among them.
        count = min(max(2, 1 + len(eos_ids)) * W, W * V)
        scores_BC, place_BC = jax.lax.optimization_barrier(jax.lax.top_k(total_BM, count))  # as in model.sampling
        beam_BC, token_BC = place_BC // V, place_BC % V
        tokens_BCN = _take(search.tokens_BWN, beam_BC).at[:, :, search.length].set(token_BC)
        ends_BC = jnp.isin(token_BC, jnp.asarray(eos_ids, jnp.int32)) | (length == max_tokens)
        ended = _add(search, beams, tokens_BCN, jnp.where(ends_BC, scores_BC, -jnp.inf))
        scores_BW, chosen_BW = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, scores_BC), W)
        row_BW = _take(beam_BC, chosen_BW) + W * jnp.arange(B)[:, None]
        network = extend(search.network, row_BW.reshape(-1), _take(token_BC, chosen_BW).reshape(-1))
        open_B = search.open_B & _hopeful(scores_BW[:, 0], ended, beams, length, max_tokens)
        return _Search(network, _take(tokens_BCN, chosen_BW), scores_BW, ended, open_B, length)

    def more(search: _Search) -> jax.Array:
        return (search.length < max_tokens) & search.open_B.any()

    return jax.lax.while_loop(more, step, search).ended


def _add(search: _Search, beams: Beams, tokens_BCN: jax.Array, scores_BC: jax.Array) -> Ended:
    """The best of the sequences that ended before and those that end now, if among the W best candidates."""
    W, length = beams.size, search.length + 1
    scores_BW = jnp.where(search.open_B[:, None], scores_BC[:, :W] / _norm(length, beams), -jnp.inf)
    old = search.ended
    lengths_BW = jnp.full_like(old.lengths_BW, length)
    scores_BW, chosen_BW = jax.lax.top_k(jnp.concatenate([old.scores_BW, scores_BW], axis=1), W)
    tokens_BWN = _take(jnp.concatenate([old.tokens_BWN, tokens_BCN[:, :W]], axis=1), chosen_BW)
    return Ended(tokens_BWN, _take(jnp.concatenate([old.lengths_BW, lengths_BW], axis=1), chosen_BW), scores_BW)


def _hopeful(running_B: jax.Array, ended: Ended, beams: Beams, length: jax.Array, max_tokens: jax.Array) -> jax.Array:
    """Whether the best running beam may still get into the W best ended ones."""
    if beams.early_stopping == "never":
        length = jnp.where(beams.length_penalty > 0, max_tokens, length)
    hopeful_B = running_B / _norm(length, beams) > ended.scores_BW[:, -1]
    return hopeful_B & (ended.scores_BW[:, -1] == -jnp.inf) if beams.early_stopping is True else hopeful_B


def _norm(length: jax.Array, beams: Beams) -> jax.Array:
    return length.astype(jnp.float32) ** beams.length_penalty


def _take(x: jax.Array, chosen_BW: jax.Array) -> jax.Array:
    """For each prompt, the chosen entries of axis 1."""
    return jnp.take_along_axis(x, chosen_BW.reshape(chosen_BW.shape + (1,) * (x.ndim - 2)), axis=1)
