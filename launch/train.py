"""`tessera train`: everything that a config names, put together and run."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.corpus import Corpus, prepare
from data.loader import BatchLoader, held_out_batches
from data.objectives import causal_lm
from evaluation.held_out import make_evaluator
from evaluation.language_model import LanguageModel
from launch import header
from launch.experiment import Experiment, read
from launch.leaves import flat
from launch.program import Program, assemble, check
from model.config import ModelConfig, flops_per_token
from studies.plot import plot_runs
from train.checkpoint import Checkpoints
from train.console import Console, duration
from train.loop import StopSignal, train
from train.mesh import place_batch
from train.meter import Meter, Rates
from train.records import MetricsLog, RunError, compare_configs, environment, open_run, read_metrics, write_json

DONE, START_AGAIN = 0, 75


def run(config: ConfigDict, *, fresh: bool = False, again: str = "", console: Console | None = None) -> int:
    """Trains the experiment of `config` in its run folder, or continues it: the exit code.

    0: all steps are done. 75: stopped by a signal; `again` is the command that continues, for the message.
    """
    console, began = console or Console(), time.monotonic()
    experiment = read(config)
    mesh = check(experiment)  # before anything is written
    with open_run(_folder(experiment, fresh, console)) as folder, jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        # Everything that may be wrong is looked at before the compiler starts.
        corpus = prepare(experiment.data, report=console.say)
        program = assemble(experiment, corpus.tokenizer.vocab_size)
        loader = BatchLoader(
            corpus.train,
            length=program.config.max_length,
            global_batch=experiment.train.global_batch,
            seed=experiment.seed,
            objective=causal_lm,
            prefetch=experiment.data.prefetch,
        )
        evaluate = _evaluator(experiment, program, corpus)
        sample = _sampler(experiment, program, corpus, folder, console)
        checkpoints = Checkpoints(folder / "checkpoints", experiment.checkpoint)
        closing.callback(checkpoints.close)
        done = checkpoints.latest()
        record = _same_run(folder, config, program.config, corpus, experiment, console)
        if done is not None and done >= experiment.train.steps:
            console.say(f"run {folder} is complete: {done} of {experiment.train.steps} steps are done")
            console.say(f"  more: --config.train.steps={2 * done}    anew: --fresh")
            return DONE
        state = None if done is None else checkpoints.restore(done, program.target)
        _write_run(folder, record, corpus)

        compiled, seconds = program.compile()
        rates = _rates(experiment, program)
        header.show(console, program, compiled, seconds, rates, folder, done)
        log = MetricsLog(folder, tensorboard=experiment.run.tensorboard)
        closing.callback(log.close)
        closing.callback(console.stop)
        with StopSignal() as stop:
            state = train(
                state or program.init(experiment.seed),
                compiled,
                loader.iterate(done or 0),
                _placer(program),
                config=experiment.train,
                evaluate=evaluate,
                sample=sample,
                checkpoints=checkpoints,
                meter=Meter(rates, log, console),
                stop=stop,
            )
        console.stop()
        step = int(jax.device_get(state.step))
        if step < experiment.train.steps:
            saved = f"step {step} is saved" if step > (done or 0) else "no new step was done"
            console.say(f"stopped by {stop.name}: {saved}. The run continues with\n  {again or 'the same command'}")
            return START_AGAIN
        _farewell(console, folder, experiment, time.monotonic() - began)
        return DONE


def _folder(experiment: Experiment, fresh: bool, console: Console) -> Path:
    """The run folder; with `fresh`, an old one steps aside: nothing is deleted."""
    folder = Path(experiment.run.dir).expanduser()
    if fresh and folder.exists():
        with open_run(folder):  # refuses while another process trains there
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            os.rename(folder, aside)
        console.say(f"starting over: the old run is now {aside}")
    return folder


def _same_run(
    folder: Path, config: ConfigDict, model: ModelConfig, corpus: Corpus, experiment: Experiment, console: Console
) -> dict[str, Any]:
    """What config.json is to say, once it is clear that the folder is new or holds this very run."""
    path = folder / "config.json"
    fingerprints = {"corpus": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    now = {"config": flat(config), "model": dataclasses.asdict(model), "fingerprints": fingerprints}
    if not path.is_file():
        return now
    saved = json.loads(path.read_text(encoding="utf-8"))
    harmless, other = compare_configs(saved["config"], now["config"])
    before = saved["fingerprints"]
    other += [f"{name}: {before[name]} -> {value}" for name, value in fingerprints.items() if before[name] != value]
    if other:
        raise RunError(
            f"{folder} holds another run:\n  " + "\n  ".join(other) + "\n"
            "Use the old values to continue it, another --config.run.dir beside it, or --fresh to start over"
        )
    for line in harmless:
        console.say(f"changed since the run began: {line}")
    schedule = experiment.optimizer.schedule
    if saved["config"]["train.steps"] != experiment.train.steps and schedule in ("cosine", "linear", "wsd"):
        console.warn(f"the {schedule} schedule now spans {experiment.train.steps} steps: the learning rate jumps")
    return now


def _write_run(folder: Path, record: dict[str, Any], corpus: Corpus) -> None:
    """config.json, the tokeniser, and environment.json with one entry a start."""
    path = folder / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    corpus.tokenizer.save(folder / "tokenizer")
    write_json(path, [*starts, environment()])
    write_json(folder / "config.json", record)


def _rates(experiment: Experiment, program: Program) -> Rates:
    peak = header.peak(program)
    return Rates(
        steps=experiment.train.steps,
        global_batch=experiment.train.global_batch,
        length=program.config.max_length,
        flops_per_token=flops_per_token(program.config, program.config.max_length),
        peak_flops=peak * program.mesh.size if peak else None,
        log_every=experiment.train.log_every,
        max_skipped=experiment.train.max_skipped,
    )


def _placer(program: Program) -> Callable[[Any], dict[str, jax.Array]]:
    return lambda batch: place_batch(batch, program.batch_sharding)


def _evaluator(experiment: Experiment, program: Program, corpus: Corpus) -> Callable[[Any], dict[str, float]]:
    batches = held_out_batches(
        corpus.held_out,
        length=program.config.max_length,
        batch_size=experiment.train.global_batch // experiment.train.microbatches,
        max_sequences=experiment.train.eval_sequences,
        objective=causal_lm,
    )
    return make_evaluator(program.loss_fn, list(batches), _placer(program), corpus.tokenizer.token_bytes_V)


def _sampler(
    experiment: Experiment, program: Program, corpus: Corpus, folder: Path, console: Console
) -> Callable[[Any, int], None]:
    """Continues the prompts of the config with the parameters of the moment, on the mesh of the training."""
    t = experiment.train
    lm = LanguageModel(program.config, None, corpus.tokenizer, program.mesh, experiment.rules)
    # A prompt that the model cannot continue is found now, not after the last step.
    options = {"max_tokens": t.sample_tokens, "temperature": t.sample_temperature, "top_k": 0}
    if t.sample_prompts:
        lm.stream(t.sample_prompts, seeds=[0] * len(t.sample_prompts), **options)

    def sample(params: Any, step: int) -> None:
        lm.params = params
        if not t.sample_prompts:
            return
        prompts, seed = list(t.sample_prompts), experiment.seed
        texts = lm.generate(prompts, max_tokens=t.sample_tokens, temperature=t.sample_temperature, seed=seed)
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        for number, text in enumerate(whole, 1):
            console.say(f"\n--- sample {number}\n{text}\n")
        with open(folder / "samples.md", "a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n" + "\n".join(f"```\n{text}\n```\n" for text in whole) + "\n")

    return sample


def _farewell(console: Console, folder: Path, experiment: Experiment, seconds: float) -> None:
    """Scores, picture, and what to do next."""
    last = [record for record in read_metrics(folder) if "eval/loss" in record][-1]
    picture = plot_runs([folder], folder / "loss.png")
    prompt = next(iter(experiment.train.sample_prompts), "")
    console.say(
        f"\nheld-out loss {last['eval/loss']:.4f} nats/token   perplexity {last['eval/perplexity']:.2f}   "
        f"{last['eval/bits_per_byte']:.3f} bits per byte   after {last['step']} steps, {duration(seconds)}\n"
        f"loss plot    {picture}\n"
        f"checkpoint   {folder / 'checkpoints' / str(last['step'])}\n"
        f"samples      {folder / 'samples.md'}\n\n"
        "next:\n"
        f"  tessera generate --run={folder} --prompt={json.dumps(prompt)} --max_tokens=200 --top_k=50\n"
        f"  tessera train --config=… --config.run.dir=… --config.optimizer.peak_lr=1e-3   # another run\n"
        f"  tessera plot {folder} …   # and their curves in one picture\n"
        f'  python -c \'import tessera; print(tessera.load("{folder}").generate("def ", max_tokens=50))\''
    )
