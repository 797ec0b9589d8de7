"""`tessera history`: every kind of language model on one text, for equal training time, in one picture."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.corpus import Corpus, prepare
from data.loader import BatchLoader
from launch import train
from launch.count import held_out_scores
from launch.experiment import Experiment, read
from launch.program import Program, assemble
from launch.rows import train_rows
from launch.scores import placer
from model.ngram_table import count_ngrams
from model.parameters import named_leaves
from studies.history import history_table, plot_history
from train.console import Console
from train.records import read_metrics, read_object, write_json

NGRAMS = {"unigram": 1, "bigram": 2, "trigram": 3, "4-gram": 4, "5-gram": 5}
# What each network changes in the config, which is the Transformer's.
NETWORKS: dict[str, dict[str, Any]] = {
    "RNN": {"architecture": "rnn", "embed_dim": 256, "num_layers": 1, "norm": "layer"},
    "LSTM": {"architecture": "lstm", "embed_dim": 256, "num_layers": 1, "norm": "layer"},
    "GRU": {"architecture": "gru", "embed_dim": 256, "num_layers": 1, "norm": "layer"},
    "GPT": {},
}
TIMED = 20  # steps that tell how long one takes


def run(config: Any, minutes: float, out: str | Path, console: Console | None = None) -> Path:
    """Counts, trains and scores all of them, and writes history.md and history.png in `out`: the picture's path.

    Each network trains for as many steps as fit `minutes`, judged by some steps that are timed first; the number is
    kept in `out`, so that the same command continues what was interrupted.

    Raises:
        ValueError: no time to train, or a config of something else than a decoder.
    """
    if config.model.architecture != "decoder" or config.objective.name != "causal_lm":
        raise ValueError(
            f"history needs the config of a decoder trained by causal_lm, such as configs/gpt_demo.py, not of an "
            f"{config.model.architecture} trained by {config.objective.name}"
        )
    if minutes <= 0:
        raise ValueError(f"minutes is {minutes}: each network needs some time to train")
    console, folder = console or Console(), Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*_count(config, console), *(_train(config, name, 60 * minutes, folder, console) for name in NETWORKS)]
    write_json(folder / "history.json", rows)
    table = history_table(rows)
    (folder / "history.md").write_text(table + "\n", encoding="utf-8")
    console.say("\n" + table)
    return plot_history(rows, folder / "history.png")


def _count(config: Any, console: Console) -> Iterator[dict[str, Any]]:
    """The n-gram models, all from one table."""
    config = config.copy_and_resolve_references()
    for name, order in NGRAMS.items():
        config.model.update(architecture="ngram", ngram_order=order)
        experiment = read(config)
        if order == 1:
            corpus = prepare(experiment.data, report=console.say)
            began = time.perf_counter()
            size = corpus.tokenizer.vocab_size
            table = count_ngrams(np.asarray(corpus.train.tokens), size, max(NGRAMS.values()))
            seconds = time.perf_counter() - began
        values = held_out_scores(experiment, experiment.model, table, corpus)
        console.say(f"{name}: {values['eval/bits_per_byte']:.3f} bits per byte")
        # A model of order n uses the mass of each n-gram and the rest of each context.
        counted = sum(len(table[f"top_mass_{n}" if n == order else f"mass_{n}"]) for n in range(1, order + 1))
        yield {
            "name": name,
            "weights": counted,
            "seconds": seconds,
            "seconds_asked": None,
            "tokens": corpus.train.num_tokens,
            "bits_per_byte": values["eval/bits_per_byte"],
        }


def _train(config: Any, name: str, seconds: float, folder: Path, console: Console) -> dict[str, Any]:
    """One network as a run of its own."""
    config, run = config.copy_and_resolve_references(), folder / name
    config.run.dir = str(run)
    config.model.update(NETWORKS[name])
    experiment = read(config)
    corpus = prepare(experiment.data, report=lambda _: None)
    program = assemble(experiment, corpus.tokenizer)
    config.train.steps = _steps(experiment, program, corpus, seconds, folder / f"{name}.steps.json", console)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, max(config.train.steps // 10, 1))
    config.train.update(eval_every=0, log_every=max(config.train.steps // 40, 1))
    console.say(f"\n{name}: {config.train.steps} steps")
    if train.run(config, console=console) != train.DONE:
        raise KeyboardInterrupt
    records = read_metrics(run)
    last = records[-1]
    return {
        "name": name,
        "weights": sum(weight.size for weight in named_leaves(program.weights).values()),
        "seconds": last["step"] * float(np.median([r["step_seconds"] for r in records if "step_seconds" in r])),
        "seconds_asked": seconds,
        "tokens": last["tokens"],
        "bits_per_byte": last["eval/bits_per_byte"],
    }


def _steps(
    experiment: Experiment, program: Program, corpus: Corpus, seconds: float, kept: Path, console: Console
) -> int:
    """How many steps take so long: from the file of an earlier start of the same network, or timed."""
    asked = {"seconds_asked": seconds, "model": dataclasses.asdict(program.config), "batch": program.global_batch}
    if kept.is_file():
        found = read_object(kept)
        if all(found.get(name) == value for name, value in asked.items()):
            return found["steps"]
    with jax.set_mesh(program.mesh):
        compiled, _ = program.compile()
        rows = train_rows(experiment, program.objective, corpus)
        loader = BatchLoader(rows, global_batch=program.global_batch, seed=experiment.seed)
        state, place = program.init(experiment.seed), placer(program)
        began = time.perf_counter()
        for step in range(TIMED + 2):
            if step == 2:  # the first ones touch the memory
                began = time.perf_counter()
            state, metrics = compiled(state, place(loader.batch(step)))
            jax.block_until_ready(metrics)
        each = (time.perf_counter() - began) / TIMED
    steps = max(int(seconds / each), 20)
    console.say(f"a step takes {1000 * each:.1f} ms: {steps} steps in {seconds:.0f} s")
    write_json(kept, {**asked, "steps": steps})
    return steps
