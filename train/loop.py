"""The training loop: one linear function, with everything that happens between two steps."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from train import spikes
from train.agreement import Agreement
from train.checkpoint import Checkpoints
from train.checks import Checks
from train.meter import Meter
from train.peers import peers
from train.profile import Profiler
from train.state import State


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, on how much at once, and how often to look."""

    steps: int  # updates in all
    global_batch: int  # sequences per update, over all devices and microbatches
    microbatches: int  # parts that a batch is computed in, one after the other
    loss_chunks: int  # parts of the tokens that the logits and their loss are computed in; 1 = all at once
    log_every: int  # steps between two records
    eval_every: int  # steps between two evaluations; 0 = only at the end
    eval_sequences: int  # sequences of the held-out text, evenly spaced, always the same; 0 = all of it
    sample_every: int  # steps between two samples; 0 = only at the end
    sample_prompts: tuple[str, ...]  # what the samples begin with; () = no samples
    sample_tokens: int  # length of a sample
    sample_temperature: float  # 0 = greedy
    max_skipped: int  # updates in a row with a loss or gradient that is not finite, or a spike, before the run stops
    spike_window: int  # accepted steps that a spike of the loss or gradient norm is told by (128: OLMo 2); 0 = not told
    spike_sigmas: float  # standard deviations above their mean from which on it is one, and its update is skipped
    stuck_after: float  # seconds without a step, an evaluation batch or a save, upon which the process ends; 0 = off

    def __post_init__(self) -> None:
        for field in (
            "steps",
            "global_batch",
            "microbatches",
            "loss_chunks",
            "log_every",
            "sample_tokens",
            "max_skipped",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} is {getattr(self, field)}: it must be at least 1")
        for field in ("eval_every", "eval_sequences", "sample_every", "sample_temperature", "stuck_after"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"train.{field} is {getattr(self, field)}: it must be finite and not negative")
        if self.spike_window:
            spikes.check(self.spike_window, self.spike_sigmas, self.steps)


def train(
    state: State,
    train_step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]],
    batches: Iterator[Mapping[str, np.ndarray]],
    place: Callable[[Mapping[str, np.ndarray]], Any],
    *,
    config: TrainConfig,
    until: int,
    evaluate: Callable[[Any, Callable[[], None]], dict[str, float]],
    sample: Callable[[Any, int], None],
    checkpoints: Checkpoints,
    checks: Checks,
    meter: Meter,
    profiler: Profiler,
    stop: "StopSignal",
    agreement: Agreement,
) -> State:
    """Trains from `state.step` to step `until`, or until `stop` is requested; the last state is then on disk.

    All processes of a run call this and leave after the same step: `agreement` shares what one of them sees.

    `batches` starts at the batch of `state.step`. What only comes at the end of a run, such as the last evaluation,
    comes after `config.steps`. `evaluate(params, tick)`, which calls `tick()` at each batch, and `sample(params, step)`
    come from the caller: during training their errors are only reported, after the last step they are raised.
    A run that is to stop breaks an evaluation off, but not that of step `until`, with which it would end anyway.

    Raises:
        TrainingError: `config.max_skipped` updates in a row were skipped, or a step gave other numbers the second time.
        ReplicasDiffer: copies of the same weights differ.
    """
    first = step = int(jax.device_get(state.step))
    phase = meter.clock.phase
    meter.start(step)

    def tick() -> None:
        nonlocal stopping, overdue
        meter.clock.tick()
        if step < until:
            stopping, overdue = agreement.largest(stop.number, checkpoints.overdue())
            if stopping:
                raise _Stopped

    stopping, overdue = agreement.largest(stop.number, checkpoints.overdue())
    while step < until and not stopping:
        # Run: dispatch this step, then read the metrics of the previous one, which the devices have finished.
        with phase("data"):
            batch = place(next(batches))
        profiler.before(step + 1)
        checks.before(step + 1, state)
        with phase("productive"), jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch)
        peers().reach(step + 1)
        meter.settle()
        step += 1
        meter.pending(step, metrics)
        with phase("productive"):  # with several processes: waits for the previous step, as `settle` does
            stopping, overdue = agreement.largest(stop.number, checkpoints.overdue())
        profiler.after(step, metrics)
        checks.after(step, state, batch)
        last, eval_loss = step == config.steps, None
        if stopping and step < until:
            continue  # leaves the loop: a run that is stopped does not wait for an evaluation

        # Evaluate, then save, even if the evaluation failed.
        try:
            if last or _due(step, config.eval_every):
                meter.settle()
                with meter.aside("evaluation", fatal=last), contextlib.suppress(_Stopped):
                    result = evaluate(state.params, tick)
                    eval_loss = result["eval/loss"]
                    meter.report(step, result)
        finally:
            if last or overdue or checkpoints.due(step):
                meter.settle()
                with phase("checkpoint"):
                    checks.replicas(step, state)
                    checkpoints.save(step, state, eval_loss)
                agreement.forget()  # the clock was asked before this save
        if _due(step, config.log_every):
            checkpoints.check()

        if last or (_due(step, config.sample_every) and not stopping):
            meter.settle()
            with meter.aside("sample", fatal=last):
                sample(state.params, step)
    meter.settle()
    profiler.stop()
    with phase("checkpoint"):
        if step > first:
            checks.replicas(step, state)
            checkpoints.save(step, state)
        checkpoints.wait()
    meter.finish()
    stop.number = stopping or stop.number  # in every process, whoever got the signal
    return state


class _Stopped(Exception):
    """An evaluation gives way: the run is to stop."""


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to save and stop; the second Ctrl-C acts at once."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0: none came

    def __enter__(self) -> "StopSignal":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    def _handle(self, number: int, frame: Any) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if peers().first:
            with contextlib.suppress(RuntimeError, OSError):  # the terminal may be in the middle of a line, or gone
                print(f"\n{self.name}: finishing this step, saving, stopping (Ctrl-C again stops at once)", flush=True)
