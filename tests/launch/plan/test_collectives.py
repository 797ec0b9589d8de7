"""Collectives of hand-made programs whose messages are known, and of texts in every form that XLA writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from launch.plan.collectives import collectives
from launch.plan.hlo import array_bytes, parse


def mesh(**sizes):
    axis_types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types)


def of(function, on):
    """The collectives of `function` of the part of an f32 array that one device has."""
    mapped = jax.shard_map(function, mesh=on, in_specs=P(("data", "tensor")), out_specs=P(None), check_vma=False)
    compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((64, 8), jnp.float32)).compile()
    return collectives(compiled.as_text(), on)


def told(text, on):
    return [(c.kind, c.axes, c.bytes, c.times, c.where) for c in collectives(text, on)]


def test_kind_axis_and_bytes_of_each():
    """Each device holds 8 × 8 numbers, 256 bytes."""
    on = mesh(data=2, tensor=4)

    def program(x):
        with jax.named_scope("first"):
            g = jax.lax.all_gather(x, "tensor", tiled=True)  # 32 × 8
        s = jax.lax.psum_scatter(g, "data", tiled=True)  # 16 × 8
        a = jax.lax.all_to_all(s, "tensor", 0, 1, tiled=True)  # 4 × 32
        p = jax.lax.ppermute(a, "data", [(0, 1), (1, 0)])
        return jax.lax.psum(p[:2], ("data", "tensor"))  # 2 × 32

    found = of(program, on)
    assert [(c.kind, c.axes, c.bytes, c.times) for c in found] == [
        ("all-gather", ("tensor",), 1024, 1),
        ("reduce-scatter", ("data",), 1024, 1),
        ("all-to-all", ("tensor",), 512, 1),
        ("collective-permute", ("data",), 512, 1),
        ("all-reduce", ("data", "tensor"), 256, 1),
    ]
    assert found[0].where.endswith("first/all_gather")


def test_loops_multiply():
    on = mesh(data=2, tensor=4)

    def program(x):
        def outer(x, _):
            def inner(x, _):
                return jax.lax.psum(x, "tensor"), None

            return jax.lax.pmax(jax.lax.scan(inner, x, None, length=5)[0], "data"), None

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert sorted((c.axes, c.times) for c in of(program, on)) == [(("data",), 3), (("tensor",), 15)]


def test_a_loop_of_unknown_length_counts_once():
    on = mesh(data=2, tensor=4)

    def program(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: jax.lax.psum(x, "data") + 1.0, x)

    assert [c.times for c in of(program, on)] == [1]


def test_axes_are_those_of_the_mesh_whatever_its_order():
    """A program counts devices as the mesh does, not by their ids."""
    devices = np.array(jax.devices())[[3, 1, 4, 0, 5, 2, 7, 6]].reshape(2, 4)
    on = jax.sharding.Mesh(devices, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert [c.axes for c in of(lambda x: jax.lax.psum(x, "tensor"), on)] == [("tensor",)]
    assert [c.axes for c in of(lambda x: jax.lax.psum(x, "data"), on)] == [("data",)]


def test_an_axis_of_size_one_moves_nothing():
    assert of(lambda x: jax.lax.psum(x, "data"), mesh(data=1, tensor=8)) == []


def program(instruction, body=""):
    return f"""HloModule step, is_scheduled=true

{body}
ENTRY %main (p: f32[16]) -> f32[16] {{
  %p = f32[16]{{0}} parameter(0)
  ROOT %out = f32[16]{{0}} {instruction}
}}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("tensor",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{}", ("data", "tensor")),
        ("[2,4]<=[8]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[1,8]<=[8]", ("data", "tensor")),
        ("mesh['a'=2,'b'=4] {'b'}", ("tensor",)),
        ("mesh['a'=2,'b'=4] {'a','b'}", ("data", "tensor")),
        ("mesh['a'=8] {'a':(1)2}", ("data",)),
        ("mesh['a'=8] {'a':(2)4}", ("tensor",)),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", ("data",)),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(1,0,2)) {'a','c'}", ("tensor",)),
        ("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", ("tensor",)),
    ],
)
def test_every_way_to_write_groups(groups, axes):
    text = program(f"all-reduce(%p), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add")
    assert told(text, mesh(data=2, tensor=4)) == [("all-reduce", axes, 64, 1, "")]


def test_an_asynchronous_pair_counts_once():
    text = """HloModule step, is_scheduled=true

ENTRY %main (p: bf16[16]) -> bf16[128] {
  %p = bf16[16]{0:T(256)} parameter(0)
  %start = (bf16[16]{0:T(256)}, bf16[128]{0:T(256)}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %sent = (bf16[16]{0}, bf16[16]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,0},{1,2},{2,1}}
  %kept = bf16[16]{0} collective-permute-done(%sent)
  ROOT %done = bf16[128]{0:T(256)} all-gather-done(%start)
}
"""
    assert told(text, mesh(data=2, tensor=4)) == [
        ("all-gather", ("data", "tensor"), 256, 1, ""),
        ("collective-permute", ("tensor",), 32, 1, ""),
    ]


def test_what_tpu_fuses():
    """A chain of fusions carries one all-gather; an all-reduce and a slice are a reduce-scatter."""
    gather = 'all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}'
    parts = [
        f"%part.{n} (x: f32[2]) -> f32[16] {{\n  %x = f32[2]{{0}} parameter(0)\n  %gather.{n} = f32[16]{{0}} {gather}\n"
        f'  ROOT %c.{n} = f32[16]{{0}} custom-call(%gather.{n}), custom_call_target="{target}"\n}}\n'
        for n, target in enumerate(["AsyncCollectiveStart", "Other", "AsyncCollectiveDone"])
    ]
    scatter = """%all-reduce-scatter.1 (y: f32[16]) -> f32[2] {
  %y = f32[16]{0} parameter(0)
  %sum = f32[16]{0} all-reduce(%y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %slice = f32[2]{0} slice(%sum)
}
"""
    main = "".join(f"  %f.{n} = f32[16]{{0}} fusion(%p), kind=kCustom, calls=%part.{n}\n" for n in range(3))
    text = f"""HloModule step

{"".join(parts)}
{scatter}
ENTRY %main (p: f32[2]) -> f32[2] {{
  %p = f32[2]{{0}} parameter(0)
{main}  ROOT %r = f32[2]{{0}} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter.1, metadata={{op_name="f/grads"}}
}}
"""
    assert told(text, mesh(data=2, tensor=4)) == [
        ("all-gather", ("data", "tensor"), 64, 1, ""),
        ("reduce-scatter", ("data",), 64, 1, "f/grads"),
    ]


SENT = "channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target=%s"
SENT += ',_xla_megascale_transfer_type="%s"}'


@pytest.mark.parametrize(
    ("target", "kind", "expected"),
    [
        ('"{1,2}x{0:3}"', "ALL_REDUCE", ("all-reduce", ("data",), 64, (0, 4))),
        ('"{1:2}x{0:3}"', "ALL_GATHER", ("all-gather", ("data",), 128, (0, 4))),
        ("{{100000,200000},{100001,200001}}", "ALL_REDUCE", ("all-reduce", ("data",), 64, (0, 4))),
        ("{{200000->100001},{200001->100000}}", "ONE_TO_ONE", ("collective-permute", ("data", "tensor"), 64, (5, 0))),
    ],
)
def test_what_goes_between_slices(target, kind, expected):
    """A program for two slices of four devices counts those of one: an all-reduce inside, then one to the other."""
    Device = dataclasses.make_dataclass("Device", ["id", "slice_index"], frozen=True)
    devices = [Device(n, n // 4) for n in (3, 1, 2, 0, 7, 5, 6, 4)]
    on = jax.sharding.Mesh(np.array(devices).reshape(2, 4), ("data", "tensor"))
    text = f"""HloModule step

ENTRY %main (p: f32[16]) -> f32[16] {{
  %p = f32[16]{{0}} parameter(0)
  %sum = f32[16]{{0}} all-reduce(%p), replica_groups=[2,2]<=[4], to_apply=%add
  %after = token[] after-all()
  %other = (f32[16]{{0}}, u32[], token[]) send(%p, %after), channel_id=9, is_host_transfer=true
  %sent = (f32[16]{{0}}, u32[], token[]) send(%sum, %after), {SENT % (target, kind)}
  ROOT %out = f32[16]{{0}} copy(%sum)
}}
"""
    inside, between = [(c.kind, c.axes, c.bytes, c.group) for c in collectives(text, on)]
    assert inside == ("all-reduce", ("tensor",), 64, (0, 1))
    assert between == expected


def test_rounds_of_a_loop_from_its_counter():
    """TPU programs do not note them: the counter here goes from 2 to 7."""
    text = """HloModule step

%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %sum = f32[16]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[16]{0}) tuple(%i, %sum)
}

%condition (c: (s32[], f32[16])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[16]{0:T(256)}) parameter(0)
  %last = s32[]{:T(128)} constant(7)
  %counter = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %last), direction=LT
}

ENTRY %main (p: f32[16]) -> (s32[], f32[16]) {
  %p = f32[16]{0} parameter(0)
  %first = s32[] constant(2)
  %start = (s32[], f32[16]{0}) tuple(%first, %p)
  ROOT %loop = (s32[], f32[16]{0}) while(%start), condition=%condition, body=%body
}
"""
    assert [c.times for c in collectives(text, mesh(data=2, tensor=4))] == [5]


def test_a_kernel_over_several_lines_does_not_end_its_computation():
    """As TPU programs write splash attention."""
    kernel = """f32[16]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="splash" stack_frame_id=3}
  %sum = f32[16]{0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add"""
    text = program("negate(%p)").replace("  ROOT", f"  %kernel = {kernel}\n  ROOT")
    assert told(text, mesh(data=2, tensor=4)) == [("all-reduce", ("data", "tensor"), 64, 1, "")]
    assert [i.op_name for i in parse(text).instructions() if i.name == "kernel"] == ["splash"]


def test_bytes_of_types():
    assert (
        array_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0}, /*index=2*/u32[], token[], f8e4m3fn[8]{0})") == 24 + 8 + 4 + 8
    )
    assert array_bytes("s4[5]{0}") == 3 and array_bytes("pred[7]{0}") == 7


def test_source_lines_are_of_this_file():
    def double(x):
        return x @ x

    compiled = jax.jit(double).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
    module = parse(compiled.as_text())
    line = double.__code__.co_firstlineno + 1
    assert any(module.source(i) == f"{__file__}:{line}" for i in module.instructions())


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="as_text"):
        parse("module @jit_f {}")
