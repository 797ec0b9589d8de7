"""A trace of some steps of a run, of devices and host, for TensorBoard's profiler."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """Steps `first` to `last`, both included, counted from 1 as in the log."""

    first: int
    last: int

    def check(self, steps: int) -> None:
        """Raises ValueError if a run of `steps` does not reach them."""
        if self.last > steps:
            raise ValueError(
                f"--profile=steps:{self.first}-{self.last}: this run has {steps} steps; "
                f"profile for example steps:{min(3, steps)}-{min(5, steps)}"
            )


def parse(text: str) -> ProfileSteps | None:
    """ "steps:10-13" or "steps:10"; "" is none. Raises ValueError for anything else."""
    if not text:
        return None
    found = re.fullmatch(r"steps:(\d+)(?:-(\d+))?", text)
    if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]):
        raise ValueError(f"--profile={text}: write steps:FIRST-LAST, such as steps:10-13")
    return ProfileSteps(int(found[1]), int(found[2] or found[1]))


class Profiler:
    """Traces the steps asked for, or the rest of them after a resume; does nothing without any."""

    def __init__(self, folder: Path, steps: ProfileSteps | None, say: Callable[[str], None]) -> None:
        self._folder, self._steps, self._say, self._tracing = folder, steps, say, False

    def before(self, step: int) -> None:
        """To be called before `step`, when the devices are idle or nearly so."""
        if self._steps and not self._tracing and self._steps.first <= step <= self._steps.last:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Ends the trace once the devices are done with the last step asked for."""
        if self._tracing and self._steps and step == self._steps.last:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is on: a run that is stopped early keeps what it has."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._say(f"profile    {self._folder}: tensorboard --logdir={self._folder} (with its plugin `xprof`)")
