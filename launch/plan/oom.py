"""Answers to running out of memory: what was asked for, what fills a device, and what would help most."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launch.experiment import Experiment
from launch.plan.shortage import Shortage, shortage
from launch.plan.variants import Variant, as_it_is, vary
from train.console import size
from train.meter import TrainingError


@contextlib.contextmanager
def answered(experiment: Experiment, mesh: Mapping[str, int], compiled: Any = None) -> Iterator[None]:
    """Turns an out-of-memory error of its body into a TrainingError that says what to do.

    Args:
        experiment: what runs, its vocabulary known.
        mesh: the size of each axis.
        compiled: the step, once there is one: its memory is told beside the estimate.
    """
    try:
        yield
    except RuntimeError as error:
        lack = shortage(error)
        if lack is None:
            raise
        raise TrainingError(answer(lack, experiment, mesh, compiled)) from error


def answer(lack: Shortage, experiment: Experiment, mesh: Mapping[str, int], compiled: Any = None) -> str:
    """A shortage, the bytes of one device by kind, and the three changes that save most, for the command line."""
    now = as_it_is(experiment, mesh)
    lines = [str(lack), f"  on a device, by count: {told(now.bytes)}; {size(now.total)} in all"]
    if host := now.bytes["host"]:
        lines.append(f"  in the host's memory: {size(host)} of the optimizer")
    if compiled is not None:
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        lines.append(f"  by the compiler: {size(held)} state and batch, {size(memory.temp_size_in_bytes)} temporaries")
    lines += ["what would help most, each by itself:", *(f"  {line}" for line in advice(now, lack.missing))]
    lines.append("What is saved of the run stays: the same command with one of these goes on from there")
    return "\n".join(lines)


def advice(now: Variant, needed: int | None) -> list[str]:
    """The three changes that save most, as lines with the overrides and the saving on a device, by count.

    Of each kind of change the mildest that saves `needed` bytes, or the strongest where none does; the mildest that
    saves anything where it is not known what is needed. What would be another run comes last, and says so.
    """
    lines = []
    for steps, note in ((_same_run(now), ""), (_other_run(now), "; computes something else: another --config.run.dir")):
        found = [best for of_a_kind in steps if (best := _enough(now, of_a_kind, needed))]
        for best in sorted(found, key=lambda one: one.total):
            saved = now.total - best.total
            alone = "" if needed is None or saved >= needed else f", not the {size(needed)} that are missing"
            lines.append(f"{' '.join(best.overrides)}   saves about {size(saved)}{alone}{note}")
    return lines[:3]


def told(held: Mapping[str, int]) -> str:
    """Bytes of a device by kind for people, the largest first; what is nothing is left out."""
    here = sorted((item for item in held.items() if item[0] != "host"), key=lambda item: -item[1])
    return ", ".join(f"{kind} {size(n)}" for kind, n in here if n)


def _same_run(now: Variant) -> Iterator[list[Variant]]:
    """Changes of layout and schedule, mildest first, a list for each kind."""
    t, sizes = now.experiment.train, now.sizes
    yield _each(now, ({"train.microbatches": t.microbatches * n} for n in _doublings(t.global_batch // t.microbatches)))
    no_budget = {"model.remat_bytes": 0.0} if now.experiment.model.remat == "budget" else {}
    yield _each(now, ({"model.remat": name, **no_budget} for name in ("dots", "full")))
    yield _each(now, ({"train.loss_chunks": t.loss_chunks * n} for n in _doublings(64)))
    for axis in ("fsdp", "tensor"):
        # Devices that hold copies are the first to be given another task.
        source = "data" if sizes["data"] > 1 or axis == "fsdp" else "fsdp"
        moved = (n for n in _doublings(sizes[source]) if sizes[source] % n == 0)
        yield _each(now, ({f"mesh.{source}": sizes[source] // n, f"mesh.{axis}": sizes[axis] * n} for n in moved))


def _other_run(now: Variant) -> Iterator[list[Variant]]:
    model = now.experiment.model
    yield _each(now, ({"model.max_length": model.max_length // n} for n in _doublings(8) if model.max_length % n == 0))
    yield _each(now, [{"model.compute_dtype": "bfloat16"}])
    yield _each(now, [{"optimizer.moments_dtype": "bfloat16"}])


def _each(now: Variant, changes: Iterable[Mapping[str, Any]]) -> list[Variant]:
    """Those variants that can be, and save enough to be worth a word."""
    made = (vary(now.experiment, now.sizes, change) for change in changes)
    return [one for one in made if one is not None and one.total < 0.99 * now.total]


def _enough(now: Variant, steps: list[Variant], needed: int | None) -> Variant | None:
    enough = (one for one in steps if now.total - one.total >= (needed or 0))
    return next(enough, min(steps, key=lambda one: one.total, default=None))


def _doublings(most: int) -> Iterator[int]:
    """2, 4, 8 … up to `most`."""
    return (2**n for n in range(1, max(most, 1).bit_length()))
