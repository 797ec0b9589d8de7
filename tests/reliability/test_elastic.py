"""Another number of devices, another mesh, another number of processes: the run goes on with the values it had."""

import jax
import numpy as np
import pytest

from data.tokenizers.tokenizer import ByteTokenizer
from launch.experiment import read
from launch.program import assemble
from tests import tiny
from tests.reliability import harness
from train.checkpoint import Checkpoints
from train.restore import saved_leaves

# Devices, and how they are used.
CHAIN = [
    (8, {"mesh.data": 8}),
    (4, {"mesh.data": 1, "mesh.fsdp": 4}),
    (2, {"mesh.data": 1, "mesh.tensor": 2}),
    (1, {"mesh.data": 1}),
    (8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
]
EVEN = {"model.vocab_size": 264}  # rows of the embedding, for all of them to cut


def test_a_state_is_the_same_in_every_bit_on_fewer_devices_and_on_all_again(tmp_path):
    """Row 18: each mesh saves what it has restored, and the checksums stay."""
    sums = []
    for step, (devices, mesh) in enumerate(CHAIN):
        config = tiny.config(tmp_path)
        config.update_from_flattened_dict({"model.num_layers": 1, **EVEN, **mesh})
        experiment = read(config)
        program = assemble(experiment, ByteTokenizer(), jax.devices()[:devices])
        checkpoints = Checkpoints(tmp_path / "checkpoints", experiment.checkpoint)
        with jax.set_mesh(program.mesh):
            found = checkpoints.resume(program.target)
            state, before = found or (program.init(0), step - 1)
            assert before == step - 1
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.target)
            checkpoints.save(step, state)
        checkpoints.wait()
        checkpoints.close()
        sums.append(saved_leaves(tmp_path / "checkpoints" / str(step)))
    assert len(sums[0]) > 10 and all(one == sums[0] for one in sums)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_with_two_processes_and_back(tmp_path):
    """Row 18: 8 devices, 4 of another mesh, 2, 1, two processes of 4, and 8 in one again; the losses of 8 devices."""
    folder = harness.write(tmp_path / "chain", {**EVEN, "checkpoint.every_steps": 0, "train.steps": 12})
    for number, (devices, mesh) in enumerate(CHAIN):
        flags = [f"--config.{name}={value}" for name, value in mesh.items()]
        flags += [f"--stop_after={2 * number + 2}", *(["--processes=2"] if number == 4 else [])]
        code, said = harness.run(folder, *flags, devices=devices)
        assert code == 0 and "damaged" not in said and f"step {2 * number + 2} is saved" in said, said
        assert number == 0 or f"resuming after step {2 * number}" in said, said
    harness.here(folder, "run")
    np.testing.assert_allclose(harness.losses(folder / "run"), harness.losses(harness.here(folder)), rtol=1e-6)
    assert len(harness.losses(folder / "run")) == 12
