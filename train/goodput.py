"""Where the time of a run goes: every second belongs to one phase. Goodput is the part that trained."""

import contextlib
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from train.console import duration

# productive: steps whose result the run still has. lost: steps done again after a kill, as no checkpoint held them, and
# the time until a supervisor's next start.
# other: all that has no name, such as opening files and restoring.
PHASES = ("productive", "compile", "data", "evaluation", "sample", "checkpoint", "other", "lost")
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # what comes before it
COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the program comes from the persistent cache


class Recompiled(UserWarning):
    """A program was compiled again although it had run before: a shape or a type changed."""


class Clock:
    """Seconds of each phase of a run, those of earlier processes of the same run included.

    XLA's compile time counts as "compile" in any phase; Python's tracing only within `phase("compile")`. Any other
    phase that compiles when it runs for the second time or later warns with `Recompiled`. Use it in a `with`: it
    listens to jax until the end.
    """

    def __init__(self, earlier: Mapping[str, float] | None = None, now: Callable[[], float] = time.perf_counter):
        self.seconds = {phase: 0.0 for phase in PHASES} | dict(earlier or {})
        self.compiles = self.recompiles = 0
        self._now, self._phase, self._since = now, "other", now()
        self._compiling = False
        self._thread, self._entered, self._compiled = threading.get_ident(), Counter(), []

    def __enter__(self) -> "Clock":
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def carry(self, earlier: Mapping[str, float]) -> None:
        """Adds what earlier processes of this run took."""
        for phase, seconds in earlier.items():
            self.seconds[phase] += seconds

    def lose(self, since: float) -> None:
        """Counts the time from `since` (Unix time) to the beginning of this clock as lost; call it before `carry`."""
        self.tick()
        self.seconds["lost"] += max(0.0, time.time() - since - sum(self.seconds.values()))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time within as `name`, and afterwards as the phase before."""
        before, compiled = self._switch(name), self._compiled
        self._compiled = []
        try:
            yield
        finally:
            again, self._compiled = self._compiled, compiled
            self._switch(before)
        self._entered[name] += 1  # one that failed may not have come to its compiling
        if again and name != "compile" and self._entered[name] > 1:
            self.recompiles += len(again)
            warnings.warn(f"{name} compiled again: {', '.join(again)}", Recompiled, stacklevel=3)

    def read(self) -> dict[str, float]:
        """For a record: `time/PHASE` in seconds, `goodput` from 0 to 1, and how often XLA compiled in this process."""
        self.tick()
        total = sum(self.seconds.values())
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        goodput = self.seconds["productive"] / total if total else 0.0
        return {**times, "goodput": goodput, "compiles": self.compiles, "recompiles": self.recompiles}

    def tick(self) -> None:
        """Notes that the phase gets on."""
        self._switch(self._phase)

    def idle(self) -> float:
        """Seconds since a phase began, ended or got on; 0 while something is compiled. From any thread."""
        return 0.0 if self._compiling or self._phase == "compile" else self._now() - self._since

    def _switch(self, phase: str) -> str:
        now, before = self._now(), self._phase
        self.seconds[before] += now - self._since
        # The time first: between two of these lines `idle`, in another thread, must not see that a long compiling is
        # over, and still the time when it began.
        self._since = now
        self._phase, self._compiling = phase, False
        return before

    def _heard(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event not in (LOWERED, COMPILED) or threading.get_ident() != self._thread:
            return
        self.tick()
        self._compiling = event == LOWERED
        if self._compiling:
            return
        self.compiles += 1
        self._compiled.append(str(kwargs.get("fun_name", "a program")))
        self.seconds[self._phase] -= duration_secs
        self.seconds["compile"] += duration_secs


def earlier_seconds(records: Sequence[Mapping[str, Any]], done: int) -> dict[str, float]:
    """Seconds of the earlier processes, from the lines of metrics.jsonl in the order in which they were written.

    The run continues after step `done`: productive seconds of later steps are lost. The time of a killed process after
    its last record is unknown: it counts where a supervisor starts the next one, see `Clock.lose`.
    """
    timed = [record for record in records if "time/productive" in record]
    if not timed:
        return {}
    seconds = {phase: timed[-1][f"time/{phase}"] for phase in PHASES}
    steps = [record["step"] for record in timed]
    # A process that continued wrote the step where it began first: from there on steps rise.
    first = max((i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]), default=0)
    if done < steps[-1]:
        productive = [record["time/productive"] for record in timed[first:]]
        # Before a run's first record there was no productive second.
        kept = np.interp(done, [0, *steps[first:]] if first == 0 else steps[first:], [0.0] * (first == 0) + productive)
        lost = productive[-1] - float(kept)
        seconds["productive"] -= lost
        seconds["lost"] += lost
    return seconds


def breakdown(clock: Clock) -> str:
    """ "87% (productive 2m40s, compile 6s, …), 9 programs compiled", without what took under half a percent."""
    total = sum(clock.seconds.values()) or 1.0
    longest = sorted(clock.seconds.items(), key=lambda x: -x[1])
    parts = [f"{phase} {duration(seconds)}" for phase, seconds in longest if seconds > 0.005 * total]
    again = f", {clock.recompiles} of them again" if clock.recompiles else ""
    share = clock.seconds["productive"] / total
    return f"{share:.0%} ({', '.join(parts)}), {clock.compiles} programs compiled{again}"
