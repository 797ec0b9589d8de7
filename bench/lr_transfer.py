"""Where the best learning rate lies at several widths, with and without muP (`model.base_width`).

    python bench/lr_transfer.py [--widths=64,128,256,512] [--seeds=0,1] [--steps=100] [--rate=0.0039]

Two layers, heads of 32, bytes of the Python standard library, AdamW at a constant rate behind 10 steps of warmup. The
first width is the base. Standard networks start with `init_std` = 1 / sqrt(width); those of muP keep that of the base.
The rate is halved and doubled from `--rate` on until the best is between two that are worse: no best is at an edge.
Prints nats a byte, the mean over the seeds, of the last quarter of the steps (each batch is new text when it is read).
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS, LENGTH = 8, 64  # tokens of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,128,256,512")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=2.0**-8)
    options = parser.parse_args()
    widths, seeds = [int(w) for w in options.widths.split(",")], [int(s) for s in options.seeds.split(",")]
    import jax

    from train.mesh import MeshConfig, make_mesh

    one = MeshConfig(data=1, fsdp=1, tensor=1, context=1, expert=1)
    jax.set_mesh(make_mesh(one, jax.devices()[:1]))
    for width in widths:
        for base in [0] if width == widths[0] else [0, widths[0]]:
            train = trainer(width, base, options.steps)
            losses = bracketed(lambda rate, train=train: mean_loss(train, rate, seeds), options.rate)
            print(row(width, base, losses), flush=True)


def row(width: int, base: int, losses: dict[float, float]) -> str:
    best = min(losses, key=losses.__getitem__)
    cells = (f"2^{math.log2(rate):g}: {loss:.3f}{'*' * (rate == best)}" for rate, loss in sorted(losses.items()))
    return f"{width:>5} {'muP' if base else 'standard':<10}{'  '.join(cells)}  best by parabola: {vertex(losses):.2e}"


def bracketed(loss: Callable[[float], float], rate: float) -> dict[float, float]:
    """The losses of rates a factor of 2 apart, from `rate` on, until the best has a worse one on both sides."""
    losses = {rate: loss(rate)}
    while True:
        best = min(losses, key=losses.__getitem__)
        missing = [near for near in (best / 2, best * 2) if near not in losses]
        if not missing:
            return losses
        losses[missing[0]] = loss(missing[0])


def vertex(losses: dict[float, float]) -> float:
    """The rate at the lowest point of the parabola through the best loss and its neighbours, over log2 of the rate."""
    best = min(losses, key=losses.__getitem__)
    low, middle, high = losses[best / 2], losses[best], losses[best * 2]
    return best * 2 ** ((low - high) / (2 * (low - 2 * middle + high)))


def mean_loss(train: Callable[[float, int], np.ndarray], rate: float, seeds: list[int]) -> float:
    """Of the last quarter of the steps. What diverges is infinitely bad."""
    mean = np.mean([losses[-len(losses) // 4 :].mean() for losses in (train(rate, seed) for seed in seeds)])
    return float(mean) if np.isfinite(mean) else math.inf


def trainer(width: int, base: int, steps: int) -> Callable[[float, int], np.ndarray]:
    """`(peak rate, seed) -> loss of each step`, compiled once. The text is the same for all rates and seeds."""
    import jax
    import jax.numpy as jnp

    from configs import defaults
    from launch.experiment import section
    from model import parameters
    from model.build import build
    from model.config import ModelConfig
    from model.losses import language_model_loss
    from model.sharding import ShardingRules
    from train.optimizers import OptimizerConfig, make_optimizer, make_schedule
    from train.state import State, init_state
    from train.step import make_train_step

    config = ModelConfig(
        vocab_size=256, max_length=LENGTH, num_layers=2, embed_dim=width, num_heads=width // 32, mlp_dim=2 * width,
        positions="rotary", norm="rms", bias="none", scan_unroll=0, base_width=base, init_std=(base or width) ** -0.5,
    )  # fmt: skip
    given: Any = defaults.get_config()
    given.optimizer.update(schedule="constant", warmup_steps=10, peak_lr=1.0)
    settings = section(OptimizerConfig, "optimizer", given.optimizer)
    model, rules = build(config), ShardingRules()
    optimizer = make_optimizer(settings, parameters.weights(model), rules, base)
    schedule, loss_fn = make_schedule(settings, steps), language_model_loss(model)
    text_NBT = jnp.asarray(library_bytes(steps))

    @jax.jit
    def run(rate: jax.Array, seed: jax.Array) -> jax.Array:
        step_fn = make_train_step(
            loss_fn,
            optimizer,
            lambda step: rate * schedule(step),
            rules,
            microbatches=1,
            clip_norm=settings.clip_norm,
            seed=0,
            stochastic_rounding=False,
        )

        def step(state: State, text_BT: jax.Array) -> tuple[State, jax.Array]:
            inputs, targets = text_BT[:, :-1], text_BT[:, 1:]
            state, metrics = step_fn(state, {"inputs": inputs, "targets": targets, "weights": jnp.ones(inputs.shape)})
            return state, metrics["loss"]

        return jax.lax.scan(step, init_state(model, optimizer, seed), text_NBT)[1]

    return lambda rate, seed: np.asarray(run(jnp.float32(rate), jnp.uint32(seed)))


def library_bytes(steps: int) -> np.ndarray:
    """(steps, ROWS, LENGTH + 1) ids: pieces of the standard library from places drawn at random."""
    from data.sources.standard_library import library_files, library_sources

    text = np.frombuffer("\n".join(doc.text for doc in library_sources(library_files())).encode(), np.uint8)
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH - 1, (steps, ROWS, 1))
    return text[starts + np.arange(LENGTH + 1)].astype(np.int32)


if __name__ == "__main__":
    from launch.memory import keep_memory

    keep_memory()
    main()
