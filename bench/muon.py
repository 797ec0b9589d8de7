"""Muon beside AdamW on the built-in corpus: held-out loss by steps, each with a learning rate of its own.

    python bench/muon.py [--steps=400] [--short=300] [--adamw=1e-3,3e-3,1e-2] [--muon=…] [--dir=runs/bench_muon]

AdamW trains `--steps` steps at each of its rates, Muon `--short` steps at each of its own, every run with a whole
schedule of its own length. Says which part of AdamW's steps Muon used, and whether its best run ends below AdamW's.
Runs that are there already are read, not repeated. Counts steps, not seconds: the load of the machine is no matter.
"""

import argparse
from pathlib import Path

from ml_collections import ConfigDict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--short", type=int, default=300)
    parser.add_argument("--adamw", default="1e-3,3e-3,1e-2")
    parser.add_argument("--muon", default="1e-3,3e-3,1e-2")
    parser.add_argument("--dir", type=Path, default=Path("runs/bench_muon"))
    options = parser.parse_args()
    best = {}
    print(f"{'optimiser':<10}{'peak_lr':>9}{'steps':>7}{'held-out loss':>15}", flush=True)
    for name, steps, rates in (("adamw", options.steps, options.adamw), ("muon", options.short, options.muon)):
        for rate in map(float, rates.split(",")):
            loss = held_out_loss(small(name, rate, steps), options.dir / f"{name}_{rate:g}_{steps}")
            best[name] = min(best.get(name, float("inf")), loss)
            print(f"{name:<10}{rate:>9g}{steps:>7}{loss:>15.4f}", flush=True)
    verdict = "is at or below" if best["muon"] <= best["adamw"] else "stays above"
    print(
        f"Muon's best, {best['muon']:.4f} in {options.short / options.steps:.2f} of the steps, {verdict} "
        f"AdamW's best, {best['adamw']:.4f}"
    )


def small(name: str, rate: float, steps: int) -> ConfigDict:
    """`configs/gpt_demo.py`, narrower: 128 wide, 4 layers, rows of 128 tokens."""
    from configs import gpt_demo

    config = gpt_demo.get_config()
    config.data.tokenizer_vocab = 2048
    config.model.update(embed_dim=128, num_heads=4)
    config.optimizer.update(name=name, peak_lr=rate, warmup_steps=steps // 10)
    config.train.update(steps=steps, eval_every=0, eval_sequences=400, sample_prompts=())
    return config


def held_out_loss(config: ConfigDict, folder: Path) -> float:
    """Nats per token of held-out text at the end of the run in `folder`, which is made where it is not there."""
    from rich.console import Console as Terminal

    from launch.train import run
    from train.console import Console
    from train.records import read_metrics

    folder.parent.mkdir(parents=True, exist_ok=True)
    config.run.update(dir=str(folder), tensorboard=False)
    config.checkpoint.update(every_steps=0, every_minutes=0.0, keep_best=0)
    with open(f"{folder}.log", "w") as log:
        run(config, console=Console(Terminal(file=log, width=160)))
    return read_metrics(folder)[-1]["eval/loss"]


if __name__ == "__main__":
    from launch.memory import keep_memory

    keep_memory()
    main()
