"""Checks: a flipped bit is named with its leaf and device, and so is a step that does not repeat."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model.remat import HOST
from tests import tiny
from train.checks import Checks, ChecksConfig, ReplicasDiffer
from train.meter import TrainingError
from train.state import State

CUTS = {"whole": (), "cut": ("fsdp",), "both": (("data", "fsdp"),)}


def placed(values, mesh, *cut):
    """Computed where it lies: copies that are put there from the host may share its memory."""
    return jax.jit(lambda: jnp.asarray(values), out_shardings=NamedSharding(mesh, PartitionSpec(*cut)))()


@pytest.fixture(params=[jnp.float32, jnp.bfloat16])
def state(request):
    mesh = tiny.mesh(data=4, fsdp=2)
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(request.param)
    with jax.set_mesh(mesh):
        params = {name: placed(values, mesh, *cut) for name, cut in CUTS.items()}
        yield State(placed(np.int32(0), mesh), params, ())


def target(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def flip(array, device, bit=0):
    """One bit of what a device holds, where it lies."""
    (shard,) = [s for s in array.addressable_shards if s.device.id == device]
    byte = ctypes.c_uint8.from_address(shard.data.unsafe_buffer_pointer())
    byte.value ^= 1 << bit


def checks(state, step=lambda state, batch: (state, {}), **every):
    return Checks(ChecksConfig(**{"replicas_every": 0, "repeat_every": 0} | every), step, target(state))


def test_a_flipped_bit_is_named_with_leaf_and_device(state):
    """Row 26."""
    look = checks(state, replicas_every=3)
    look.replicas(3, state)
    for leaf, device, bit in (("whole", 5, 0), ("cut", 3, 7), ("cut", 0, 1)):
        flip(state.params[leaf], device, bit)
        look.after(2, state, None)  # not due
        for due in (lambda: look.after(3, state, None), lambda: look.replicas(2, state)):
            with pytest.raises(ReplicasDiffer) as found:
                due()
            assert str(found.value).count(" of this process") == 1
            assert f"/params/{leaf} on {jax.devices()[device]} of this process" in str(found.value)
        flip(state.params[leaf], device, bit)
    flip(state.params["both"], 2)  # no other device holds it
    look.replicas(3, state)


def test_an_optimiser_in_the_memory_of_the_host_is_compared_and_copied_too(state):
    """Row 26."""
    whole = state.params["whole"]
    moment = jax.device_put(whole, whole.sharding.with_memory_kind(HOST))
    state = state.replace(opt_state=(moment,))
    look = checks(state, jax.jit(lambda state, batch: (state, {}), donate_argnums=0), replicas_every=1, repeat_every=1)
    look.before(1, state)
    look.after(1, state, None)
    flip(moment, 4)
    with pytest.raises(ReplicasDiffer, match="differ: /opt_state/0 on .*:4 of this process. Memory"):
        look.after(1, state, None)


def test_of_two_copies_none_is_known_to_be_right():
    """Row 26."""
    mesh = tiny.mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        x = placed(np.ones((8, 2), np.float32), mesh, "fsdp")
        state = State(placed(np.int32(0), mesh), {"x": x}, ())
        flip(x, 1)
        with pytest.raises(ReplicasDiffer) as found:
            checks(state, replicas_every=1).replicas(1, state)
    assert str(found.value).count("/params/x on ") == 2


def test_a_step_that_does_not_repeat_is_named(state):
    """Row 26. Computed twice from the same state: the second call adds another number to one leaf."""
    calls = []

    def step(state, batch):
        calls.append(batch)
        cut = state.params["cut"] + len(calls) // batch
        return state.replace(params={**state.params, "cut": cut.astype(state.params["cut"].dtype)}), {}

    look = checks(state, jax.jit(lambda s, b: (s, {}), donate_argnums=0), repeat_every=2)
    look._train_step = step
    for number, batch in ((1, 1), (2, 100), (3, 1)):
        look.before(number, state)
        after, _ = step(state, batch)
        look.after(number, after, batch)
    assert calls == [1, 100, 100, 1]  # only the second twice, which 100 keeps alike
    look.before(4, state)
    after, _ = step(state, 1)
    with pytest.raises(
        TrainingError, match="step 4, computed twice .*: /params/cut on .*0 of this process, /params/cut"
    ):
        look.after(4, after, 1)


def test_the_copy_that_is_kept_outlives_the_state(state):
    look = checks(
        state,
        jax.jit(lambda s, b: (s.replace(params=jax.tree.map(lambda x: x + b, s.params)), {}), donate_argnums=0),
        repeat_every=1,
    )
    look.before(1, state)
    after, _ = look._train_step(state, 1)
    assert state.params["cut"].is_deleted()
    look.after(1, after, 1)
    assert look._kept is None


def test_one_device_has_nothing_to_compare():
    with pytest.raises(ValueError, match="one device holds no copies"):
        ChecksConfig(replicas_every=5, repeat_every=0).check(1)
    with pytest.raises(ValueError, match=r"checks.repeat_every is -1"):
        ChecksConfig(replicas_every=5, repeat_every=-1)
