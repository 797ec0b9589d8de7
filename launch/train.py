"""`tessera train`: everything that a config names, put together and run."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data.corpus import prepare
from data.loader import BatchLoader
from launch import disk, header, scores
from launch.count import count
from launch.experiment import Experiment, read
from launch.origin import find_origin, show_origin
from launch.plan.oom import answered
from launch.processes import SINCE
from launch.program import Program, assemble, check
from launch.records import check_same_config, open_shared_run, same_run, write_run
from launch.rows import described, train_rows
from model.config import flops_per_sequence
from train.agreement import Agreement
from train.checkpoint import Checkpoints, load_state
from train.checks import Checks
from train.console import Console
from train.goodput import Clock, breakdown, earlier_seconds
from train.loop import StopSignal, train
from train.mesh import local_rows
from train.meter import Meter, Rates, earlier_skips
from train.peers import START_AGAIN, peers
from train.profile import Profiler, ProfileSteps
from train.records import MetricsLog, read_lines
from train.watchdog import Watchdog

DONE = 0


def run(
    config: ConfigDict,
    *,
    fresh: bool = False,
    again: str = "",
    console: Console | None = None,
    profile: ProfileSteps | None = None,
    resume: str = "",
    stop_after: int = 0,
) -> int:
    """Trains the experiment of `config` in its run folder, or continues it: the exit code.

    0: all steps are done, or those up to `stop_after`. 75: stopped by a signal; `again` is the command that continues,
    for the message. The steps of `profile` are traced into the folder `profile` of the run. `resume`: a run or a
    checkpoint that must be continued, see `launch.origin`.
    """
    group, began = peers(), time.monotonic()
    console = console or Console(speaks=group.first)
    check_same_config(config)
    experiment = read(config)
    if experiment.model.architecture == "ngram":
        if resume or stop_after:
            raise ValueError("an n-gram model is counted in one go: --resume and --stop_after are of no use to it")
        if group.several:
            raise ValueError(f"an n-gram model is counted by one process: {len(group.names)} were started")
        return count(config, experiment, fresh=fresh, console=console)
    mesh = check(experiment)  # before anything is written
    origin = find_origin(Path(experiment.run.dir).expanduser(), resume, fresh=fresh)
    with (
        open_shared_run(experiment, fresh, console) as folder,
        jax.set_mesh(mesh),
        Clock() as clock,
        contextlib.ExitStack() as closing,
    ):
        # Everything that may be wrong is looked at before the compiler starts.
        with group.first_alone("data"):
            corpus = prepare(experiment.data, report=console.say)
        closing.enter_context(disk.answered(folder))
        group.same("the fingerprint of the corpus", corpus.fingerprint)
        program = assemble(experiment, corpus.tokenizer)
        rows = train_rows(experiment, program.objective, corpus)
        loader = BatchLoader(
            rows,
            global_batch=experiment.train.global_batch,
            seed=experiment.seed,
            curriculum=experiment.data.curriculum,
            prefetch=experiment.data.prefetch,
            workers=experiment.data.workers,
            local_rows=local_rows(program.batch_sharding, experiment.train.global_batch),
        )
        if about := described(rows):
            console.say(about)
        evaluate = group.alike("evaluation", scores.evaluator(experiment, program, corpus))
        sample = group.alike("sample", scores.sampler(experiment, program, folder, console))
        record = same_run(folder, config, program.config, program.tokenizer, corpus, experiment, console)
        checkpoints = Checkpoints(
            folder / "checkpoints", experiment.checkpoint, program.tokenizer.fingerprint, console.warn
        )
        # Closing waits for what is being saved, which a second Ctrl-C does not, and with several processes for all: an
        # error must first tell them that this one does not come.
        closing.push(
            lambda kind, *_: None if kind and (group.several or kind is KeyboardInterrupt) else checkpoints.close()
        )
        state, done = checkpoints.resume(program.target) or (None, None)
        if origin:
            record["origin"] = dataclasses.asdict(origin)
        if origin and done is None:
            show_origin(origin, record, experiment.train.steps, console)
            kept, done = origin.checkpoints / str(origin.step), origin.step
            state = load_state(kept, program.target, program.tokenizer.fingerprint, console.warn)
        if done is None and (folder / "config.json").is_file():
            console.warn("an earlier start of this run left no checkpoint: starting at step 0")
        if done is not None and done >= experiment.train.steps:
            console.say(f"run {folder} is complete: {done} of {experiment.train.steps} steps are done")
            console.say(f"  more: --config.train.steps={2 * done}    anew: --fresh")
            return DONE
        until = min(stop_after or experiment.train.steps, experiment.train.steps)
        if done is not None and done >= until:
            console.say(f"step {done} of run {folder} is done: --stop_after={stop_after} asks for no more")
            return DONE
        if profile:
            profile.check(experiment.train.steps)
            if profile.last <= (done or 0):
                console.say(f"profile    steps {profile.first} to {profile.last} are behind: no trace")
        if since := os.environ.get(SINCE):
            clock.lose(float(since))
        lines = read_lines(folder)
        clock.carry(earlier_seconds(lines, done or 0))
        write_run(folder, record, program.tokenizer)

        vocabulary = dataclasses.replace(experiment.model, vocab_size=program.config.vocab_size)
        known = dataclasses.replace(experiment, model=vocabulary)  # with what only the tokeniser could say
        with clock.phase("compile"), answered(known, mesh.shape):
            compiled, seconds = program.compile()
            checks = Checks(experiment.checks, compiled, program.target)
        rates = _rates(experiment, program)
        header.show(console, program, compiled, seconds, rates, folder, done)
        log = MetricsLog(folder, tensorboard=experiment.run.tensorboard) if group.first else None
        closing.callback(log.close if log else lambda: None)
        closing.callback(console.stop)
        batches = closing.enter_context(contextlib.closing(loader.iterate(done or 0)))
        watchdog = Watchdog(experiment.train.stuck_after, clock)
        with StopSignal() as stop, answered(known, mesh.shape, compiled), watchdog:
            state = train(
                state or program.init(experiment.seed),
                compiled,
                batches,
                scores.placer(program, experiment.train.global_batch),
                config=experiment.train,
                until=until,
                evaluate=evaluate,
                sample=sample,
                checkpoints=checkpoints,
                checks=checks,
                meter=Meter(rates, log, console, clock, earlier_skips(lines, done or 0)),
                profiler=Profiler(folder / "profile", profile if group.first else None, console.say),
                stop=stop,
                agreement=Agreement(mesh),
            )
        console.stop()
        step = int(jax.device_get(state.step))
        epochs = ", ".join(f"{name or 'the corpus'} {share:.2f} times" for name, share in loader.epochs(step).items())
        console.say(f"data: read {epochs}")
        console.say(f"goodput: {breakdown(clock)}")
        if step == until < experiment.train.steps:
            console.say(f"step {step} is saved, and --stop_after={stop_after}: without it the run continues")
            return DONE
        if step < experiment.train.steps:
            saved = f"step {step} is saved" if step > (done or 0) else "no new step was done"
            console.say(f"stopped by {stop.name}: {saved}. The run continues with\n  {again or 'the same command'}")
            return START_AGAIN
        saved = folder / "checkpoints" / str(step)
        if group.first:
            scores.farewell(console, folder, experiment, time.monotonic() - began, saved)
        return DONE


def _rates(experiment: Experiment, program: Program) -> Rates:
    peak, lengths = header.peak(program), {name: shape[0] for name, (shape, _) in program.features.items()}
    length, source = lengths["inputs"], lengths.get("source", 0)
    return Rates(
        steps=experiment.train.steps,
        global_batch=experiment.train.global_batch,
        length=length + source,
        flops_per_sequence=flops_per_sequence(program.config, length, source),
        peak_flops=peak * program.mesh.size if peak else None,
        log_every=experiment.train.log_every,
        max_skipped=experiment.train.max_skipped,
    )
