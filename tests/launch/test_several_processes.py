"""Runs of two real processes on the loopback: the losses of one, stopped together, and never hanging."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import tessera
from launch import train
from tests import tiny
from train.records import read_metrics

FILE = """
import os
from pathlib import Path
from tests import tiny
def get_config():
    config = tiny.config(Path({folder!r}))
    config.optimizer.peak_lr = 1e-3
    config.train.update(eval_every=4, sample_every=4, sample_prompts=("ab",), sample_tokens=4)
    config.update_from_flattened_dict({changes!r})
    {more}
    return config
"""


def write(folder, changes, more=""):
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(FILE.format(folder=str(folder), changes=changes, more=more))
    return folder


SPEAKING = """
    if index := os.environ.get("TESSERA_PROCESS"):
        print("process", index, "reads its config")
"""


def start(folder, *flags, **environ):
    """`tessera train` in two processes of four devices each; what it says goes into `folder`/said.txt."""
    flags = flags or ("--processes=2",)
    command = [sys.executable, "-m", "tessera", "train", f"--config={folder}/config.py", "--devices=8", *flags]
    command.append("--heartbeat_timeout=10")
    with open(folder / "said.txt", "wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **environ})


def ended(process, folder, seconds=240):
    """The exit code, and all that was said."""
    code = process.wait(timeout=seconds)
    return code, (folder / "said.txt").read_text(errors="replace")


def losses(run):
    return np.array([record["loss"] for record in read_metrics(run)])


def alone(folder, changes):
    """The run folder of the same training in this one process, on eight devices."""
    config = tiny.config(folder)
    config.optimizer.peak_lr = 1e-3
    config.train.update(eval_every=4, sample_every=4, sample_prompts=("ab",), sample_tokens=4)
    config.update_from_flattened_dict({**changes, "run.dir": str(folder / "alone")})
    assert train.run(config) == train.DONE
    return folder / "alone"


MESHES = {
    "data": {"mesh.data": 8},
    "fsdp": {"mesh.data": 1, "mesh.fsdp": 8},
    "tensor": {
        "mesh.data": 1,
        "mesh.tensor": 8,
        "model.num_heads": 8,
        "model.vocab_size": 264,
    },  # both processes hold the same rows
}


@pytest.mark.parametrize(
    "mesh", [pytest.param(name, marks=() if name == "tensor" else pytest.mark.slow) for name in MESHES]
)
def test_two_processes_train_as_one(tmp_path, mesh):
    changes = {**MESHES[mesh], "train.steps": 6, "model.embed_dim": 32, "model.num_layers": 1}
    code, said = ended(start(write(tmp_path / "two", changes, SPEAKING)), tmp_path / "two")
    assert code == 0, said
    one, two = alone(tmp_path / "two", changes), tmp_path / "two" / "run"
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-6)
    assert [r["eval/loss"] for r in read_metrics(two) if "eval/loss" in r] == pytest.approx(
        [r["eval/loss"] for r in read_metrics(one) if "eval/loss" in r], abs=1e-6
    )
    # One process writes, and all are listed.
    assert (two / "metrics.jsonl").read_bytes().count(b'"loss"') == 6
    assert (two / "samples.md").read_text() == (one / "samples.md").read_text()
    (environment,) = json.loads((two / "environment.json").read_text())
    assert len(environment["processes"]) == 1 and said.count("step 6/6") == 1
    assert re.search(r"process 1 \(host .*, pid \d+\) +2048, 2049, 2050, 2051", said)
    assert tessera.load(two).config == tessera.load(one).config
    # What each has said is kept, and shown: the other one's with its number.
    for index, mark in enumerate(("", "[process 1] ")):
        begin, *kept = (two / "logs" / f"process_{index}.log").read_text().splitlines()
        assert re.match(r"--- \d{4}-\d\d-\d\d .* tessera train --config=.* --processes=2", begin)
        assert kept[0] == f"process {index} reads its config"
        assert [f"{mark}{line}" for line in kept] == [
            line for line in said.splitlines() if line.startswith("[process 1] ") == bool(index)
        ]


def test_processes_with_different_configs_are_refused(tmp_path):
    more = "config.seed = int(os.environ.get('TESSERA_PROCESS', 0))"
    code, said = ended(start(write(tmp_path / "two", {}, more)), tmp_path / "two")
    assert code == 78 and re.search(r"process 0 \(.*\) and process 1 \(.*\) have other configs:\s+seed: 0 -> 1", said)
    assert not (tmp_path / "two" / "run").exists()
