"""A search looks at every mesh that can be, and compiles those that promise most."""

import dataclasses
import io
import itertools
import math

import pytest
from rich.console import Console as Terminal

from launch import experiment
from launch.plan import search as searching
from launch.plan.estimate import held_bytes
from launch.plan.search import Ranked, bound, candidates, search
from launch.plan.topology import find_topology
from launch.program import check
from tests import tiny
from train.chips import CHIPS
from train.console import Console

GIB = 2**30


@pytest.fixture
def given(tmp_path):
    made = tiny.config(tmp_path)
    made.model.vocab_size = 260
    return experiment.read(made)


def test_every_mesh_that_can_be_is_counted(given):
    """Against all factorisations, each held to the sizes of the tiny network: 4 heads, width 32, 2 layers, 8 rows."""
    found = list(candidates(given, 8, None))
    said = {tuple(one.sizes.values()) for one in found}
    axes = tuple(found[0].sizes)
    can = set()
    sizes = [1, 2, 4, 8]
    for data in sizes:
        for stage in sizes:
            for fsdp in sizes:
                for tensor in sizes:
                    for context in sizes:
                        rows = data * stage * fsdp
                        if rows * tensor * context == 8 and rows <= 8 and tensor <= 4 and stage <= 2:
                            named = {"data": data, "stage": stage, "fsdp": fsdp, "tensor": tensor, "context": context}
                            can.add(tuple(named.get(axis, 1) for axis in axes))
    assert said == can and len(found) == 3 * len(can)
    for one in found:
        assert math.prod(one.sizes.values()) == 8 and one.bytes == held_bytes(one.experiment, one.sizes)
        assert one.experiment.mesh.sizes(8) == one.sizes and one.experiment.train.microbatches == 1


@pytest.mark.parametrize(
    ("changes", "slices"),
    [
        ({"architecture": "lstm", "mlp_dim": 0}, -1),
        ({"experts": 4, "experts_per_token": 2}, -1),
        ({"pipeline_microbatches": 4}, -1),
        ({}, 2),
        ({}, 4),
    ],
    ids=str,
)
def test_every_candidate_can_be_trained(tmp_path, changes, slices):
    made = tiny.config(tmp_path)
    made.model.update(vocab_size=260, **changes)
    made.mesh.slices = slices
    found = list(candidates(experiment.read(made), 8, None))
    assert len({tuple(one.sizes.values()) for one in found}) >= 2
    for one in found:
        mesh = check(one.experiment)  # on eight devices that are there
        assert dict(mesh.shape) == one.sizes and one.experiment.mesh.slices == slices


def test_the_fewest_microbatches_that_fit(given):
    one = next(candidates(given, 1, None))
    assert one.experiment.model.remat == "none" and one.experiment.train.microbatches == 1
    limit = one.total * 3 // 4
    less = next(candidates(given, 1, limit))
    assert less.total <= limit and less.experiment.train.microbatches in (2, 4)
    fewer = dataclasses.replace(less.experiment.train, microbatches=less.experiment.train.microbatches // 2)
    assert sum(held_bytes(dataclasses.replace(less.experiment, train=fewer), less.sizes).values()) > limit
    nearest = next(candidates(given, 1, 1))
    assert nearest.total == min(
        sum(
            held_bytes(
                dataclasses.replace(one.experiment, train=dataclasses.replace(fewer, microbatches=n)), one.sizes
            ).values()
        )
        for n in (1, 2, 4, 8)
    )


def test_overrides_make_the_layout(given, tmp_path):
    for one in list(candidates(given, 8, 1))[::7]:
        made = tiny.config(tmp_path)
        made.model.vocab_size = 260
        for override in one.overrides:
            name, value = override.removeprefix("--config.").split("=")
            made.update_from_flattened_dict({name: int(value) if value.isdigit() else value})
        read = experiment.read(made)
        assert read.mesh.sizes(8) == one.sizes
        assert (read.model, read.train) == (one.experiment.model, one.experiment.train)


def test_the_bound_of_a_pipeline_counts_its_bubble(given):
    chip = CHIPS["v5p"]
    found = {
        tuple(one.sizes.items()): one for one in candidates(given, 8, None) if one.experiment.model.remat == "none"
    }
    flat = next(one for one in found.values() if one.sizes["data"] == 8)
    piped = next(one for one in found.values() if one.sizes["data"] == 4 and one.sizes["stage"] == 2)
    computing = [bound(one, dataclasses.replace(chip, link_bandwidth=1e30))[0] for one in (flat, piped)]
    assert computing[1] / computing[0] == pytest.approx(9 / 8)  # two stages, eight microbatches
    slow = [bound(one, dataclasses.replace(chip, link_bandwidth=b)) for one in (flat,) for b in (1e6, 2e6)]
    assert slow[0][0] == pytest.approx(2 * slow[1][0]) and slow[0][1] > slow[0][0]


def test_what_fits_is_compiled_first_and_each_remat_gets_a_turn(given):
    chip = CHIPS["v5e"]
    counted = list(candidates(given, 8, None))
    limit = sorted(one.total for one in counted)[len(counted) // 2]
    order = searching._promising(counted, chip, limit)
    may = [one.total <= searching.DOUBT * limit for one in order]
    assert len(order) == len(counted) and may == sorted(may, reverse=True)
    assert {one.experiment.model.remat for one in order[:3]} == {"none", "dots", "full"}
    none = [
        bound(one, chip)[0]
        for one, fits in zip(order, may, strict=True)
        if fits and one.experiment.model.remat == "none"
    ]
    assert all(low <= 1.01 * high for low, high in itertools.pairwise(none))


@pytest.fixture
def plans(monkeypatch):
    """No compiler: a plan says what the count says, and `short` is the chip's memory."""
    short = {"hbm": GIB}

    class Said:
        def __init__(self, one, topology):
            self.bytes = {"total": sum(held_bytes(one, one.mesh.sizes(len(topology.devices))).values())}
            self.limit_bytes = short["hbm"]
            self.fits = self.bytes["total"] <= self.limit_bytes
            self.step_seconds, self.mfu_bound, self.compile_seconds = 1e6 / self.bytes["total"], 0.5, 2.0

    monkeypatch.setattr(searching, "planned", lambda one, topology: Said(one, topology))
    return short


def shown(found):
    out = io.StringIO()
    searching.show(Console(Terminal(file=out, width=200)), found)
    return out.getvalue()


def test_the_fastest_that_fits_comes_first(given, plans):
    out = io.StringIO()
    found = search(given, find_topology("cpu:8"), compiles=6, console=Console(Terminal(file=out, width=200)))
    assert len(found) == 6 and all(not one.over for one in found)
    keys = [(one.plan.step_seconds, one.plan.bytes["total"]) for one in found]
    assert keys == sorted(keys)
    said = out.getvalue()
    assert "layouts counted on 8 devices of cpu:8" in said and "6/6 compiled" in said and "ETA 0s" in said
    text = shown(found)
    assert "6 layouts compiled, best first" in text
    assert f"best: {' '.join(found[0].variant.overrides)}" in text


def test_where_nothing_fits_the_nearest_is_told(given, plans):
    plans["hbm"] = 1000
    found = search(given, find_topology("cpu:8"), compiles=2, console=Console(Terminal(file=io.StringIO())))
    assert [one.over for one in found] == sorted(one.plan.bytes["total"] - 1000 for one in found)
    text = shown(found)
    assert "NOTHING FITS: the nearest lacks" in text and f"nearest: {' '.join(found[0].variant.overrides)}" in text


def test_a_layout_that_only_its_assembly_refuses_does_not_end_the_search(given, plans, monkeypatch):
    said = searching.planned
    taken = []

    def some(one, topology):
        taken.append(one)
        if len(taken) in wrong:
            raise ValueError(f"number {len(taken)} cannot be")
        return said(one, topology)

    monkeypatch.setattr(searching, "planned", some)
    out, wrong = io.StringIO(), {2}
    console = Console(Terminal(file=out, width=400))
    found = search(given, find_topology("cpu:8"), compiles=3, console=console)
    assert [one.experiment for one in (ranked.variant for ranked in found)].count(taken[1]) == 0 and len(found) == 2
    line = next(line for line in out.getvalue().splitlines() if "refused" in line)
    assert "search: 2/3 refused: " in line and line.rstrip().endswith("number 2 cannot be")
    taken, wrong = [], {1, 2}
    with pytest.raises(ValueError, match="all of the 2 most promising of .* refused, the last one by: number 2 cannot"):
        search(given, find_topology("cpu:8"), compiles=2, console=console)


def test_what_cannot_be_searched_is_refused(given, plans):
    console = Console(Terminal(file=io.StringIO()))
    with pytest.raises(ValueError, match="search_compiles is 0: at least 1"):
        search(given, find_topology("cpu:8"), compiles=0, console=console)
    odd = dataclasses.replace(
        given,
        train=dataclasses.replace(given.train, global_batch=1),
        model=dataclasses.replace(given.model, max_length=31, num_heads=1, embed_dim=31, mlp_dim=31, vocab_size=261),
    )
    with pytest.raises(ValueError, match="no mesh of 8 devices cuts the weights and the batch"):
        search(odd, find_topology("cpu:8"), compiles=1, console=console)


@pytest.mark.slow
def test_a_real_search_on_emulated_devices(given):
    out = io.StringIO()
    found = search(given, find_topology("cpu:8"), compiles=2, console=Console(Terminal(file=out, width=200)))
    assert [isinstance(one, Ranked) and one.plan.mesh == one.variant.sizes for one in found] == [True, True]
    for one in found:
        given_bytes = {kind: one.plan.bytes[kind] for kind in ("parameters", "optimizer", "batch")}
        assert given_bytes == {kind: one.variant.bytes[kind] for kind in given_bytes}
