"""Processes that read a run while another trains in it, and deletes what they may be reading."""

import signal
import subprocess
import sys

import numpy as np
import pytest

import tessera
from model.pretrained.safetensors_files import open_file
from tests.reliability import harness


@pytest.mark.slow
def test_generate_and_export_read_a_run_that_trains(tmp_path):
    """Row 33: each step is saved, one is kept."""
    changes = {"train.steps": 100_000, "checkpoint.every_steps": 1, "checkpoint.keep_last": 1, "model.dropout": 0.0}
    folder = harness.write(tmp_path / "one", changes)
    training = harness.start(folder)
    harness.wait_for_step(training, folder, 3)
    run, to = str(folder / "run"), str(tmp_path / "exported")
    commands = [["generate", f"--run={run}", "--prompt=ab", "--max_tokens=4"], ["export", run, f"--to={to}"]]
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "tessera", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    while any(reader.poll() is None for reader in readers):
        tessera.load(run)
    for reader in readers:
        said, _ = reader.communicate(timeout=harness.BUSY)
        assert reader.returncode == 0, said
    assert training.poll() is None, harness.said(folder)
    training.send_signal(signal.SIGTERM)
    code, said = harness.end(training, folder)
    assert code == 75 and "Traceback" not in said, said
    weights = {name: tensor.read() for name, tensor in open_file(tmp_path / "exported" / "model.safetensors").items()}
    assert sum(weight.size for weight in weights.values()) == sum(leaf.size for leaf in harness.params(folder / "run"))
    assert all(np.isfinite(weight).all() for weight in weights.values())
