"""Running out of memory is answered with numbers and with what helps, in the process that it happens to."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from configs import gpt2_124m
from launch import experiment
from launch.plan.layout import full_sizes
from launch.plan.oom import advice, answer, answered
from launch.plan.shortage import Shortage, shortage
from launch.plan.variants import as_it_is, vary
from tests import tiny
from tests.launch.plan.test_shortage import SEEN
from train.meter import TrainingError

GIB = 2**30


@pytest.fixture
def small():
    """GPT-2 124M on four devices that hold copies."""
    made = gpt2_124m.get_config()
    made.model.remat, made.train.microbatches = "none", 1
    return experiment.read(made), full_sizes({"data": 4})


@pytest.mark.parametrize(
    "error",
    [
        JaxRuntimeError("INVALID_ARGUMENT: shapes"),
        RuntimeError("RESOURCE_EXHAUSTED: quota"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_left_alone(error, small):
    assert shortage(error) is None
    with pytest.raises(type(error)) as raised, answered(*small):
        raise error
    assert raised.value is error


def test_the_advice_saves_what_it_says(small):
    """Each line applied to the config, read anew and counted anew, saves what was promised, and goes on the mesh."""
    given, sizes = small
    now = as_it_is(given, sizes)
    lines = advice(now, None)
    assert len(lines) == 3 and lines == advice(now, None)
    for line in lines:
        made = gpt2_124m.get_config()
        made.model.remat, made.train.microbatches = "none", 1
        for override in line.split("   ")[0].split():
            name, value = override.removeprefix("--config.").split("=")
            made.update_from_flattened_dict({name: json.loads(value) if value.isdigit() else value})
        again = experiment.read(made)
        saved = now.total - as_it_is(again, again.mesh.sizes(4)).total
        assert f"saves about {saved / GIB:.1f} GiB" in line


def test_the_mildest_change_that_is_enough(small):
    given, sizes = small
    now = as_it_is(given, sizes)
    few, many = advice(now, 8 * GIB), advice(now, now.total - 4 * GIB)
    assert any("train.microbatches=2 " in line for line in few) and all("not the" not in line for line in few)
    assert any("train.microbatches=128 " in line and "not the" not in line for line in many)
    assert any("model.remat=full" in line and "not the" in line for line in many)


def test_what_is_in_use_is_not_advised(small):
    given, sizes = small
    lean = vary(given, sizes, {"model.remat": "full", "train.microbatches": 128})
    lines = advice(as_it_is(lean.experiment, sizes), None)
    assert lines and not any("remat" in line or "microbatches" in line for line in lines)
    # Four copies of a model whose state fills the device: its parts are what helps, and nothing that changes the run.
    assert "--config.mesh.data=" in lines[0] and "--config.mesh.tensor=" in lines[0] and "run.dir" not in lines[0]
    assert any("--config.mesh.fsdp=" in line for line in lines)
    last = vary(given, full_sizes({}), {"model.remat": "full", "train.microbatches": 512, "train.loss_chunks": 1024})
    assert all("another --config.run.dir" in line for line in advice(as_it_is(last.experiment, full_sizes({})), None))


def test_what_cannot_be_is_no_variant(small):
    given, sizes = small
    assert vary(given, sizes, {"train.microbatches": 3}) is None
    assert vary(given, sizes, {"train.microbatches": 256}) is None  # two rows for four devices
    assert vary(given, sizes, {"mesh.data": 1, "mesh.tensor": 5}) is None
    assert vary(given, sizes, {"train.loss_chunks": 3}) is None
    assert vary(given, sizes, {"mesh.data": 2, "mesh.fsdp": 2}).overrides == (
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
    )


def test_the_answer_has_the_compilers_bytes_where_there_are_some(small):
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros((2**20,), jnp.float32)).compile()
    text = answer(Shortage(2 * GIB, GIB), *small, compiled)
    assert text.startswith("out of memory: 2.0 GiB asked for, 1.0 GiB there\n  on a device, by count: activations 1")
    assert "by the compiler: 8.0 MiB state and batch, 0 B temporaries" in text


TRAIN = """
import sys
from launch.cli import main
if len(sys.argv) > 2:
    from jax.errors import JaxRuntimeError
    from train import loop
    import launch.train as command
    steps = 0
    def fail(step):
        def run(*given):
            global steps
            steps += 1
            if steps > 7:
                raise JaxRuntimeError(sys.argv[2])
            return step(*given)
        return run
    real = command.train
    command.train = lambda state, step, *rest, **options: real(state, fail(step), *rest, **options)
raise SystemExit(main(sys.argv[1].split("|")))
"""


def _train(folder, *given, text=None):
    """`tessera train` of the tiny config in a process of its own; exit code and what it said."""
    tiny.config(folder)
    (folder / "config.py").write_text(
        "from pathlib import Path\nfrom tests import tiny\n\n\ndef get_config():\n"
        f"    made = tiny.config(Path({str(folder)!r}))\n    made.model.vocab_size = 260\n    return made\n"
    )
    words = ["train", f"--config={folder}/config.py", *given]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", TRAIN, "|".join(words), *([text] if text else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_keeps_what_it_has_and_goes_on(tmp_path):
    text = next(iter(SEEN))
    code, _, said = _train(tmp_path, text=text)
    assert code == 1 and "Traceback" not in said
    assert "tessera: out of memory: 198.5 GiB asked for, 15.8 GiB there" in said
    assert "--config.train.microbatches=8   saves about" in said and "not the 182.8 GiB that are missing" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")] == ["5"]
    code, out, said = _train(tmp_path, "--config.train.microbatches=8")
    assert code == 0 and "resuming after step 5" in out, said


@pytest.mark.slow
def test_a_real_one_of_the_cpu(tmp_path):
    """Attention scores of 2 TiB: the allocation itself fails."""
    sizes = ("model.max_length=32768", "model.num_heads=512", "model.embed_dim=512", "train.global_batch=1")
    code, _, said = _train(tmp_path, *(f"--config.{size}" for size in (*sizes, "model.num_layers=1")))
    assert code == 1 and "Traceback" not in said and "tessera: out of memory: " in said, said
    assert "on a device, by count: activations 4" in said and "by the compiler: " in said  # 4 TiB, with their softmax
    assert re.search(r"\n  --config.model.max_length=\d+   saves about", said), said


@pytest.mark.slow
def test_a_real_one_of_the_tpu_compiler(monkeypatch, small):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    at = jax.sharding.SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((2**18,), jnp.float32, sharding=at)
    with (
        pytest.raises(
            TrainingError, match=r"out of memory: (\S+) GiB asked for, 15\.\d GiB there\n.*by count"
        ) as raised,
        answered(*small),
    ):
        jax.jit(lambda x: jnp.sort(jnp.sin(x[:, None] * x[None, :]), axis=0)[5]).lower(x).compile()
    assert dataclasses.is_dataclass(shortage(raised.value.__cause__))
    assert shortage(raised.value.__cause__).asked >= 2**38
