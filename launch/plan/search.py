"""A search over meshes, remat and microbatches: many are counted, the most promising compiled, the best comes first."""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import jax

from launch.experiment import Experiment
from launch.plan.estimate import step_work
from launch.plan.oom import told
from launch.plan.plan import Plan, in_slices, planned
from launch.plan.topology import Topology
from launch.plan.variants import Variant, vary
from model import parameters
from model.build import build
from model.sharding import MESH_AXES, mesh_axes
from train.chips import Chip
from train.console import Console, duration, size

REMAT = ("none", "dots", "full")
# A count may be too high by so much: what is above it is not worth the time of a compiler.
DOUBT = 1.3


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A layout that was compiled."""

    variant: Variant
    plan: Plan

    @property
    def over(self) -> int:
        """Bytes that a device lacks; 0 where it fits."""
        if self.plan.fits is not False or self.plan.limit_bytes is None:
            return 0
        return max(self.plan.bytes["total"] - self.plan.limit_bytes, 1)


def candidates(experiment: Experiment, num_devices: int, limit_bytes: int | None) -> Iterator[Variant]:
    """For every mesh that the experiment goes on and every remat the variant of the fewest microbatches that fits by
    count (all fit where no limit is known), or the smallest where none does: each microbatch gathers the weights anew.

    Every device takes part. Meshes that cut a weight, the batch or the length into unequal parts are left out, and axes
    on which nothing of this network lies. The experiment's `model.vocab_size` is known.
    """
    used, batch = _used(experiment), experiment.train.global_batch
    budget = {"model.remat_bytes": 0.0} if experiment.model.remat == "budget" else {}
    names = [name for name in dict.fromkeys((experiment.model.remat, *REMAT)) if name != "budget"]
    counts = [n for n in range(1, batch + 1) if batch % n == 0]
    for shape in _factorisations(num_devices, len(used)):
        mesh = {**dict.fromkeys(MESH_AXES, 1), **dict(zip(used, shape, strict=True))}
        for remat in names if experiment.model.attends else ["none"]:
            changes = {**{f"mesh.{axis}": n for axis, n in mesh.items()}, "model.remat": remat, **budget}
            smallest = None
            for count in counts:
                variant = vary(experiment, mesh, {**changes, "train.microbatches": count})
                if variant is None:
                    continue
                if smallest is None or variant.total < smallest.total:
                    smallest = variant
                if limit_bytes is None or variant.total <= limit_bytes:
                    break
            if smallest is not None:
                yield smallest


def bound(variant: Variant, chip: Chip | None) -> tuple[float, float]:
    """Seconds of a step: when computing and the wires overlap, and when they do not. Without a chip: in ratios only.

    The stages of a pipeline wait for each other: S stages and M microbatches of it take (M + S - 1) / M of the time,
    M = 4 S where the config does not say.
    """
    flops, sent = step_work(variant.experiment, variant.sizes)
    stages = variant.sizes["stage"]
    rounds = variant.experiment.model.pipeline_microbatches or 4 * stages
    computing = flops * (rounds + stages - 1) / rounds / (chip.peak_flops if chip else 1e12)
    wires = sum(sent.values()) / (chip.link_bandwidth * (2 if chip.torus else 1) if chip else 1e11)
    return max(computing, wires), computing + wires


def search(experiment: Experiment, topology: Topology, *, compiles: int, console: Console) -> list[Ranked]:
    """Compiles the `compiles` layouts that promise most, and ranks them: those that fit, by step time, then by bytes;
    those that do not, by what is missing. One that turns out to be refused when it is put together is told, and left
    out.

    Raises:
        ValueError: no mesh of these devices goes with the experiment, all were refused, or `compiles` below 1.
    """
    if compiles < 1:
        raise ValueError(f"--search_compiles is {compiles}: at least 1 layout is to be compiled")
    experiment = in_slices(experiment, topology.slices)
    chip, count = topology.chip, len(topology.devices)
    limit = chip.limit_bytes if chip else None
    counted = list(candidates(experiment, count, limit))
    if not counted:
        raise ValueError(f"no mesh of {count} devices cuts the weights and the batch of this config into equal parts")
    console.say(f"search: {len(counted):,} layouts counted on {count} devices of {topology.name}")
    promising = _promising(counted, chip, limit)[:compiles]
    began, ranked, refusal = time.monotonic(), [], ""
    for number, variant in enumerate(promising, 1):
        try:
            plan = planned(variant.experiment, topology)
        except ValueError as error:
            refusal = str(error)
            console.say(f"search: {number}/{len(promising)} refused: {_named(variant)}: {refusal}")
            continue
        ranked.append(Ranked(variant, plan))
        spent = time.monotonic() - began
        left = duration(spent / number * (len(promising) - number))
        verdict = "does not fit" if plan.fits is False else size(plan.bytes["total"])
        console.say(f"search: {number}/{len(promising)} compiled, {verdict}: {_named(variant)}    ETA {left}")
    if not ranked:
        raise ValueError(
            f"all of the {len(promising)} most promising of {len(counted):,} layouts were refused, the last one by: "
            f"{refusal}. Try more with a larger --search_compiles"
        )
    return sorted(ranked, key=_rank)


def show(console: Console, ranked: Sequence[Ranked]) -> None:
    """A table, best first, and the command line of the best; or what is nearest to fitting, and by how much."""
    columns = ["layout", "fits", "a device", "by count", "step at least", "MFU at most", "compile"]
    console.table(f"{len(ranked)} layouts compiled, best first", columns, [_row(one) for one in ranked])
    best = ranked[0]
    flags = " ".join(best.variant.overrides)
    if best.over:
        console.say(f"NOTHING FITS: the nearest lacks {size(best.over)} a device ({told(best.plan.bytes)})")
        console.say(f"nearest: {flags}")
    else:
        console.say(f"best: {flags}")


def _promising(counted: Sequence[Variant], chip: Chip | None, limit: int | None) -> list[Variant]:
    """The fastest of those that may fit, each kind of remat in turn, since that is where a count errs most; after them
    the others, the smallest first.
    """
    hopeful = [one for one in counted if limit is None or one.total <= DOUBT * limit]
    times = {one.overrides: [float(f"{seconds:.3g}") for seconds in bound(one, chip)] for one in hopeful}
    hopeful.sort(key=lambda one: (times[one.overrides], one.total))
    kinds = {one.experiment.model.remat: [] for one in hopeful}
    for one in hopeful:
        kinds[one.experiment.model.remat].append(one)
    turns = [one for turn in itertools.zip_longest(*kinds.values()) for one in turn if one is not None]
    taken = {one.overrides for one in turns}
    return turns + sorted((one for one in counted if one.overrides not in taken), key=lambda one: one.total)


def _rank(one: Ranked) -> tuple:
    seconds = one.plan.step_seconds or bound(one.variant, None)[0]
    return (one.over, seconds, one.plan.bytes["total"])


def _row(one: Ranked) -> list[str]:
    plan, seconds = one.plan, one.plan.step_seconds
    fits = f"no, by {size(one.over)}" if one.over else "-" if plan.fits is None else "yes"
    step = "-" if seconds is None else f"{1000 * seconds:,.0f} ms"
    mfu = "-" if plan.mfu_bound is None else f"{plan.mfu_bound:.0%}"
    total = size(plan.bytes["total"])
    return [_named(one.variant), fits, total, size(one.variant.total), step, mfu, f"{plan.compile_seconds:.0f} s"]


def _named(variant: Variant) -> str:
    axes = " ".join(f"{axis}={n}" for axis, n in variant.sizes.items() if n > 1) or "one device"
    return f"{axes}, remat {variant.experiment.model.remat}, microbatches {variant.experiment.train.microbatches}"


def _used(experiment: Experiment) -> list[str]:
    """The mesh axes that cut something of this network of their own: a weight, the length, or (data) the batch."""
    rules = experiment.rules
    weights = jax.tree.leaves(parameters.weights(build(experiment.model, rules)))
    logical = {"length", *(axis for weight in weights for axis in weight.axes)}
    cutting = {"data", *(axis for name in logical for axis in mesh_axes(getattr(rules, name)))}
    return [axis for axis in MESH_AXES if axis in cutting]


def _factorisations(number: int, places: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of so many, in order."""
    if places == 1:
        yield (number,)
        return
    for first in (n for n in range(1, number + 1) if number % n == 0):
        yield from ((first, *rest) for rest in _factorisations(number // first, places - 1))
