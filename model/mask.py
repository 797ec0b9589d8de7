"""Which keys a query sees, as a description: each implementation of attention builds from it what it needs."""

import jax
import jax.numpy as jnp
from flax import struct

from model.layers import capped

MASKED = -1e30  # finite: a query that sees no key must not become NaN


class MaskSpec(struct.PyTreeNode):
    """Which keys a query sees: those of its own segment, and where `causal`, those at or before it or in the prefix.

    A *slot* is the place of a token in its row. Key s stands in slot s and query t in slot t, or `query_offset + t`
    where that is given; where tokens are not in order, the slots themselves are given. Segment 0 is padding. With a
    `window`, a query sees only the last `window` slots up to its own.
    """

    causal: bool = struct.field(pytree_node=False, default=True)
    window: int = struct.field(pytree_node=False, default=0)
    query_offset: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    prefix_BS: jax.Array | None = None  # not 0: a key that every query of its segment sees
    query_slots_T: jax.Array | None = None
    key_slots_S: jax.Array | None = None

    def allowed(self, T: int, S: int) -> jax.Array | None:
        """The mask as booleans, (1 or B, 1, T, S), or None where every query sees every key."""
        allowed = None
        ahead_TS = self.key_slots(S)[None, :] - self.query_slots(T)[:, None]
        if self.causal:
            allowed = (ahead_TS <= 0)[None, None]
            if self.prefix_BS is not None:
                allowed = allowed | (self.prefix_BS != 0)[:, None, None, :]
        if self.window:
            near = (ahead_TS > -self.window)[None, None]
            if not self.causal:
                near &= (ahead_TS < self.window)[None, None]
            allowed = near if allowed is None else allowed & near
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            same = (self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :])[:, None]
            allowed = same if allowed is None else allowed & same
        return allowed

    def query_slots(self, T: int) -> jax.Array:
        """int32 (T,)."""
        if self.query_slots_T is not None:
            return self.query_slots_T
        return jnp.arange(T) + (0 if self.query_offset is None else self.query_offset)

    def key_slots(self, S: int) -> jax.Array:
        """int32 (S,)."""
        return jnp.arange(S) if self.key_slots_S is None else self.key_slots_S

    @property
    def in_order(self) -> bool:
        """Whether query t and key t are in slot t."""
        return self.query_offset is None and self.query_slots_T is None and self.key_slots_S is None

    def part(self, start: int, end: int) -> "MaskSpec":
        """The mask of queries `start` to `end` over keys 0 to `end`; only for tokens in order, without prefix."""
        queries = None if self.query_segments_BT is None else self.query_segments_BT[:, start:end]
        keys = None if self.key_segments_BS is None else self.key_segments_BS[:, :end]
        return MaskSpec(self.causal, self.window, jnp.int32(start), queries, keys)


def final_scores(scores_BGRTS: jax.Array, softcap: float, bias_1HTS: jax.Array | None, mask: MaskSpec) -> jax.Array:
    """What the softmax takes: products of queries and keys capped, with their bias, and `MASKED` where masked."""
    _, G, R, T, S = scores_BGRTS.shape
    scores_BGRTS = capped(scores_BGRTS, softcap)
    if bias_1HTS is not None:
        scores_BGRTS += bias_1HTS.reshape(1, G, R, T, S)
    allowed = mask.allowed(T, S)
    return scores_BGRTS if allowed is None else jnp.where(allowed[:, :, None], scores_BGRTS, MASKED)
