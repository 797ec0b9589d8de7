"""What a run measures: metrics fetched one step late, rates, skipped updates, and where its time goes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from train.console import Console, log_line, memory_in_use
from train.goodput import Clock
from train.records import MetricsLog

COUNTS = ("skipped", "spikes")  # updates since the run began


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Constants of a run that turn times into rates."""

    steps: int
    global_batch: int
    length: int  # tokens of a sequence, in encoder and decoder together
    flops_per_sequence: float
    peak_flops: float | None  # of all devices together
    log_every: int
    max_skipped: int


class Meter:
    """Measures a run and writes its records. Only `settle` waits for a device."""

    def __init__(
        self,
        rates: Rates,
        metrics_log: MetricsLog | None,
        console: Console,
        clock: Clock,
        earlier: Mapping[str, int] | None = None,
    ) -> None:
        """`earlier`: what processes before this one counted, see `earlier_skips`."""
        self._rates, self._log, self._console, self.clock = rates, metrics_log, console, clock
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._skipped, self._spikes = ((earlier or {}).get(name, 0) for name in COUNTS)
        self._skipped_in_row = 0
        self._told: set[str] = set()
        self._settled: tuple[int, dict[str, float]] | None = None

    def start(self, step: int) -> None:
        self._first = self._logged = step
        self._at_start = self._before = dict(self.clock.read())
        if step:  # marks where the time of this process begins
            self._write({"step": step, **self._before})
        self._console.start(step, self._rates.steps)

    @contextlib.contextmanager
    def aside(self, name: str, *, fatal: bool) -> Iterator[None]:
        """For evaluations and samples: not counted as step time; an error is reported once, or raised if `fatal`."""
        try:
            with self.clock.phase(name):
                yield
        except Exception as error:
            if fatal:
                raise
            self._tell_once(name, error)

    def pending(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Remembers the metrics of a step that was just dispatched."""
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Fetches the pending metrics, counts skipped updates, and writes a record where one is due.

        Raises:
            TrainingError: too many updates in a row were skipped.
        """
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        with self.clock.phase("productive"):
            values = {name: float(value) for name, value in jax.device_get(dict(on_device)).items()}
        self._console.step(step, f"loss {values['loss']:.4f}")
        self._count_skipped(step, values)
        self._settled = (step, values)
        if step % self._rates.log_every == 0 or step in (self._rates.steps, self._first + 1):
            self._log_step(step, values)

    def finish(self) -> None:
        """Records the last step of a run that was stopped, with the time up to now."""
        if self._settled and self._settled[0] != self._logged:
            self._log_step(*self._settled)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Writes other numbers of a step, such as an evaluation's."""
        self._write({"step": step, **values})
        self._console.say(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            if self._log is not None:  # only process 0 has a log
                self._log.write(record)
        except Exception as error:
            self._tell_once("metrics log", error)

    def _tell_once(self, name: str, error: Exception) -> None:
        if name not in self._told:
            self._console.warn(f"{name} failed, training goes on: {type(error).__name__}: {error}")
        self._told.add(name)

    def _log_step(self, step: int, values: Mapping[str, float]) -> None:
        record = self._record(step, values)
        self._write(record)
        self._console.say(log_line(record, self._rates.steps))

    def _record(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        times = self.clock.read()
        waited, trained = (times[name] - self._before[name] for name in ("time/data", "time/productive"))
        seconds = max(waited + trained, 1e-9)
        per_step = seconds / (step - self._logged)
        tokens = self._rates.global_batch * self._rates.length
        record = {
            "step": step,
            **values,
            "tokens": step * tokens,
            "skipped": self._skipped,
            **({"spikes": self._spikes} if "spikes" in values else {}),
            "tokens_per_second": tokens / per_step,
            "step_seconds": per_step,
            "data_wait": waited / seconds,
            "memory_bytes": memory_in_use(),
            "elapsed": _total(times) - _total(self._at_start),
            "eta": per_step * (self._rates.steps - step),
            **times,
        }
        if self._rates.peak_flops:
            record["mfu"] = (
                self._rates.global_batch / per_step * self._rates.flops_per_sequence / self._rates.peak_flops
            )
        self._before, self._logged = times, step
        return record

    def _count_skipped(self, step: int, values: Mapping[str, float]) -> None:
        if not values["skipped"]:
            self._skipped_in_row = 0
            return
        spike = bool(values.get("spikes"))
        self._skipped, self._skipped_in_row = self._skipped + 1, self._skipped_in_row + 1
        self._spikes += spike
        row, batch = self._skipped_in_row, self._rates.global_batch
        why = "a spike of the loss or gradient norm" if spike else "loss or gradient not finite"
        numbers = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
        self._console.warn(f"step {step}: {why} ({numbers}), update skipped ({row} in a row)")
        if row < self._rates.max_skipped:
            return
        way_out = (
            "Look at those batches. Where the data change there for good, set train.spike_window to 0"
            if spike
            else "Lower optimizer.peak_lr, or look at those batches"
        )
        raise TrainingError(
            f"{row} updates in a row were skipped, the last one for {why}: steps {step - row + 1} to {step}, examples "
            f"{(step - row) * batch} to {step * batch - 1}. {way_out}. Parameters and checkpoints hold the last update "
            "that was made"
        )


def earlier_skips(records: Sequence[Mapping[str, Any]], done: int) -> dict[str, int]:
    """Updates that earlier processes skipped up to step `done`, from the lines of metrics.jsonl as they were written.

    What was skipped between the last of these records and the checkpoint of that step is not known.
    """
    found: Mapping[str, Any] = {}
    for record in records:
        if "skipped" in record and record["step"] <= done:
            found = record
    return {name: int(found.get(name, 0)) for name in COUNTS}


def _total(times: Mapping[str, float]) -> float:
    return sum(seconds for name, seconds in times.items() if name.startswith("time/"))
