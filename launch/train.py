"""`tessera train`: everything that a config names, put together and run."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data.corpus import Corpus, prepare
from data.loader import BatchLoader, held_out_batches
from data.objectives import causal_lm as causal_lm_example
from evaluation.held_out import make_evaluator
from evaluation.language_model import LanguageModel
from launch.experiment import Experiment, read
from launch.leaves import flat
from model import parameters
from model.build import build
from model.config import ModelConfig, flops_per_token
from model.losses import causal_lm
from train import console as show
from train.checkpoint import Checkpoints
from train.console import Console
from train.loop import StopSignal, train
from train.mesh import batch_sharding, check_batch, check_length, make_mesh, place_batch
from train.meter import Meter, Rates
from train.optimizers import make_optimizer, make_schedule
from train.records import MetricsLog, RunError, compare_configs, environment, open_run, write_json
from train.state import State, abstract_state, init_state
from train.step import make_train_step

DONE, START_AGAIN = 0, 75


def run(config: ConfigDict, *, fresh: bool = False, console: Console | None = None) -> int:
    """Trains the experiment of `config` in its run folder, or continues it: the exit code.

    0: all steps are done. 75: stopped by a signal, and the same command continues.
    """
    console = console or Console()
    began = time.monotonic()

    # Check everything that can be checked without data, before anything is written.
    experiment = read(config)
    mesh = make_mesh(experiment.mesh)
    schedule = make_schedule(experiment.optimizer, experiment.train.steps)
    check_batch(mesh, experiment.rules, experiment.train.global_batch, experiment.train.microbatches)
    check_length(mesh, experiment.rules, experiment.model.max_length)

    with open_run(_folder(experiment, fresh, console)) as folder, StopSignal() as stop, jax.set_mesh(mesh):
        # Data and network.
        corpus = prepare(experiment.data, report=console.say)
        model_config = _model_config(experiment, corpus)
        model = build(model_config, experiment.rules)
        weights = parameters.weights(model)
        optimizer = make_optimizer(experiment.optimizer, weights)
        target = abstract_state(model, optimizer, experiment.rules, mesh)
        loss_fn = causal_lm(model)
        place = _placer(batch_sharding(mesh, experiment.rules))
        loader = BatchLoader(
            corpus.train,
            length=model_config.max_length,
            global_batch=experiment.train.global_batch,
            seed=experiment.seed,
            objective=causal_lm_example,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            prefetch=experiment.data.prefetch,
        )
        evaluate = make_evaluator(
            loss_fn,
            list(
                held_out_batches(
                    corpus.held_out,
                    length=model_config.max_length,
                    batch_size=experiment.train.global_batch // experiment.train.microbatches,
                    max_batches=experiment.train.eval_batches,
                    objective=causal_lm_example,
                )
            ),
            place,
            corpus.tokenizer.token_bytes_V,
        )

        # Run folder: the same run as before, or a new one.
        _claim(folder, config, model_config, corpus, console)
        checkpoints = Checkpoints(folder / "checkpoints", experiment.checkpoint)
        resume_step = checkpoints.latest()
        if resume_step is not None and resume_step >= experiment.train.steps:
            console.say(f"run {folder} is complete: {resume_step} of {experiment.train.steps} steps are done")
            console.say(f"  more: --config.train.steps={2 * resume_step}    anew: --fresh")
            return DONE

        # Compile, ahead of time: sizes are known and shown before step 1.
        step_fn = make_train_step(
            loss_fn,
            optimizer,
            schedule,
            experiment.rules,
            microbatches=experiment.train.microbatches,
            clip_norm=experiment.optimizer.clip_norm,
            seed=experiment.seed,
        )
        batch_shape = (experiment.train.global_batch, model_config.max_length)
        compiled, seconds = _compile(step_fn, target, batch_shape, batch_sharding(mesh, experiment.rules))
        rates = _rates(experiment, model_config, mesh)
        _header(console, experiment, model_config, mesh, weights, target, compiled, rates, folder, resume_step, seconds)

        # State: born sharded, or restored to the same shardings.
        if resume_step is None:
            shardings = jax.tree.map(lambda x: x.sharding, target)
            make = jax.jit(lambda seed: init_state(model, optimizer, seed), out_shardings=shardings)
            state = make(jnp.uint32(experiment.seed))
        else:
            state = checkpoints.restore(resume_step, target)

        language_model = _sampler_model(experiment, model_config, corpus, mesh)
        log = MetricsLog(folder, tensorboard=experiment.run.tensorboard)
        try:
            state = train(
                state,
                compiled,
                loader.iterate(resume_step or 0),
                place,
                config=experiment.train,
                evaluate=evaluate,
                sample=_sampler(language_model, experiment, folder, console),
                checkpoints=checkpoints,
                meter=Meter(rates, log, console),
                stop=stop,
            )
        finally:
            console.stop()
            log.close()
            checkpoints.close()
        step = int(jax.device_get(state.step))
        if step < experiment.train.steps:
            console.say(f"stopped by {stop.name} at step {step}; it is saved. The same command continues.")
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


def _model_config(experiment: Experiment, corpus: Corpus) -> ModelConfig:
    size = corpus.tokenizer.vocab_size
    if not experiment.model.vocab_size:
        return dataclasses.replace(experiment.model, vocab_size=size).resolved()
    if experiment.model.vocab_size < size:
        raise ValueError(
            f"model.vocab_size {experiment.model.vocab_size} is smaller than the tokeniser's vocabulary of {size}: "
            f"use {size} or more, or 0 for the tokeniser's"
        )
    return experiment.model.resolved()


def _placer(sharding: Any) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
    return lambda batch: place_batch(batch, sharding)


def _claim(folder: Path, config: ConfigDict, model: ModelConfig, corpus: Corpus, console: Console) -> None:
    """Writes config.json, environment.json and the tokeniser, or checks that the folder holds this very run."""
    path = folder / "config.json"
    fingerprints = {"corpus": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    now = {"config": flat(config), "model": dataclasses.asdict(model), "fingerprints": fingerprints}
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        harmless, other = compare_configs(saved["config"], now["config"])
        data = [
            f"{name}: {saved['fingerprints'][name]} -> {value}"
            for name, value in fingerprints.items()
            if saved["fingerprints"][name] != value
        ]
        if other or data:
            raise RunError(
                f"{folder} holds another run:\n  " + "\n  ".join(other + data) + "\n"
                "Use the old values to continue it, another --config.run.dir beside it, or --fresh to start over"
            )
        for line in harmless:
            console.say(f"changed since the run began: {line}")
    corpus.tokenizer.save(folder / "tokenizer")
    write_json(folder / "environment.json", environment())
    write_json(path, now)


def _compile(step_fn: Any, target: State, batch_shape: tuple[int, int], sharding: Any) -> tuple[Any, float]:
    """The train step as a program for these very shapes and shardings: program, seconds."""
    began = time.perf_counter()
    types = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(batch_shape, kind, sharding=sharding) for name, kind in types.items()}
    shardings = jax.tree.map(lambda x: x.sharding, target)
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    jitted = jax.jit(
        step_fn, in_shardings=(shardings, sharding), out_shardings=(shardings, replicated), donate_argnums=0
    )
    return jitted.lower(target, batch).compile(), time.perf_counter() - began


def _rates(experiment: Experiment, model: ModelConfig, mesh: jax.sharding.Mesh) -> Rates:
    device = mesh.devices.flat[0]
    peak = show.peak_flops(device) if model.compute_dtype == "bfloat16" else None
    return Rates(
        steps=experiment.train.steps,
        global_batch=experiment.train.global_batch,
        length=model.max_length,
        flops_per_token=flops_per_token(model, model.max_length),
        peak_flops=peak * mesh.size if peak else None,
        log_every=experiment.train.log_every,
        max_skipped=experiment.train.max_skipped,
    )


def _header(
    console: Console,
    experiment: Experiment,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    weights: Any,
    target: State,
    compiled: Any,
    rates: Rates,
    folder: Path,
    resume_step: int | None,
    seconds: float,
) -> None:
    """What a person wants to know before step 1."""
    device, t = mesh.devices.flat[0], experiment.train
    axes = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1) or "one device"
    tokens = t.global_batch * model.max_length
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    shardings = jax.tree.map(lambda x: x.sharding, target.params)
    console.table(
        "parameters", ["weight", "shape", "count", "mesh axes", "per device"], show.parameter_rows(weights, shardings)
    )
    for name, value in (
        ("devices", f"{mesh.size} × {device.device_kind} ({device.platform}), mesh: {axes}"),
        ("precision", f"{model.compute_dtype} compute, {model.param_dtype} parameters and optimiser"),
        ("peak", f"{rates.peak_flops:.3g} FLOP/s" if rates.peak_flops else _no_peak(device, model)),
        ("work", f"{rates.flops_per_token:,.0f} FLOPs a token, {tokens:,} tokens a step, {tokens * t.steps:,} in all"),
        (
            "memory",
            f"{show.size(used)} state and batch + {show.size(memory.temp_size_in_bytes)} temporary a device, predicted",
        ),
        ("compile", f"{seconds:.1f} s"),
        ("run", f"{folder}, {'from step 0' if resume_step is None else f'resuming after step {resume_step}'}"),
    ):
        console.say(f"{name:<10} {value}")


def _no_peak(device: Any, model: ModelConfig) -> str:
    if show.peak_flops(device):
        return f"no MFU: the published peak is for bfloat16, this run computes in {model.compute_dtype}"
    return f"no MFU: no published peak for {device.device_kind}"


def _sampler_model(
    experiment: Experiment, model: ModelConfig, corpus: Corpus, mesh: jax.sharding.Mesh
) -> LanguageModel:
    return LanguageModel(model, None, corpus.tokenizer, mesh, experiment.rules)


def _sampler(
    language_model: LanguageModel, experiment: Experiment, folder: Path, console: Console
) -> Callable[[Any, int], None]:
    t = experiment.train

    def sample(params: Any, step: int) -> None:
        language_model.params = params
        prompts = list(t.sample_prompts)
        texts = language_model.generate(
            prompts, max_tokens=t.sample_tokens, temperature=t.sample_temperature, seed=experiment.seed
        )
        blocks = [
            f"\n--- sample {n + 1}\n{prompt}{text}\n"
            for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        for block in blocks:
            console.say(block)
        with open(folder / "samples.md", "a", encoding="utf-8") as file:
            fenced = [f"```\n{prompt}{text}\n```\n" for prompt, text in zip(prompts, texts, strict=True)]
            file.write(f"## Step {step}\n\n" + "\n".join(fenced) + "\n")

    return sample


def _farewell(console: Console, folder: Path, experiment: Experiment, seconds: float) -> None:
    """Scores, picture, and what to do next."""
    from studies.plot import plot_runs
    from train.records import read_metrics

    records = [record for record in read_metrics(folder) if "eval/loss" in record]
    picture = plot_runs([folder], folder / "loss.png")
    last = records[-1]
    prompt = experiment.train.sample_prompts[0] if experiment.train.sample_prompts else ""
    console.say(
        f"\nheld-out loss {last['eval/loss']:.4f} nats/token   perplexity {last['eval/perplexity']:.2f}   "
        f"{last['eval/bits_per_byte']:.3f} bits per byte   after {last['step']} steps, {show.duration(seconds)}\n"
        f"loss plot    {picture}\n"
        f"checkpoint   {folder / 'checkpoints' / str(last['step'])}\n"
        f"samples      {folder / 'samples.md'}\n\n"
        "next:\n"
        f"  tessera generate --run={folder} --prompt={json.dumps(prompt)} --max_tokens=200 --top_k=50\n"
        f"  tessera train --config=… --config.run.dir=… --config.optimizer.peak_lr=1e-3   # another run\n"
        f"  tessera plot {folder} …   # and their curves in one picture\n"
        f'  python -c \'import tessera; print(tessera.load("{folder}").generate("def ", max_tokens=50))\''
    )
