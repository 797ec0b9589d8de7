"""What cannot be planned is refused before anything is compiled, in the words of the command line."""

import dataclasses
import io

import jax
import pytest
from rich.console import Console as Terminal

from launch import cli
from launch.plan import report, topology
from launch.plan.plan import Plan, plan
from launch.plan.topology import EMULATED, find_topology
from launch.program import Program
from tests.launch.plan.tiny_plans import PLAN, tiny_config
from train.chips import CHIPS
from train.console import Console


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(Program, "compile", lambda self: pytest.fail("it was compiled"))


@pytest.mark.parametrize("name", ["v9:2x2", "v5p", "v5p-128", "v5e:4xx4", "", "tpu:4"])
def test_a_topology_that_does_not_exist_lists_what_there_is(name):
    with pytest.raises(ValueError, match=r"v4, v5e, v5p, v6e, tpu7x.*h100.*cpu"):
        find_topology(name)


@pytest.mark.parametrize(
    ("name", "says"), [("v5p:4x4", "3 dimensions"), ("v5e:2x2x2", "2 dimensions"), ("cpu:0", "no")]
)
def test_a_layout_that_does_not_exist(name, says):
    with pytest.raises(ValueError, match=says):
        find_topology(name)


def test_more_devices_than_jax_started_with():
    assert len(jax.devices()) == 8
    with pytest.raises(
        ValueError, match=r"needs 64 emulated devices, jax has started with 8.*jax_num_cpu_devices\", 64"
    ):
        find_topology("cpu:64")


def test_without_libtpu_a_tpu_is_emulated(monkeypatch):
    assert len(jax.devices()) == 8
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    found = find_topology("v5e:2x4")
    assert found.method == EMULATED and found.chip is CHIPS["v5e"] and found.devices == jax.devices()


@pytest.mark.parametrize(
    ("mesh", "config", "says"),
    [
        ({"fsdp": 16}, {}, "asks for 16 devices, there are 8"),
        ({"fsdp": 3}, {}, "makes 3 devices, there are 8"),
        ({"fsdp": -1, "data": -1}, {}, "at most one is -1"),
        ({"fsdb": 8}, {}, "no mesh axis fsdb: the axes are .*fsdp"),
        ({"fsdp": 8}, {"global_batch": 12}, "12.*use a global_batch of 8 or 16"),
        ({"fsdp": 8}, {"global_batch": 16, "microbatches": 3}, "not divisible by train.microbatches 3"),
    ],
)
def test_a_mesh_or_batch_that_does_not_fit(mesh, config, says, no_compiler):
    made = tiny_config()
    made.train.update(config)
    with pytest.raises(ValueError, match=says):
        plan(made, "cpu:8", mesh=mesh)


def test_characters_are_not_guessed(no_compiler):
    made = tiny_config(data=8)
    made.data.tokenizer, made.model.vocab_size = "char", 0
    with pytest.raises(ValueError, match=r"--config.model.vocab_size=N"):
        plan(made, "cpu:8")


def test_an_n_gram_model_has_no_step(no_compiler):
    made = tiny_config(data=8)
    made.model.architecture = "ngram"
    with pytest.raises(ValueError, match="nothing to plan"):
        plan(made, "cpu:8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "for which devices"),
        (["--topology=v9:2x2"], "no topology 'v9:2x2'"),
        (["--topology=cpu:8", "--mesh=fsdp:8"], "fsdp=32,tensor=4"),
        (["--topology=cpu:8", "--slices=0"], "at least 1"),
        (["--topology=cpu:8", "--tokens=-1"], "positive"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, says, capsys, monkeypatch, no_compiler):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(cli, "keep_memory", lambda: None)
    monkeypatch.setattr("launch.compiled.keep_compiled", lambda: None)
    assert cli.main(["plan", "--config=configs/gpt_demo.py", *arguments]) in (cli.USAGE, cli.CONFIG)
    assert says in capsys.readouterr().err


def shown(planned: Plan) -> str:
    out = io.StringIO()
    report.show(Console(Terminal(file=out, width=200)), planned)
    return out.getvalue()


def test_a_report_of_what_fits():
    text = shown(PLAN)
    for piece in ("fits: 6.0 GiB of 16.0 GiB usable", "compiled by libtpu", "names 50% of", "fsdp 4", "model/mlp.py:7"):
        assert piece in text, piece
    assert "all-gather" in text and "3.0 GiB" in text  # 1 GiB, three times
    assert "40.0% at most" in text and "10.0 ms at best" in text and "25.0 ms if nothing does" in text


def test_a_report_of_what_does_not_fit():
    text = shown(dataclasses.replace(PLAN, fits=False, problem="Ran out of memory on HBM", collectives=[], buffers=[]))
    assert "DOES NOT FIT: Ran out of memory on HBM" in text and "if it did fit" in text
    unknown = dict.fromkeys(("compute_seconds", "step_seconds", "serial_step_seconds", "mfu_bound"))
    text = shown(dataclasses.replace(PLAN, **unknown))
    assert "compute    -: no data sheet" in text and "MFU        -" in text and "at best" not in text
    assert "10.0 ms for 7.6 GiB" in text  # its memory is known all the same
    assert "may fit" in shown(dataclasses.replace(PLAN, method=EMULATED))
