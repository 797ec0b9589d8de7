"""Generation with a cache: pure functions that extend a state by tokens, and the driver that all families share."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental.multihost_utils import process_allgather

from model import parameters
from model.beam import Beams, Ended, Hypothesis, beam_search
from model.build import build
from model.cache import Cache
from model.config import RECURRENT, ModelConfig
from model.ngram import empty_ngram_cache
from model.prompts import BUCKET, Prompts, Tokens, round_up
from model.rnn import CELLS, empty_recurrent_cache
from model.sampling import Sampling, choose, penalize
from model.sharding import ShardingRules, shards
from model.transformer import apply

CHUNK = 16  # tokens generated on the devices before the host looks at them
GREEDY = Sampling(0.0)
FILTERS = ("top_k", "top_p", "min_p", "typical_p")  # of `Sampling`: they matter only if tokens are drawn


class DecodeState(struct.PyTreeNode):
    """A batch in the middle of generation."""

    cache: Any
    logits_BV: jax.Array  # of the next token
    position_B: jax.Array  # of the next token
    finished_B: jax.Array  # has ended
    count: jax.Array  # tokens generated so far
    history_BS: Any = None  # prompt and answer, the newest token last, -1 before; None where no penalty needs it

    def take(self, rows_B: jax.Array) -> "DecodeState":
        """The state of these rows, in this order; a row may be taken more than once."""
        rest = {name: getattr(self, name) for name in ("logits_BV", "position_B", "finished_B", "history_BS")}
        return self.replace(cache=self.cache.take(rows_B), **jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), rest))


class Chunk(NamedTuple):
    """The next tokens of all rows, int32 (B, n), and the log-probabilities of each, f32, where they were asked for."""

    tokens_BN: np.ndarray
    logprobs_BN: np.ndarray | None


def empty_cache(config: ModelConfig, rules: ShardingRules, batch: int, slots: int, source_length: int = 0) -> Any:
    """The cache of a network before the first token.

    A Transformer's has room for `slots` tokens a row and, in an encoder-decoder, `source_length` of the source, in the
    compute type. That of recurrent networks and n-grams has a fixed size.
    """
    c = config.resolved()
    if c.architecture == "ngram":
        return empty_ngram_cache(c.ngram_order, batch)
    if c.architecture in RECURRENT:
        return empty_recurrent_cache(CELLS[c.architecture], c.num_layers, batch, c.embed_dim)

    def keys(length: int) -> jax.Array:
        zeros = jnp.zeros((c.num_layers, batch, c.num_kv_heads, length, c.head_dim), c.compute_dtype)
        return rules.constrain(zeros, None, "batch", "kv_heads", "length", "head_dim")

    cache = Cache(keys(slots), keys(slots), jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))
    if c.architecture != "encoder_decoder":
        return cache
    source_segments_BS = jnp.zeros((batch, source_length), jnp.int32)
    source_k, source_v = keys(source_length), keys(source_length)
    return cache.replace(source_k_LBGSK=source_k, source_v_LBGSK=source_v, source_segments_BS=source_segments_BS)


def prefill(
    model: nn.Module, params: Any, ids_BT: jax.Array, segments_BT: jax.Array, cache: Any, **more: jax.Array
) -> DecodeState:
    """Reads left-padded prompts (segment 0 is padding) into an empty cache; `more` is what else `apply` is to see."""
    positions_BT = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    inputs = {"segments_BT": segments_BT, "positions_BT": positions_BT, **more}
    output = apply(model, params, ids_BT, cache=cache, last=True, **inputs)
    finished_B = jnp.zeros(len(ids_BT), bool)
    return DecodeState(output.cache, output.logits[:, 0], positions_BT[:, -1] + 1, finished_B, jnp.int32(0))


def advance(model: nn.Module, params: Any, state: DecodeState, token_B: jax.Array) -> DecodeState:
    """Each row continued by one token."""
    output = apply(model, params, token_B[:, None], positions_BT=state.position_B[:, None], cache=state.cache)
    history_BS = state.history_BS
    if history_BS is not None:
        history_BS = jnp.concatenate([history_BS[:, 1:], token_B[:, None]], axis=1)
    moved = {"position_B": state.position_B + 1, "count": state.count + 1}
    return state.replace(cache=output.cache, logits_BV=output.logits[:, 0], history_BS=history_BS, **moved)


def generate(
    model: nn.Module,
    params: Any,
    state: DecodeState,
    keys_B: jax.Array,
    sampling: Sampling,
    num_tokens: jax.Array,
    *,
    capacity: int,
    vocab_limit: int,
    eos_ids: tuple[int, ...],
    logprobs: bool,
) -> tuple[DecodeState, jax.Array, jax.Array | None]:
    """Continues each row by `num_tokens` (at most `capacity`) tokens: new state, tokens and log-probabilities
    (B, capacity), pure.

    Token n of a row is drawn with `fold_in(key, n)`. Ids from `vocab_limit` on (padding of the embedding table) are
    never drawn. A finished row repeats the first of `eos_ids`, or 0 where there is none, with log-probability 0.
    """
    B = len(state.logits_BV)
    last = eos_ids[0] if eos_ids else 0

    def step(i: jax.Array, carry: tuple[DecodeState, jax.Array, Any]) -> tuple[DecodeState, jax.Array, Any]:
        state, tokens_BN, logprobs_BN = carry
        logits_BV = _allowed(state.logits_BV, state, sampling, vocab_limit, eos_ids)
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.count)
        token_B = jnp.where(state.finished_B, last, choose(logits_BV, step_keys_B, sampling))
        tokens_BN = jax.lax.dynamic_update_slice(tokens_BN, token_B[:, None], (0, i))
        if logprobs:
            token_logit_B = jnp.take_along_axis(state.logits_BV, token_B[:, None], axis=1)[:, 0]
            logprob_B = jnp.where(state.finished_B, 0.0, token_logit_B - jax.nn.logsumexp(state.logits_BV, axis=1))
            logprobs_BN = jax.lax.dynamic_update_slice(logprobs_BN, logprob_B[:, None], (0, i))
        finished_B = state.finished_B | jnp.isin(token_B, jnp.asarray(eos_ids, jnp.int32))
        return advance(model, params, state.replace(finished_B=finished_B), token_B), tokens_BN, logprobs_BN

    start = (state, jnp.zeros((B, capacity), jnp.int32), jnp.zeros((B, capacity)) if logprobs else None)
    return jax.lax.fori_loop(0, num_tokens, step, start)


def search(
    model: nn.Module,
    params: Any,
    state: DecodeState,
    sampling: Sampling,
    beams: Beams,
    max_tokens: jax.Array,
    *,
    capacity: int,
    vocab_limit: int,
    eos_ids: tuple[int, ...],
) -> Ended:
    """Beam search from `state`; the penalties of `sampling` act on log-probabilities. Pure."""

    def log_probs(state: DecodeState) -> jax.Array:
        return _allowed(jax.nn.log_softmax(state.logits_BV), state, sampling, vocab_limit, eos_ids)

    def extend(state: DecodeState, rows_R: jax.Array, token_R: jax.Array) -> DecodeState:
        return advance(model, params, state.take(rows_R), token_R)

    batch = len(state.logits_BV)
    rows = state.take(jnp.repeat(jnp.arange(batch), beams.size))
    return beam_search(log_probs, extend, rows, beams, max_tokens, batch=batch, capacity=capacity, eos_ids=eos_ids)


class Decoder:
    """Generation by one network: keeps the compiled functions, pads prompts, moves the window when it is full.

    Raises:
        ValueError: an encoder, which has no next token.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, rules: ShardingRules | None = None) -> None:
        if config.architecture == "encoder":
            raise ValueError("an encoder has no next token: generate with another architecture")
        self.model, self.config, self.rules = model, config.resolved(), rules or ShardingRules()
        self._limit = config.max_length if config.attends else sys.maxsize  # tokens that it can look back on
        # Many steps use the same weights: on a CPU it pays to split the layers once, see `parameters.unstack`.
        apart = self.config.attends and jax.default_backend() == "cpu"
        stepped = build(self.config, self.rules, stacked=False) if apart else model
        self._prepare = jax.jit(parameters.unstack) if apart else lambda params: params
        self._prefill = jax.jit(self._start, static_argnames="slots")
        self._generate = jax.jit(
            functools.partial(generate, stepped),
            static_argnames=("capacity", "vocab_limit", "eos_ids", "logprobs"),
            donate_argnames="state",
        )
        self._search = jax.jit(
            functools.partial(search, stepped),
            static_argnames=("capacity", "vocab_limit", "eos_ids"),
        )
        self._take = jax.jit(DecodeState.take)

    def stream(
        self,
        params: Any,
        prompts: Tokens,
        *,
        max_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        vocab_limit: int,
        eos_ids: Sequence[int],
        num_samples: int = 1,
        logprobs: bool = False,
        sources: Tokens = (),
        finished: Callable[[np.ndarray], Sequence[bool] | np.ndarray] | None = None,
    ) -> Iterator[Chunk]:
        """Yields the next tokens of all rows until `max_tokens` or the end of every row.

        A row that has ended repeats the first of `eos_ids`. When the context is full, its newer half is read again and
        generation continues. Until then, row b depends only on its prompt and `seeds[b]`, not on the other rows. The
        context of recurrent networks and n-grams is never full.

        Args:
            prompts: the beginning of each text. In an encoder-decoder the beginning of the answer, after
                `config.decoder_start_id`; it may be empty.
            seeds: one for each row.
            vocab_limit: ids below it are drawn.
            num_samples: rows for each prompt, which is read once; rows of one prompt stand together.
            logprobs: also yield the log-probability of each token in the model's own distribution: over all ids,
                without temperature, filters and penalties.
            sources: what the encoder of an encoder-decoder reads.
            finished: called with the new tokens (B, n) of each chunk, says which rows end here, (B,).

        Raises:
            ValueError: an argument outside its range, a prompt longer than the context.
        """
        eos_ids = tuple(eos_ids)
        checked = self._checked(sampling, max_tokens, vocab_limit, eos_ids)  # here, not at the first `next`
        begin = Prompts.checked(prompts, sources, self.config, self._limit)
        rows = len(prompts) * num_samples
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}: it must be at least 1")
        if len(seeds) != rows:
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts of {num_samples} samples: give {rows}")
        if not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError(f"seed {min(seeds) if min(seeds) < 0 else max(seeds)}: use 0 to {2**32 - 1}")

        limits = {"capacity": CHUNK, "vocab_limit": vocab_limit, "eos_ids": eos_ids, "logprobs": logprobs}

        def chunks() -> Iterator[Chunk]:
            texts = self._even(begin)
            key_seeds = list(seeds) + [seeds[0]] * (len(texts.texts) * num_samples - rows)
            keys_B = jax.vmap(jax.random.key)(jnp.asarray(key_seeds, jnp.uint32))
            state, used, slots = self._begin(params, texts, max_tokens, checked)
            if num_samples > 1:
                each = np.repeat(np.arange(len(texts.texts)), num_samples)
                state, texts = self._take(state, jnp.asarray(each)), texts.take(each)
            produced, weights = 0, self._prepare(params)
            while produced < max_tokens:
                if used > self._limit:
                    used = self._limit // 2 or 1
                    texts = texts.newest(used)
                    again = self._prefill(params, texts.arrays(used), slots=slots)
                    state = again.replace(count=state.count, finished_B=state.finished_B, history_BS=state.history_BS)
                n = min(CHUNK, max_tokens - produced, self._limit + 1 - used)
                state, tokens, logps = self._generate(weights, state, keys_B, checked, jnp.int32(n), **limits)
                tokens_BN, logprobs_BN = process_allgather((tokens, logps), tiled=True)
                texts.extend(tokens_BN[:, :n])
                produced, used = produced + n, used + n
                chunk = Chunk(tokens_BN[:rows, :n], logprobs_BN[:rows, :n] if logprobs else None)
                ended_B = process_allgather(state.finished_B, tiled=True)
                if finished is not None:
                    ended_B = ended_B.copy()
                    ended_B[:rows] |= np.asarray(finished(chunk.tokens_BN), bool)
                    state = state.replace(finished_B=jax.device_put(ended_B, state.finished_B.sharding))
                yield chunk
                if ended_B[:rows].all():
                    return

        return chunks()

    def beam(
        self,
        params: Any,
        prompts: Tokens,
        *,
        max_tokens: int,
        beams: Beams,
        vocab_limit: int,
        eos_ids: Sequence[int],
        num_return: int = 1,
        sampling: Sampling = GREEDY,
        sources: Tokens = (),
    ) -> list[list[Hypothesis]]:
        """The `num_return` best continuations of each prompt that beam search finds, best first.

        There are fewer if not so many sequences exist. The arguments are those of `stream`; of `sampling` only the
        penalties apply.

        Raises:
            ValueError: as `stream`; a text that may outgrow the context; a `sampling` that draws.
        """
        eos_ids = tuple(eos_ids)
        checked = self._checked(sampling, max_tokens, vocab_limit, eos_ids)
        if checked.temperature is not None:
            raise ValueError(f"temperature is {sampling.temperature}: beam search draws nothing, set it to 0")
        if filters := [name for name in FILTERS if getattr(checked, name)]:
            raise ValueError(f"{', '.join(filters)}: beam search draws nothing, leave such filters at their defaults")
        beams.check()
        if not 1 <= num_return <= beams.size:
            raise ValueError(f"num_return is {num_return}: use 1 to {beams.size}, the beams")
        begin = Prompts.checked(prompts, sources, self.config, self._limit)
        room = self._limit - begin.longest
        if max_tokens > room:
            raise ValueError(
                f"{begin.longest} tokens and {max_tokens} new ones do not fit the context of {self._limit}, which beam "
                f"search does not move: set max_tokens to at most {room}, or shorten the prompts"
            )
        state, _, _ = self._begin(params, self._even(begin), max_tokens, checked)
        limits = {"capacity": round_up(max_tokens, BUCKET), "vocab_limit": vocab_limit, "eos_ids": eos_ids}
        ended = jax.device_get(
            self._search(self._prepare(params), state, checked, beams, jnp.int32(max_tokens), **limits)
        )
        return [
            [
                Hypothesis(ended.tokens_BWN[b, w, : ended.lengths_BW[b, w]].tolist(), float(ended.scores_BW[b, w]))
                for w in range(num_return)
                if ended.scores_BW[b, w] > -np.inf
            ]
            for b in range(len(prompts))
        ]

    def _even(self, prompts: Prompts) -> Prompts:
        """A copy with the first row repeated until the mesh divides the batch evenly."""
        parts, rows = shards(self.rules.batch, dict(jax.sharding.get_abstract_mesh().shape)), len(prompts.texts)
        return prompts.take([*range(rows), *[0] * (-rows % parts)])

    def _begin(
        self, params: Any, prompts: Prompts, max_tokens: int, sampling: Sampling
    ) -> tuple[DecodeState, int, int]:
        """The state after the prompts, the number of slots used, and of all slots."""
        # Padding must not push the end of the text out of a context that has room for it.
        width = min(round_up(prompts.longest, BUCKET), max(prompts.longest, self._limit - max_tokens))
        # One slot more than the context: the token after a full context is drawn before the window moves.
        slots = min(self._limit + 1, round_up(width + max_tokens, BUCKET))
        state = self._prefill(params, prompts.arrays(width), slots=slots)
        if sampling.needs_history:
            history = prompts.history(round_up(width + max_tokens, BUCKET))
            state = state.replace(history_BS=jnp.asarray(history))
        return state, width, slots

    def _start(self, params: Any, arrays: dict[str, jax.Array], slots: int) -> DecodeState:
        source_length = arrays["source_BS"].shape[1] if "source_BS" in arrays else 0
        cache = empty_cache(self.config, self.rules, len(arrays["ids_BT"]), slots, source_length)
        prefix = {"prefix_BT": arrays["segments_BT"]} if self.config.prefix_lm else {}
        return prefill(self.model, params, cache=cache, **arrays, **prefix)

    def _checked(self, sampling: Sampling, max_tokens: int, vocab_limit: int, eos_ids: tuple[int, ...]) -> Sampling:
        V = self.config.vocab_size
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1, and whole")
        if not 1 <= vocab_limit <= V:
            raise ValueError(f"vocab_limit is {vocab_limit}: use 1 to {V}, the vocabulary")
        if any(not 0 <= eos < vocab_limit for eos in eos_ids):
            raise ValueError(f"eos_ids are {eos_ids}: they must be from 0 to {vocab_limit - 1}, ids that may be drawn")
        checked = sampling.checked(V)
        if (checked.min_tokens or 0) > max_tokens:
            raise ValueError(f"min_tokens is {checked.min_tokens}, more than max_tokens, {max_tokens}: lower it")
        return checked


def _allowed(
    logits_BV: jax.Array, state: DecodeState, sampling: Sampling, vocab_limit: int, eos_ids: tuple[int, ...]
) -> jax.Array:
    """Logits after the penalties, -inf from `vocab_limit` on."""
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < vocab_limit, logits_BV, -jnp.inf)
    return penalize(logits_BV, sampling, state.history_BS, state.count, eos_ids)
