"""One update: gradients summed over microbatches, clipped, applied, unless something is not finite or a spike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.losses import Batch, LossFn, Sums
from model.sharding import ShardingRules
from train import rounding, spikes
from train.state import State

Metrics = dict[str, jax.Array]
ROUNDING = 0x726F756E  # of the keys of a step, the one for rounding: those of the microbatches are small numbers


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    rules: ShardingRules,
    *,
    microbatches: int,
    clip_norm: float,
    seed: int,
    stochastic_rounding: bool,
    spike_sigmas: float = 6.0,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """A pure `(state, batch) -> (state, metrics)`, for `jax.jit` with shardings and a donated state.

    Metrics (f32 scalars): `loss` (nats per predicted token), `grad_norm` (before clipping), `learning_rate`,
    `tokens` (predicted tokens of the batch), `skipped` (1 where loss or gradient was not finite or a spike: the step
    counts, parameters and optimiser stay as they were), of a state with a window `spikes` (1 where it was a spike:
    more than `spike_sigmas` standard deviations above the mean), and of a network with experts those of
    `RoutingSums.metrics`.
    """
    rounded = rounding.stochastic if stochastic_rounding else rounding.nearest

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, sums = gradients(loss_fn, rules, state.params, batch, key, microbatches)
        loss = sums.loss / sums.weight
        with jax.named_scope("update"):
            grads = jax.tree.map(lambda g: g / sums.weight, grads)
            norm = optax.tree.norm(grads)
            if clip_norm:
                factor = clip_norm / jnp.maximum(norm, clip_norm)
                grads = jax.tree.map(lambda g: g * factor, grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            rate = jnp.asarray(schedule(state.step), jnp.float32)
            params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
            accept = jnp.isfinite(loss) & jnp.isfinite(norm)
            window, spike = state.spikes, None
            if window is not None:
                spike = accept & spikes.is_spike(window, loss, norm, spike_sigmas)
                accept = accept & ~spike
                window = spikes.after(window, loss, norm, accept)
            old = (state.params, state.opt_state)
            new = rounded((params, opt_state), old, jax.random.fold_in(key, ROUNDING))
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, old)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": sums.weight,
            "skipped": 1.0 - accept.astype(jnp.float32),
            **({} if spike is None else {"spikes": spike.astype(jnp.float32)}),
            **({} if sums.routing is None else sums.routing.metrics(sums.weight)),
        }
        return State(state.step + 1, params, opt_state, window), metrics

    return train_step


def gradients(
    loss_fn: LossFn, rules: ShardingRules, params: Any, batch: Batch, key: jax.Array, microbatches: int
) -> tuple[Any, Sums]:
    """Gradient of the summed objective, and the sums, over all microbatches; accumulated in f32.

    Not `optax.MultiSteps`: that averages averages, which is wrong where microbatches differ in predicted tokens.
    """

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        sums = loss_fn(params, batch, key)
        return sums.objective, sums

    grad_fn = jax.grad(objective, has_aux=True)
    if microbatches == 1:
        return grad_fn(params, batch, key)

    def split(x_BT: jax.Array) -> jax.Array:
        # Every microbatch takes every m-th row, so that each device keeps the rows that it has.
        x_MBT = jnp.swapaxes(x_BT.reshape(-1, microbatches, *x_BT.shape[1:]), 0, 1)
        return jax.lax.with_sharding_constraint(x_MBT, jax.sharding.PartitionSpec(None, *rules.spec("batch", "length")))

    def accumulate(carry: tuple[Any, Sums], microbatch: tuple[jax.Array, Batch]) -> tuple[tuple[Any, Sums], None]:
        index, batch = microbatch
        grads, sums = grad_fn(params, batch, jax.random.fold_in(key, index))
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), carry, (grads, sums)), None

    batches = jax.tree.map(split, batch)
    shapes = jax.eval_shape(loss_fn, params, jax.tree.map(lambda x_MBT: x_MBT[0], batches), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (params, shapes))
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(microbatches), batches))
    return grads, sums
