"""What a run measures of itself: metrics fetched one step late, rates, skipped updates, and who waits for whom."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from train.console import Console, log_line, memory_in_use
from train.records import MetricsLog


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
    """Times a run and writes its records. Only `settle` waits for a device."""

    def __init__(self, rates: Rates, metrics_log: MetricsLog, console: Console) -> None:
        self._rates, self._log, self._console = rates, metrics_log, console
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._skipped = self._skipped_in_row = 0
        self._told: set[str] = set()

    def start(self, step: int) -> None:
        self._first = self._logged = step
        self._began = self._since = time.perf_counter()
        self._waited = 0.0
        self._console.start(step, self._rates.steps)

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def aside(self, name: str, *, fatal: bool) -> Iterator[None]:
        """For what only looks at a run: its time is not the step's, and unless `fatal` its error is told, once."""
        before = time.perf_counter()
        try:
            yield
        except Exception as error:
            if fatal:
                raise
            if name not in self._told:
                self._console.warn(f"{name} failed, training goes on: {type(error).__name__}: {error}")
            self._told.add(name)
        finally:
            self._since += time.perf_counter() - before

    def pending(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Remembers the metrics of a step that was just dispatched."""
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Fetches the pending metrics, counts skipped updates, and writes a record where one is due.

        Raises:
            TrainingError: too many updates in a row were not finite.
        """
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(on_device)).items()}
        self._console.step(step, f"loss {values['loss']:.4f}")
        self._count_skipped(step, values["skipped"] > 0)
        if step % self._rates.log_every == 0 or step in (self._rates.steps, self._first + 1):
            record = self._record(step, values)
            self._write(record)
            self._console.say(log_line(record, self._rates.steps))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Writes other numbers of a step, such as an evaluation's."""
        self._write({"step": step, **values})
        self._console.say(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _write(self, record: Mapping[str, Any]) -> None:
        with self.aside("metrics log", fatal=False):
            self._log.write(record)

    def _record(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        per_step = seconds / (step - self._logged)
        tokens = self._rates.global_batch * self._rates.length
        record = {
            "step": step,
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": values["learning_rate"],
            "tokens": step * tokens,
            "skipped": self._skipped,
            "tokens_per_second": tokens / per_step,
            "step_seconds": per_step,
            "data_wait": self._waited / seconds,
            "memory_bytes": memory_in_use(),
            "elapsed": now - self._began,
            "eta": per_step * (self._rates.steps - step),
        }
        if self._rates.peak_flops:
            record["mfu"] = (
                self._rates.global_batch / per_step * self._rates.flops_per_sequence / self._rates.peak_flops
            )
        self._since, self._waited, self._logged = now, 0.0, step
        return record

    def _count_skipped(self, step: int, skipped: bool) -> None:
        if not skipped:
            self._skipped_in_row = 0
            return
        self._skipped, self._skipped_in_row = self._skipped + 1, self._skipped_in_row + 1
        row, batch = self._skipped_in_row, self._rates.global_batch
        self._console.warn(f"step {step}: loss or gradient not finite, update skipped ({row} in a row)")
        if row >= self._rates.max_skipped:
            raise TrainingError(
                f"{row} updates in a row were not finite: steps {step - row + 1} to {step}, examples "
                f"{(step - row) * batch} to {step * batch - 1}. Lower optimizer.peak_lr, or look at those batches. "
                "Parameters and checkpoints hold the last finite update"
            )
