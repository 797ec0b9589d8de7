"""Runs of two real processes on the loopback: the losses of one, stopped together, and never hanging."""

import json
import re

import numpy as np
import pytest

import tessera
from tests.reliability import harness
from train.records import read_metrics

SPEAKING = """
    if index := os.environ.get("TESSERA_PROCESS"):
        print("process", index, "reads its config")
"""
CHANGES = {
    "train.steps": 6,
    "train.eval_every": 4,
    "train.sample_every": 4,
    "train.sample_prompts": ("ab",),
    "train.sample_tokens": 4,
}
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
    folder = harness.write(tmp_path / "two", {**CHANGES, **MESHES[mesh]}, SPEAKING)
    code, said = harness.run(folder, "--processes=2")
    assert code == 0, said
    one, two = harness.here(folder), folder / "run"
    np.testing.assert_allclose(harness.losses(two), harness.losses(one), atol=1e-6)
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
        assert f"process {index} reads its config" in kept
        assert [f"{mark}{line}" for line in kept] == [
            line for line in said.splitlines() if line.startswith("[process 1] ") == bool(index)
        ]


def test_processes_with_different_configs_are_refused(tmp_path):
    more = "config.seed = int(os.environ.get('TESSERA_PROCESS', 0))"
    folder = harness.write(tmp_path / "two", more=more)
    code, said = harness.run(folder, "--processes=2")
    assert code == 78 and re.search(r"process 0 \(.*\) and process 1 \(.*\) have other configs:\s+seed: 0 -> 1", said)
    assert not (folder / "run").exists()
