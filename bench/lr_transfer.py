"""Where the best learning rate lies at several widths, with and without muP (`model.base_width`).

    python bench/lr_transfer.py [--widths=32,64,128] [--rates=5e-3,1e-2,2e-2,4e-2] [--steps=200]

Two layers, heads of 16, bytes of the built-in corpus, the schedule of `bench/muon.py`, AdamW. Prints held-out loss by
width and rate, the best of each row marked: under muP, whose base is the first width, it should stay in one column.
"""

import argparse
from pathlib import Path

from muon import held_out_loss, small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64,128")
    parser.add_argument("--rates", default="5e-3,1e-2,2e-2,4e-2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench_lr_transfer"))
    options = parser.parse_args()
    widths, rates = [int(w) for w in options.widths.split(",")], [float(r) for r in options.rates.split(",")]
    print(f"{'width':<16}" + "".join(f"{rate:>10g}" for rate in rates), flush=True)
    for width in widths:
        for base in [0] if width == widths[0] else [0, widths[0]]:
            losses = []
            for rate in rates:
                config = small("adamw", rate, options.steps)
                config.model.update(embed_dim=width, num_heads=width // 16, num_layers=2, base_width=base)
                config.data.tokenizer = "byte"
                config.train.update(global_batch=16, eval_sequences=200)
                losses.append(held_out_loss(config, options.dir / f"{width}_{base}_{rate:g}_{options.steps}"))
            cells = "".join(f"{loss:>9.3f}{'*' if loss == min(losses) else ' '}" for loss in losses)
            print(f"{width:>5} {'muP' if base else 'standard':<10}{cells}", flush=True)


if __name__ == "__main__":
    from launch.memory import keep_memory

    keep_memory()
    main()
