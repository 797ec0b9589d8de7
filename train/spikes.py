"""Loss spikes: an update far above those before it is skipped, as `SkipStepOptimizer` of OLMo-core does.

There (allenai/OLMo-core, `optim/skip_step_optimizer.py`, made for OLMo 2) a step is skipped where its loss or its
gradient norm lies more than 6 standard deviations from the mean of the last 128 steps, once there are half as many,
and 20 at least. Two things differ here. Only what lies above the mean is a spike. And the window holds accepted steps
only: there each spike enters it and widens the deviation, so that for 128 steps the next one may pass. The price: where
the data change for good (`data.mixture_stages`), all steps may be skipped, and the run stops after `train.max_skipped`.
"""

import jax
import jax.numpy as jnp
from flax import struct

FEWEST = 20  # accepted steps before the first judgement


class Window(struct.PyTreeNode):
    """Loss and gradient norm of the last accepted steps, a ring; the same on every device."""

    values: jax.Array  # f32 (2, W)
    accepted: jax.Array  # int32 scalar, steps in all


def empty(length: int) -> Window | None:
    """A window of `length` steps; None, which has no leaf in a checkpoint, for 0."""
    return Window(jnp.zeros((2, length), jnp.float32), jnp.int32(0)) if length else None


def check(length: int, sigmas: float, steps: int) -> None:
    """Fails where spikes are to be skipped, but never would be, or would be all the time.

    Raises:
        ValueError: a window that no run of `steps` fills far enough, or not enough standard deviations.
    """
    if length < FEWEST:
        raise ValueError(
            f"train.spike_window is {length}: a spike is told by {FEWEST} accepted steps at least, so it would never "
            f"skip one. Use {FEWEST} or more (128 in OLMo 2), or 0 for none"
        )
    if steps <= needed(length):
        raise ValueError(
            f"train.spike_window {length} tells spikes after {needed(length)} accepted steps, and train.steps is "
            f"{steps}: it would never skip one. Use a shorter window, or 0 for none"
        )
    if not 1 <= sigmas < float("inf"):
        raise ValueError(
            f"train.spike_sigmas is {sigmas}: below 1 it would skip every sixth step or more, use 6 as OLMo 2"
        )


def needed(length: int) -> int:
    """Accepted steps from which on a window of `length` judges."""
    return max(FEWEST, length // 2)


def is_spike(window: Window, loss: jax.Array, norm: jax.Array, sigmas: float) -> jax.Array:
    """Whether a step lies above the mean by more than `sigmas` standard deviations of the window; bool scalar."""
    length = window.values.shape[1]
    filled_W = jnp.arange(length) < window.accepted
    count = jnp.maximum(jnp.minimum(window.accepted, length), 2).astype(jnp.float32)
    mean_2 = jnp.where(filled_W, window.values, 0).sum(1) / count
    squares_2W = jnp.where(filled_W, (window.values - mean_2[:, None]) ** 2, 0)
    deviation_2 = jnp.sqrt(squares_2W.sum(1) / (count - 1))
    above = jnp.stack([loss, norm]) - mean_2 > sigmas * deviation_2
    return above.any() & (window.accepted >= needed(length))


def after(window: Window, loss: jax.Array, norm: jax.Array, accept: jax.Array) -> Window:
    """The window with this step in place of the oldest, if it is accepted."""
    place = window.accepted % window.values.shape[1]
    values = window.values.at[:, place].set(jnp.stack([loss, norm]))
    return Window(jnp.where(accept, values, window.values), window.accepted + accept)
