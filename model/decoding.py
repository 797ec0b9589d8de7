"""Generation with a key-value cache: one pure function that continues a state by some tokens, and its driver."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from model.attention import Cache
from model.config import ModelConfig
from model.sharding import ShardingRules, shards
from model.transformer import apply

CHUNK = 16  # tokens between two looks at the output
BUCKET = 32  # prompts and caches are padded to multiples of this, so that few shapes are compiled


class Sampling(struct.PyTreeNode):
    """How the next token is drawn. Temperature 0 takes the most likely one; top_k 0 allows all."""

    temperature: jax.Array | float = 1.0
    top_k: int = struct.field(pytree_node=False, default=0)

    def validate(self, vocab_size: int) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: use 0 (greedy) or a positive number")
        if not 0 <= self.top_k <= vocab_size:
            raise ValueError(f"top_k is {self.top_k}: use 0 (off) to {vocab_size}, the vocabulary")


class DecodeState(struct.PyTreeNode):
    """A batch in the middle of generation."""

    cache: Cache
    logits_BV: jax.Array  # of the next token
    position_B: jax.Array  # of the next token
    finished_B: jax.Array  # has ended
    count: jax.Array  # tokens generated so far


def empty_cache(config: ModelConfig, rules: ShardingRules, batch: int, slots: int) -> Cache:
    """A cache with room for `slots` tokens a row, in the compute type."""
    c = config.resolved()
    shape = (c.num_layers, batch, c.num_kv_heads, slots, c.head_dim)
    zeros = rules.constrain(jnp.zeros(shape, c.compute_dtype), "layers", "batch", "kv_heads", "length", "head_dim")
    return Cache(zeros, zeros, jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))


def prefill(model: nn.Module, params: Any, ids_BT: jax.Array, segments_BT: jax.Array, cache: Cache) -> DecodeState:
    """Reads left-padded prompts (segment 0 is padding) into an empty cache."""
    positions_BT = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    output = apply(model, params, ids_BT, segments_BT=segments_BT, positions_BT=positions_BT, cache=cache)
    B = ids_BT.shape[0]
    return DecodeState(
        output.cache, output.logits_BTV[:, -1], positions_BT[:, -1] + 1, jnp.zeros(B, bool), jnp.int32(0)
    )


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token id a row. Each row has a key of its own, so its draw does not depend on the other rows."""
    if sampling.top_k:
        kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    cold = sampling.temperature <= 0.0
    scaled_BV = logits_BV / jnp.where(cold, 1.0, sampling.temperature)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
    return jnp.where(cold, jnp.argmax(logits_BV, axis=-1), drawn_B).astype(jnp.int32)


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
    eos_id: int | None,
) -> tuple[DecodeState, jax.Array]:
    """Continues each row by `num_tokens` (at most `capacity`) tokens: new state, tokens (B, capacity), pure.

    Token n of a row is drawn with `fold_in(key, n)`. Ids from `vocab_limit` on (padding of the embedding table) are
    never drawn. A finished row repeats `eos_id`.
    """
    B, V = state.logits_BV.shape

    def step(i: jax.Array, carry: tuple[DecodeState, jax.Array]) -> tuple[DecodeState, jax.Array]:
        state, tokens_BN = carry
        logits_BV = jnp.where(jnp.arange(V) < vocab_limit, state.logits_BV, -jnp.inf)
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.count)
        token_B = sample(logits_BV, step_keys_B, sampling)
        finished_B = state.finished_B
        if eos_id is not None:
            token_B = jnp.where(finished_B, eos_id, token_B)
            finished_B = finished_B | (token_B == eos_id)
        output = apply(model, params, token_B[:, None], positions_BT=state.position_B[:, None], cache=state.cache)
        tokens_BN = jax.lax.dynamic_update_slice(tokens_BN, token_B[:, None], (0, i))
        new = DecodeState(output.cache, output.logits_BTV[:, 0], state.position_B + 1, finished_B, state.count + 1)
        return new, tokens_BN

    return jax.lax.fori_loop(0, num_tokens, step, (state, jnp.zeros((B, capacity), jnp.int32)))


class Decoder:
    """Generation by one network: keeps the compiled functions, pads prompts, moves the window when it is full."""

    def __init__(self, model: nn.Module, config: ModelConfig, rules: ShardingRules | None = None) -> None:
        self.model, self.config, self.rules = model, config.resolved(), rules or ShardingRules()
        self._prefill = jax.jit(self._start, static_argnames="slots")
        self._generate = jax.jit(
            functools.partial(generate, model),
            static_argnames=("capacity", "vocab_limit", "eos_id"),
            donate_argnames="state",
        )

    def stream(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        vocab_limit: int,
        eos_id: int | None,
    ) -> Iterator[np.ndarray]:
        """Yields the next tokens of all rows, int32 (B, n), until `max_tokens` or the end of every row.

        A row that has ended repeats `eos_id`. When the context is full, its younger half is read anew and generation
        goes on. As long as it is not full, row b depends on its prompt and `seeds[b]` alone, not on the other rows.

        Raises:
            ValueError: no prompt, an empty prompt, or one that is longer than the context.
        """
        self._check(prompts, max_tokens, sampling)  # here, not at the first `next`

        def chunks() -> Iterator[np.ndarray]:
            rows = len(prompts)
            parts = shards(self.rules.batch, dict(jax.sharding.get_abstract_mesh().shape))
            padding = -rows % parts  # the mesh cuts the batch into equal parts
            texts = [list(prompt) for prompt in prompts] + [list(prompts[0])] * padding
            keys_B = jax.vmap(jax.random.key)(jnp.asarray(list(seeds) + [seeds[0]] * padding, jnp.uint32))
            limit, longest = self.config.max_length, max(map(len, texts))
            # Padding must not push the end of the text out of a context that has room for it.
            width = min(_round_up(longest, BUCKET), max(longest, limit - max_tokens))
            # One slot more than the context: the token after a full context is drawn before the window moves.
            slots = min(limit + 1, _round_up(width + max_tokens, BUCKET))
            state, used = self._read(params, texts, width, slots), width
            produced = 0
            while produced < max_tokens:
                if used > limit:
                    used = limit // 2 or 1
                    texts = [text[-used:] for text in texts]
                    again = self._read(params, texts, used, slots)
                    state = again.replace(count=state.count, finished_B=state.finished_B)
                n = min(CHUNK, max_tokens - produced, limit + 1 - used)
                state, tokens = self._generate(
                    params,
                    state,
                    keys_B,
                    sampling,
                    jnp.int32(n),
                    capacity=CHUNK,
                    vocab_limit=vocab_limit,
                    eos_id=eos_id,
                )
                tokens_BN = np.asarray(jax.device_get(tokens))[:, :n]
                for text, row in zip(texts, tokens_BN, strict=True):
                    text.extend(row.tolist())
                produced, used = produced + n, used + n
                yield tokens_BN[:rows]
                if np.asarray(jax.device_get(state.finished_B))[:rows].all():
                    return

        return chunks()

    def _start(self, params: Any, ids_BT: jax.Array, segments_BT: jax.Array, slots: int) -> DecodeState:
        cache = empty_cache(self.config, self.rules, ids_BT.shape[0], slots)
        return prefill(self.model, params, ids_BT, segments_BT, cache)

    def _read(self, params: Any, texts: list[list[int]], width: int, slots: int) -> DecodeState:
        ids = np.zeros((len(texts), width), np.int32)
        segments = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, width - len(text) :] = text
            segments[row, width - len(text) :] = 1
        return self._prefill(params, jnp.asarray(ids), jnp.asarray(segments), slots=slots)

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: Sampling) -> None:
        sampling.validate(self.config.vocab_size)
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1")
        if not prompts:
            raise ValueError("no prompt was given: pass at least one")
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {number} has no tokens: a decoder needs at least one to start from")
            if len(prompt) > self.config.max_length:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens, the context has {self.config.max_length}: "
                    f"shorten the prompt by {len(prompt) - self.config.max_length} tokens"
                )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
