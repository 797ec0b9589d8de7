"""Bounds by hand, and memory of programs whose fullest moment is known."""

import types

import jax
import numpy as np
import pytest

from launch.plan.collectives import Collective
from launch.plan.hlo import parse
from launch.plan.live import fullest, padded_bytes, traffic
from launch.plan.roofline import bandwidth, collective_seconds, compute_seconds, mfu, places_of
from train.chips import CHIPS, chip_of

V5P, V5E, H100 = CHIPS["v5p"], CHIPS["v5e"], CHIPS["h100"]


def mesh(**sizes):
    """Eight devices that are counted through the sizes."""
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(tuple(sizes.values())), tuple(sizes))


def along(on, *axes):
    """The places of the devices along axes, from the first on."""
    index = tuple(slice(None) if axis in axes else 0 for axis in on.axis_names)
    return np.arange(on.size).reshape(on.devices.shape)[index].ravel()


def test_links_of_an_axis():
    places = places_of(jax.devices(), V5P, (2, 4, 1))
    on = mesh(data=2, fsdp=4)
    assert bandwidth(along(on, *("fsdp",)), on, V5P, places) == 200e9  # four in a ring: both ways at once
    assert bandwidth(along(on, *("data",)), on, V5P, places) == 100e9  # two on a line
    assert bandwidth(along(on, *("data", "fsdp")), on, V5P, places) == 300e9
    flat = places_of(jax.devices(), V5E, (2, 4))
    assert bandwidth(along(on, *("fsdp",)), on, V5E, flat) == 50e9  # a ring from 16 on


def test_slices_and_machines_are_joined_by_the_network():
    on = mesh(data=2, fsdp=4)
    slices = places_of(jax.devices(), V5P, (2, 2, 1))
    assert bandwidth(along(on, *("data",)), on, V5P, slices) == V5P.network_bandwidth
    assert bandwidth(along(on, *("fsdp",)), on, V5P, slices) == 200e9  # two lines
    one_machine = places_of(jax.devices(), H100, (8,))
    assert bandwidth(along(on, *("data", "fsdp")), on, H100, one_machine) == 450e9
    two = {device: (number // 4, number) for number, device in enumerate(jax.devices())}
    assert bandwidth(along(on, *("data",)), on, H100, two) == H100.network_bandwidth


def test_part_of_an_axis_that_stays_in_a_slice_does_not_use_the_network():
    """An all-reduce over eight devices of two slices: four inside at the speed of links, then two over the network."""
    on, places = mesh(data=8), places_of(jax.devices(), V5P, (2, 2, 1))
    of = [Collective("all-reduce", ("data",), 10**9, 1, "", group) for group in ((0, 1, 2, 3), (0, 4))]
    inside, between = (collective_seconds([c], on, V5P, places)["data",] for c in of)
    assert inside == pytest.approx(2 * 3 / 4 * 1e9 / 200e9) and between == pytest.approx(1e9 / V5P.network_bandwidth)


def test_small_machines_are_joined_by_the_network_too():
    """Two machines of four GPUs, as --topology=h100:4 --slices=2 asks for."""
    on, places = mesh(data=2, fsdp=4), places_of(jax.devices(), H100, (4,))
    assert bandwidth(along(on, "data"), on, H100, places) == H100.network_bandwidth
    assert bandwidth(along(on, "fsdp"), on, H100, places) == 450e9


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("all-gather", 0.75),
        ("reduce-scatter", 0.75),
        ("all-to-all", 0.75),
        ("all-reduce", 1.5),
        ("collective-permute", 2.0),
    ],
)
def test_seconds_of_a_ring(kind, seconds):
    """200 GB, half at a time, round four devices with 200 GB/s; a permute goes one way only."""
    on, places = mesh(data=2, fsdp=4), places_of(jax.devices(), V5P, (2, 4, 1))
    found = collective_seconds([Collective(kind, ("fsdp",), 100 * 10**9, 2, "", (0, 1, 2, 3))], on, V5P, places)
    assert found == {("fsdp",): pytest.approx(seconds)}


def test_compute_and_mfu():
    assert compute_seconds(459e12 * 8, 459e12, 8) == pytest.approx(1.0)
    assert mfu(459e12, 2.0, 459e12, 1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5", 459e12), ("TPU v5 lite", 197e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12)],
)
def test_data_sheets_by_kind(kind, peak):
    chip = chip_of(types.SimpleNamespace(device_kind=kind))
    assert chip.peak("bfloat16") == peak and chip.peak("float32") is None
    assert chip_of(types.SimpleNamespace(device_kind="cpu")) is None


def test_bytes_of_padded_tiles():
    assert padded_bytes("f32[3,100]{1,0:T(8,128)}") == 8 * 128 * 4
    assert padded_bytes("f32[3,100]{0,1:T(8,128)}") == 128 * 104 * 4  # the first dimension is the inner one
    assert padded_bytes("bf16[2,16,128]{2,1,0:T(8,128)(2,1)}") == 2 * 16 * 128 * 2
    assert padded_bytes("(f32[8,128]{1,0:T(8,128)S(1)}, f32[5]{0})") == 20  # the first is not in main memory


PROGRAM = """HloModule step, is_scheduled=true

%body (s: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %s = (s32[], f32[1024]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[1024]{0} get-tuple-element(%s), index=1
  %wide = f32[4096]{0} concatenate(%x, %x, %x, %x), dimensions={0}, metadata={op_name="wide"}
  %y = f32[1024]{0} slice(%wide), slice={[0:1024]}
  ROOT %t = (s32[], f32[1024]{0}) tuple(%i, %y)
}

%condition (c: (s32[], f32[1024])) -> pred[] {
  %c = (s32[], f32[1024]{0}) parameter(0)
  %last = s32[] constant(3)
  %counter = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%counter, %last), direction=LT
}

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %zero = s32[] constant(0)
  %early = f32[8192]{0} broadcast(%p), metadata={op_name="early"}
  %a = f32[1024]{0} slice(%early), slice={[0:1024]}, metadata={op_name="a"}
  %kept = f32[512]{0} negate(%a), metadata={op_name="kept"}
  %start = (s32[], f32[1024]{0}) tuple(%zero, %a)
  %loop = (s32[], f32[1024]{0}) while(%start), condition=%condition, body=%body
  %b = f32[1024]{0} get-tuple-element(%loop), index=1
  ROOT %out = f32[1024]{0} add(%b, %kept)
}
"""


def test_the_fullest_moment_and_who_fills_it():
    """First 32 KiB and a's 4; in the loop a's 4, kept's 2 and 16 of its own. The result is written over an argument."""
    assert [(live.bytes, live.instruction.op_name) for live in fullest(parse(PROGRAM))] == [
        (32768, "early"),
        (4096, "a"),
    ]
    found = fullest(parse(PROGRAM.replace("8192", "1024")))
    assert [(live.bytes, live.instruction.name) for live in found] == [(16384, "wide"), (4096, "a"), (2048, "kept")]


def test_a_name_with_quotes_in_it_calls_nothing():
    """The text of a compiler escapes them."""
    name = r'op_name="call[name=\"calls=%body\"]/wide"'
    text = PROGRAM.replace('op_name="early"', name).replace("f32[8192]{0} broadcast(%p),", "f32[8192]{0} negate(%p),")
    module = parse(text)
    early = next(i for i in module.instructions() if i.name == "early")
    assert early.op_name == r"call[name=\"calls=%body\"]/wide" and module.times["body"] == 3


def test_a_copy_onto_the_chip_is_read_once():
    """4 KiB copied while something else goes on, a quarter of them sliced; 4 and 1 KiB are written back."""
    text = """HloModule step, is_scheduled=true

ENTRY %main (p: f32[1024]) -> (f32[1024], f32[256]) {
  %p = f32[1024]{0} parameter(0)
  %begin = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%p)
  %begun = ((f32[1024]{0}), f32[256]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:256]}
  %end = f32[1024]{0:S(1)} copy-done(%begin)
  %ended = f32[256]{0:S(1)} slice-done(%begun)
  %cut = f32[256]{0:S(1)} slice(%end), slice={[0:256]}
  %sum = f32[256]{0} add(%cut, %ended)
  %out = f32[1024]{0} negate(%end)
  ROOT %t = (f32[1024]{0}, f32[256]{0}) tuple(%out, %sum)
}
"""
    assert traffic(parse(text)) == (4 + 1 + 4 + 1) * 1024


def test_a_fusion_in_a_fusion_reads_its_slice():
    """1 KiB of 4 in and out; all 4 where something else takes it whole."""
    text = """HloModule step, is_scheduled=true

%inner (q: f32[1024]) -> f32[256] {
  %q = f32[1024]{0} parameter(0)
  ROOT %cut = f32[256]{0} slice(%q), slice={[0:256]}
}

%outer (x: f32[1024]) -> f32[256] {
  %x = f32[1024]{0} parameter(0)
  %deep = f32[256]{0} fusion(%x), kind=kLoop, calls=%inner
  ROOT %y = f32[256]{0} negate(%deep)
}

ENTRY %main (p: f32[1024]) -> f32[256] {
  %p = f32[1024]{0} parameter(0)
  ROOT %out = f32[256]{0} fusion(%p), kind=kOutput, calls=%outer
}
"""
    assert traffic(parse(text)) == 2 * 1024
    also = text.replace("  ROOT %y", "  %also = f32[256]{0} reduce(%x)\n  ROOT %y")
    assert traffic(parse(also)) == (4 + 1) * 1024


def test_traffic_multiplies_the_rounds_of_loops():
    outside = (4 + 32) + 2 * 4 + (4 + 2) + (4 + 2 + 4)  # KiB in and out: early, a, kept, out
    inside = (4 * 4 + 16) + 2 * 4  # wide, y
    counter = 4 * (4 + 4 + 1)  # bytes of the comparisons, one more than rounds is not counted
    assert abs(traffic(parse(PROGRAM)) - 1024 * (outside + 3 * inside)) <= counter
