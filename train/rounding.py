"""Rounding of f32 results to the type that they are stored in: to nearest, or stochastic."""

from typing import Any

import jax
import jax.numpy as jnp


def nearest(tree: Any, like: Any, key: jax.Array) -> Any:
    """Each leaf in the type of its counterpart in `like`. `key` is not used."""
    return jax.tree.map(lambda x, kept: x.astype(kept.dtype), tree, like)


def stochastic(tree: Any, like: Any, key: jax.Array) -> Any:
    """As `nearest`, but bf16 leaves become one of the two neighbours at random, the nearer one more often.

    The mean is the f32 number, so that updates too small for bf16's 8 bits add up over the steps instead of vanishing
    (Gupta et al. 2015, section 3). Bits are drawn by leaf and place: they are the same on any mesh.
    """
    leaves, structure = jax.tree.flatten(tree)
    kept = jax.tree.leaves(like)
    return structure.unflatten(
        _round(x, jax.random.fold_in(key, n)) if old.dtype == jnp.bfloat16 else x.astype(old.dtype)
        for n, (x, old) in enumerate(zip(leaves, kept, strict=True))
    )


def _round(x: jax.Array, key: jax.Array) -> jax.Array:
    """bf16 is the upper half of f32: a random number below one unit of it is added, then the lower half is cut off."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = (bits + jax.random.bits(key, x.shape, jnp.uint16)) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
