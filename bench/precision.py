"""What 16-bit storage costs in loss: moments and parameters in bf16, rounded to the nearest number or by chance.

    python bench/precision.py [--steps=400] [--peak_lr=1e-3] [--dir=runs/bench_precision]

The network, corpus and schedule of `bench/muon.py`, AdamW, products in f32 everywhere: what differs is only how the
numbers are kept between two steps. Bytes are those of parameters and moments for each parameter.
"""

import argparse
from pathlib import Path

from muon import held_out_loss, small

VARIANTS = {  # parameters, moments, by chance
    "all f32": ("float32", "float32", False),
    "bf16 moments, nearest": ("float32", "bfloat16", False),
    "bf16 moments, stochastic": ("float32", "bfloat16", True),
    "bf16 parameters, nearest": ("bfloat16", "float32", False),
    "bf16 parameters, stochastic": ("bfloat16", "float32", True),
    "all bf16, nearest": ("bfloat16", "bfloat16", False),
    "all bf16, stochastic": ("bfloat16", "bfloat16", True),
}
BYTES = {"float32": 4, "bfloat16": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--peak_lr", type=float, default=1e-3)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench_precision"))
    options = parser.parse_args()
    print(f"{'kept as':<28}{'bytes':>6}{'held-out loss':>15}", flush=True)
    for name, (params, moments, chance) in VARIANTS.items():
        config = small("adamw", options.peak_lr, options.steps)
        config.model.param_dtype = params
        config.optimizer.update(moments_dtype=moments, stochastic_rounding=chance)
        folder = f"{name.replace(', ', '_').replace(' ', '_')}_{options.peak_lr:g}_{options.steps}"
        loss = held_out_loss(config, options.dir / folder)
        print(f"{name:<28}{BYTES[params] + 2 * BYTES[moments]:>6}{loss:>15.4f}", flush=True)


if __name__ == "__main__":
    from launch.memory import keep_memory

    keep_memory()
    main()
