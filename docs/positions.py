"""Six ways to tell positions, trained on as many tokens, then tested at twice the length of their training.

python docs/positions.py [--steps=1100] [--out=runs/positions]

Trains the network of configs/gpt_demo.py once with each kind of position, and scores held-out text in windows of 128
tokens, as in training, and of 256. Writes positions.md; docs/positions.md holds the result of one machine.
"""

import argparse
from pathlib import Path
from typing import Any

import jax

from configs import gpt_demo
from data.corpus import prepare
from data.loader import held_out_batches
from data.objectives.objectives import make_objective
from data.rows import store_rows
from evaluation.held_out import make_evaluator
from launch import train
from launch.experiment import read
from launch.load import load
from model.losses import language_model_loss

KINDS = ("none", "learned", "sinusoidal", "relative", "alibi", "rotary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--out", type=Path, default=Path("runs/positions"))
    options = parser.parse_args()
    lines = ["| positions | windows of 128 | windows of 256 |", "|---|---|---|"]
    for kind in KINDS:
        config = gpt_demo.get_config()
        config.run.dir = str(options.out / kind)
        config.model.positions = kind
        config.model.scale_embeddings = kind == "sinusoidal"  # as in 2017: waves of height 1 would drown the tokens
        config.train.update(steps=options.steps, eval_every=0, sample_prompts=())
        train.run(config)
        length = config.model.max_length
        scores = [f"{score(config, length):.3f}"]
        scores.append("has no rows for them" if kind == "learned" else f"{score(config, 2 * length):.3f}")
        lines.append(f"| {kind} | {' | '.join(scores)} |")
        print("\n".join(lines), flush=True)
    (options.out / "positions.md").write_text("\n".join(lines) + "\n")


def score(config: Any, length: int) -> float:
    """Bits per byte of the held-out text in windows of `length` tokens."""
    experiment, lm = read(config), load(config.run.dir, max_length=length)
    corpus = prepare(experiment.data, report=lambda _: None)
    objective = make_objective(experiment.objective, max_length=length, tokenizer=corpus.tokenizer)
    batches = held_out_batches(store_rows(corpus.held_out, objective), batch_size=8, max_sequences=0)
    with jax.set_mesh(lm.mesh):
        loss = language_model_loss(lm.network)
        evaluate = make_evaluator(loss, {"": list(batches)}, lambda batch: dict(batch), corpus.tokenizer.token_bytes_V)
        return evaluate(lm.params)["eval/bits_per_byte"]


if __name__ == "__main__":
    main()
