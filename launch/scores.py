"""What a run shows of what it has learnt: held-out scores, samples, and a last word."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from data.corpus import Corpus
from data.loader import Batch, held_out_batches
from data.objectives.examples import Objective
from evaluation.ask import AnyModel, ask
from evaluation.held_out import make_evaluator
from launch.experiment import Experiment
from launch.program import Program
from launch.rows import held_out_rows
from studies.plot import plot_runs
from train.console import Console, duration
from train.mesh import place_batch
from train.peers import peers
from train.records import read_metrics

# Objectives that predict text token by token, whose loss is a length in bits.
CODES = ("causal_lm", "prefix_lm")


def placer(program: Program, global_batch: int | None = None) -> Callable[[Any], dict[str, jax.Array]]:
    """Rows in the memory of this process, as `place_batch` takes them, to arrays on the mesh."""
    return lambda batch: place_batch(batch, program.batch_sharding, global_batch)


def evaluator(experiment: Experiment, program: Program, corpus: Corpus) -> Callable[..., dict[str, float]]:
    """`evaluate(params, tick)` on the held-out text, which calls `tick` at each batch."""
    batches = held_out(experiment, program.objective, corpus, experiment.train.microbatches)
    sizes = program.tokenizer.token_bytes_V if experiment.objective.name in CODES else None
    return make_evaluator(program.loss_fn, batches, placer(program), sizes)


def held_out(
    experiment: Experiment, objective: Objective, corpus: Corpus, microbatches: int = 1
) -> dict[str, list[Batch]]:
    """Held-out batches of each part: of `train.eval_sequences` rows in all, as many of each as its size says."""
    rows, most = held_out_rows(experiment, objective, corpus), experiment.train.eval_sequences
    total = sum(map(len, rows.values()))
    sequences = {name: max(1, round(most * len(part) / total)) if most else 0 for name, part in rows.items()}
    size = experiment.train.global_batch // microbatches
    return {
        name: list(held_out_batches(part, batch_size=size, max_sequences=sequences[name]))
        for name, part in rows.items()
    }


def sampler(experiment: Experiment, program: Program, folder: Path, console: Console) -> Callable[[Any, int], None]:
    """`sample(params, step)`: answers the prompts of the config with the parameters of the moment, on their mesh."""
    lm = ask(program.config, None, program.tokenizer, program.mesh, experiment.rules)
    check_prompts(lm, experiment)

    def sample(params: Any, step: int) -> None:
        lm.params = params
        write_samples(lm, experiment, folder, step, console)

    return sample


def check_prompts(lm: AnyModel, experiment: Experiment) -> None:
    """Raises ValueError for a prompt that the model cannot answer: now, not after the last step."""
    for prompt in experiment.train.sample_prompts:
        try:
            lm.check(prompt)
        except ValueError as error:
            raise ValueError(f"train.sample_prompts: {error}") from error


def write_samples(lm: AnyModel, experiment: Experiment, folder: Path, step: int, console: Console) -> None:
    """The prompts of the config with what `lm` makes of them, on the console and in samples.md."""
    t = experiment.train
    if not t.sample_prompts:
        return
    options = {"max_tokens": t.sample_tokens, "temperature": t.sample_temperature, "seed": experiment.seed}
    texts = lm.complete(t.sample_prompts, **options)
    if not peers().first:
        return
    for number, text in enumerate(texts, 1):
        console.say(f"\n--- sample {number}\n{text}\n")
    with open(folder / "samples.md", "a", encoding="utf-8") as file:
        file.write(f"## Step {step}\n\n" + "\n".join(f"```\n{text}\n```\n" for text in texts) + "\n")


def farewell(console: Console, folder: Path, experiment: Experiment, seconds: float, saved: Path) -> None:
    """Scores, picture, and what to do next."""
    last = [record for record in read_metrics(folder) if "eval/loss" in record][-1]
    picture = plot_runs([folder], folder / "loss.png")
    example = {"encoder": "a <mask>", "encoder_decoder": "a <extra_0>"}.get(experiment.model.architecture, "def ")
    text, run = next(iter(experiment.train.sample_prompts), example), shlex.quote(str(folder))
    prompt = json.dumps(text, ensure_ascii=False)
    bits = f"   {last['eval/bits_per_byte']:.3f} bits per byte" if "eval/bits_per_byte" in last else ""
    ask_it = {
        "encoder": f'tessera.load("{folder}").fill({prompt})',
        "encoder_decoder": f'tessera.load("{folder}").fill({prompt}, max_tokens=50)',
    }.get(experiment.model.architecture, f'tessera.load("{folder}").generate({prompt}, max_tokens=50)')
    draw = "" if experiment.model.architecture == "encoder" else " --max_tokens=200 --top_k=50"
    samples = folder / "samples.md" if experiment.train.sample_prompts else "none: train.sample_prompts is empty"
    lines = [
        f"\nheld-out loss {last['eval/loss']:.4f} nats/token   perplexity {last['eval/perplexity']:.2f}{bits}   "
        f"after {last['step']} step{'s' * (last['step'] != 1)}, {duration(seconds)}",
        f"loss plot    {picture}",
        f"saved        {saved}",
        f"samples      {samples}\n",
        "next:",
        f"  tessera generate --run={run} --prompt={in_shell(text)}{draw}",
        "  tessera train --config=… --config.run.dir=… --config.optimizer.peak_lr=1e-3   # another run",
        f"  tessera plot {run} …   # and their curves in one picture",
        f"  python -c {shlex.quote(f'import tessera; print({ask_it})')}",
    ]
    console.say("\n".join(lines))


def in_shell(text: str) -> str:
    """A text as bash and zsh read it back: in double quotes, or with escapes where these would not keep it."""
    if text.isprintable() and not set(text) & set('"\\$`!'):
        return f'"{text}"'
    return "$'" + repr(f'"{text}')[2:]  # the quote makes Python choose single ones
