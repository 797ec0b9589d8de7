"""Optimisers and learning-rate schedules by name, from Optax and `train.muon`."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.parameters import Weight
from model.sharding import ShardingRules
from train.adafactor import scale_by_adafactor
from train.muon import matrices, orthogonalize

OPTIMIZERS = ("adamw", "sgd", "adafactor", "lion", "muon")
MOMENTS = ("float32", "bfloat16")
BF16_UNIT = 2.0**-7  # of 1: an average that moves by this share rests, rounded, at up to twice what it averages
DECAYS = {"adamw": ("b1", "b2"), "sgd": ("b1",), "lion": ("b2",), "muon": ("muon_momentum", "b1", "b2")}  # of moments
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt", "wsd")
TRANSFERRED = ("adamw", "lion")  # by model.base_width
DECAYED_ROLES = ("kernel", "embedding")  # biases and norm scales are not pulled to zero


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser and its schedule. A rate of step n is what update n uses, counted from 0.

    Raises:
        ValueError: an unknown name, or a number outside its range.
    """

    name: str  # adamw | sgd | adafactor | lion | muon (hidden matrices; AdamW for the rest)
    peak_lr: float  # highest learning rate
    schedule: str  # constant | cosine | linear | inverse_sqrt | wsd (warmup, stable, decay)
    warmup_steps: int  # linear up to peak_lr
    final_lr_fraction: float  # last rate over peak_lr, for cosine, linear and wsd
    decay_fraction: float  # part of all steps that wsd decays in, at the end
    b1: float  # momentum of SGD and Lion, first moment of AdamW; Adafactor has none
    b2: float  # second moment of AdamW, and of Lion's average
    epsilon: float  # of AdamW, outside the root
    moments_dtype: str  # float32 | bfloat16: how momentum and averages of gradients are kept between the steps
    stochastic_rounding: bool  # what is kept in bf16, moments or parameters, is rounded by chance, unbiased
    offload: bool  # moments lie in the host's memory and come to the device for the update
    muon_momentum: float  # of Muon's matrices; b1, b2 and epsilon are then those of the rest
    weight_decay: float  # of kernels and embeddings, times the learning rate
    clip_norm: float  # largest global gradient norm; 0 = no clipping

    def __post_init__(self) -> None:
        choices = (("name", OPTIMIZERS), ("schedule", SCHEDULES), ("moments_dtype", MOMENTS))
        for field, allowed in choices:
            if getattr(self, field) not in allowed:
                raise ValueError(f"optimizer.{field} is {getattr(self, field)!r}: use one of {', '.join(allowed)}")
        for field in ("b1", "b2", "muon_momentum"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"optimizer.{field} is {getattr(self, field)}: it must be at least 0 and below 1")
        self._check_moments()
        for field in ("final_lr_fraction", "decay_fraction"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"optimizer.{field} is {getattr(self, field)}: it must be from 0 to 1")
        for field in ("peak_lr", "warmup_steps", "weight_decay", "clip_norm", "epsilon"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"optimizer.{field} is {getattr(self, field)}: it must be finite and not negative")

    def _check_moments(self) -> None:
        """There are moments to keep elsewhere, and averages in bf16 move."""
        default = {"moments_dtype": "float32", "offload": False}
        for field, value in default.items():
            if getattr(self, field) != value and self.name == "sgd" and not self.b1:
                raise ValueError(
                    f"optimizer.{field} is {getattr(self, field)!r}: SGD with optimizer.b1=0 keeps no moments. "
                    f"Use {value}, or a b1 above 0"
                )
        if self.moments_dtype == "float32" or self.stochastic_rounding:
            return
        if self.name == "adafactor":
            raise ValueError(
                "optimizer.moments_dtype is 'bfloat16': the averages of Adafactor move by step^-0.8 of the way, from "
                f"step {round(BF16_UNIT**-1.25)} on less than bf16 resolves ({BF16_UNIT:.1g}), and would stand still. "
                "Set optimizer.stochastic_rounding=True, or moments_dtype=float32"
            )
        for field in DECAYS[self.name]:
            if 1 - getattr(self, field) < BF16_UNIT:
                raise ValueError(
                    f"optimizer.moments_dtype is 'bfloat16' with {field} {getattr(self, field)}: its average moves by "
                    f"{1 - getattr(self, field):.2g} of the way a step, less than bf16 resolves ({BF16_UNIT:.1g}), and "
                    f"would stand still. Set optimizer.stochastic_rounding=True, a {field} of at most "
                    f"{1 - BF16_UNIT:.3g}, or moments_dtype=float32"
                )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each of `steps` updates.

    Raises:
        ValueError: a warmup that leaves no step, or phases that do not fit.
    """
    c, peak, last = config, config.peak_lr, config.peak_lr * config.final_lr_fraction
    if c.schedule != "constant" and c.warmup_steps >= steps:
        raise ValueError(
            f"optimizer.warmup_steps {c.warmup_steps} leaves none of the {steps} train.steps to schedule "
            f"{c.schedule!r}: use a warmup below {steps}"
        )
    # Update n of the warmup has (n + 1) / warmup_steps of the peak: none is wasted on a rate of 0.
    warmup = optax.linear_schedule(peak / max(c.warmup_steps, 1), peak, max(c.warmup_steps - 1, 1))
    after = steps - c.warmup_steps
    main: optax.Schedule
    if c.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after, alpha=c.final_lr_fraction)
    elif c.schedule == "linear":
        main = optax.linear_schedule(peak, last, after)
    elif c.schedule == "inverse_sqrt":
        shift = max(c.warmup_steps, 1)

        def inverse_sqrt(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
            return peak * (shift / (shift + jnp.maximum(count, 0))) ** 0.5

        main = inverse_sqrt
    elif c.schedule == "wsd":
        decay = round(c.decay_fraction * steps)
        if decay > after:
            raise ValueError(
                f"optimizer.warmup_steps {c.warmup_steps} and {decay} steps of decay do not fit in {steps} train.steps"
            )
        stable = optax.constant_schedule(peak)
        main = optax.join_schedules([stable, optax.linear_schedule(peak, last, max(decay, 1))], [after - decay])
    else:
        main = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, main], [c.warmup_steps]) if c.warmup_steps else main


def make_optimizer(
    config: OptimizerConfig, weights: Any, rules: ShardingRules, base_width: int = 0
) -> optax.GradientTransformation:
    """The direction of an update: the step clips before it and multiplies by minus the learning rate after it.

    `weights` is the tree of declared `Weight`s, laid out by `rules`: what decays goes by their role.
    From a `base_width` on, the rate of hidden matrices falls with the width, their decay does not.

    Raises:
        ValueError: a `base_width` for an optimiser whose updates are not of the size of the learning rate.
    """
    c = config
    scale = {
        "adamw": lambda: optax.scale_by_adam(c.b1, c.b2, c.epsilon),
        "lion": lambda: optax.scale_by_lion(c.b1, c.b2),
        "sgd": lambda: optax.trace(c.b1) if c.b1 else optax.identity(),
        "adafactor": lambda: scale_by_adafactor(weights),
        "muon": lambda: _muon(c, weights, rules),
    }[c.name]()
    decayed = jax.tree.map(lambda weight: weight.role in DECAYED_ROLES, weights)
    if base_width:
        if c.name not in TRANSFERRED:
            raise ValueError(
                f"optimizer.name is {c.name!r}: the rates of model.base_width are those of {' and '.join(TRANSFERRED)}"
            )
        scale = optax.chain(scale, _by_width(weights, rules, base_width))
    return optax.chain(_kept(scale, c.moments_dtype), optax.add_decayed_weights(c.weight_decay, mask=decayed))


def _by_width(weights: Any, rules: ShardingRules, base_width: int) -> optax.GradientTransformation:
    """Hidden matrices move by base_width / width of the rate (Yang et al. 2022, table 8: Adam)."""

    def ratio(weight: Weight) -> float:
        return base_width / weight.shape[weight.axes.index("embed")] if matrices(weight, rules) else 1.0

    ratios = jax.tree.map(ratio, weights)
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, r: u * r, updates, ratios))


def _kept(optimizer: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Keeps the statistics of `optimizer` in `dtype` and computes in f32. An update returns f32: the step rounds it."""

    def cast(state: Any, to: str) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return optimizer.update(updates, cast(state, "float32"), params)

    return optax.GradientTransformation(lambda params: cast(optimizer.init(params), dtype), update)


def _muon(c: OptimizerConfig, weights: Any, rules: ShardingRules) -> optax.GradientTransformation:
    """Nesterov momentum made orthogonal for hidden matrices; AdamW for embeddings, outputs, norms and biases."""
    parts: dict[Hashable, optax.GradientTransformation] = {
        "muon": optax.chain(optax.trace(c.muon_momentum, nesterov=True), orthogonalize(weights, rules)),
        "adamw": optax.scale_by_adam(c.b1, c.b2, c.epsilon),
    }
    return optax.partition(parts, jax.tree.map(lambda w: "muon" if matrices(w, rules) else "adamw", weights))
