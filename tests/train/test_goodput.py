"""Every second of a run has one name, what a kill cost is counted, and nothing is compiled twice unnoticed."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.goodput import LOWERED, PHASES, Clock, Recompiled, breakdown, earlier_seconds
from train.meter import earlier_skips


class Time:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_phases_share_out_all_of_the_time():
    time = Time()
    clock = Clock(now=time)
    time.passes(1)
    with clock.phase("evaluation"):
        time.passes(2)
        with clock.phase("productive"):
            time.passes(8)
        time.passes(4)
    time.passes(16)
    read = clock.read()
    seconds = {phase: read[f"time/{phase}"] for phase in PHASES}
    assert seconds == dict.fromkeys(PHASES, 0.0) | {"other": 17, "evaluation": 6, "productive": 8}
    assert read["goodput"] == 8 / 31


def test_the_time_until_a_supervisor_starts_again_is_lost():
    clock = Clock()
    clock.lose(time.time() - 50)
    clock.carry({"productive": 150.0})
    read = clock.read()
    assert 49 < read["time/lost"] < 52 and 0.6 < read["goodput"] < 0.75


def test_a_clock_knows_how_long_nothing_got_on_and_that_a_compiler_works():
    time, seen = Time(), []

    def passes(event, seconds, **_):
        time.passes(30)
        if event == LOWERED:
            seen.append(clock.idle())

    with Clock(now=time) as clock, clock.phase("evaluation"):
        time.passes(7)
        assert clock.idle() == 7
        clock.tick()
        assert clock.idle() == 0
        jax.monitoring.register_event_duration_secs_listener(passes)  # hears each event after the clock
        try:
            jax.jit(lambda x: jnp.tan(x) @ jnp.cos(x).T)(np.ones((4, 9)))
        finally:
            jax.monitoring.unregister_event_duration_listener(passes)
        assert seen == [0] and clock.idle() == 30
    assert clock.read()["time/evaluation"] >= 67


def test_an_error_ends_its_phase():
    time = Time()
    clock = Clock(now=time)
    with pytest.raises(KeyError), clock.phase("data"):
        time.passes(1)
        raise KeyError
    time.passes(2)
    assert clock.read()["time/data"] == 1 and clock.read()["time/other"] == 2


def test_compiling_is_taken_out_of_the_phase_that_it_happens_in():
    with Clock() as clock, clock.phase("evaluation"):
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((3, 5)))
    read = clock.read()
    assert read["compiles"] >= 1 and read["recompiles"] == 0
    assert read["time/compile"] > 0 and read["time/evaluation"] >= 0


def test_a_phase_that_compiles_again_warns_with_the_name_of_the_program():
    @jax.jit
    def scored(x):
        return x * 3 + 1

    with Clock() as clock:
        for shape in ((2, 7), (2, 7)):
            with clock.phase("evaluation"):
                scored(jnp.zeros(shape))
        assert clock.recompiles == 0
        other = jnp.zeros((3, 7))
        with pytest.warns(Recompiled, match="evaluation compiled again: .*scored"), clock.phase("evaluation"):
            scored(other)
        assert clock.recompiles >= 1
        assert "of them again" in breakdown(clock)
    before = clock.compiles
    scored(jnp.zeros((4, 7)))
    assert clock.compiles == before  # nobody listens any more


def record(step, productive, lost=0.0, **more):
    return {
        "step": step,
        **{f"time/{p}": 0.0 for p in PHASES},
        "time/productive": productive,
        "time/lost": lost,
        **more,
    }


def test_what_no_checkpoint_held_is_lost():
    lines = [record(10, 20.0), {"step": 10, "eval/loss": 3.0}, record(20, 44.0), record(30, 70.0)]
    kept = earlier_seconds(lines, 20)
    assert (kept["productive"], kept["lost"]) == (44.0, 26.0)
    between = earlier_seconds(lines, 25)  # no record there: the time of its neighbours
    assert (between["productive"], between["lost"]) == (57.0, 13.0)
    nothing = earlier_seconds(lines, 0)
    assert (nothing["productive"], nothing["lost"]) == (0.0, 70.0)
    assert earlier_seconds(lines, 30)["lost"] == 0.0
    assert earlier_seconds([], 0) == {}


def test_the_last_process_counts_where_an_earlier_one_got_further():
    first = [record(10, 20.0), record(30, 70.0)]
    second = [record(10, 20.0, 50.0), record(20, 35.0, 50.0)]  # it began at 10, and was killed at 20
    kept = earlier_seconds([*first, *second], 15)
    assert (kept["productive"], kept["lost"]) == (27.5, 57.5)


def test_a_clock_carries_on():
    time = Time()
    clock = Clock({"productive": 30.0, "lost": 10.0}, now=time)
    with clock.phase("productive"):
        time.passes(60)
    assert clock.read()["goodput"] == 0.9
    assert breakdown(clock) == "90% (productive 1m30s, lost 10s), 0 programs compiled"


def test_skipped_updates_are_counted_on_from_the_step_that_a_run_continues_after():
    lines = [
        {"step": 10, "skipped": 1, "spikes": 1},
        {"step": 20, "skipped": 3, "spikes": 1},
        {"step": 10, "time/lost": 1.0},  # where the second process began
        {"step": 20, "skipped": 2, "spikes": 1},
    ]
    assert earlier_skips(lines, 25) == {"skipped": 2, "spikes": 1}
    assert earlier_skips(lines[:3], 10) == {"skipped": 1, "spikes": 1}
    assert earlier_skips(lines, 0) == {"skipped": 0, "spikes": 0}
