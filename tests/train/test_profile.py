"""Which steps are traced, and the mistakes in asking for them."""

import jax.numpy as jnp
import pytest

from train.profile import Profiler, ProfileSteps, parse


def test_parse():
    assert parse("") is None
    assert parse("steps:10-13") == ProfileSteps(10, 13)
    assert parse("steps:7") == ProfileSteps(7, 7)


@pytest.mark.parametrize("text", ["10-13", "steps:13-10", "steps:0-3", "steps:a", "steps:1-2-3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="write steps:FIRST-LAST"):
        parse(text)


def test_steps_behind_the_end_are_refused():
    ProfileSteps(11, 20).check(20)
    with pytest.raises(ValueError, match="steps:19-21: this run has 20 steps; profile for example steps:3-5"):
        ProfileSteps(19, 21).check(20)


def test_a_run_that_goes_on_traces_what_is_left(tmp_path):
    said = []
    profiler = Profiler(tmp_path / "profile", ProfileSteps(2, 5), said.append)
    for step in range(4, 8):
        profiler.before(step)
        profiler.after(step, {"loss": jnp.float32(step)})
        assert len(said) == (step >= 5)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_trace_holds_the_steps_asked_for(tmp_path):
    said = []
    profiler = Profiler(tmp_path / "profile", ProfileSteps(2, 3), said.append)
    for step in range(1, 6):
        profiler.before(step)
        profiler.after(step, {"loss": jnp.float32(step)})
        assert len(said) == (step >= 3)
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and str(tmp_path) in said[0]


def test_a_run_that_stops_early_keeps_its_trace(tmp_path):
    said = []
    profiler = Profiler(tmp_path / "profile", ProfileSteps(1, 3), said.append)
    profiler.before(1)
    profiler.stop()
    profiler.stop()
    assert len(said) == 1 and list((tmp_path / "profile").rglob("*.xplane.pb"))
