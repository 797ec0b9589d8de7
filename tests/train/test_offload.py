"""The optimiser's state on the host: the same training, resumed from a checkpoint, and less memory on a device."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from data.tokenizers.tokenizer import CharTokenizer
from launch import experiment
from launch.program import assemble
from launch.train import run
from model import parameters
from model.build import build
from model.losses import language_model_loss
from model.sharding import ShardingRules
from tests import tiny
from train.mesh import MeshConfig, batch_sharding, make_mesh
from train.offload import check_host, offloaded, on_host
from train.optimizers import make_optimizer, make_schedule
from train.records import compare_configs, read_metrics
from train.state import abstract_state
from train.step import make_train_step


def losses(folder, steps, offload, name="run"):
    config = tiny.config(folder)
    config.run.dir = str(folder / name)
    config.optimizer.offload = offload
    config.train.update(steps=steps, sample_prompts=())
    config.optimizer.schedule = "constant"
    run(config)
    return [record["loss"] for record in read_metrics(folder / name) if "loss" in record]


def test_training_on_and_off_the_host_is_the_same_and_resumes(tmp_path):
    plain = losses(tmp_path, 6, False, "plain")
    assert len(plain) == 6
    losses(tmp_path, 3, True)
    np.testing.assert_array_equal(losses(tmp_path, 6, True), plain)


def test_a_run_may_be_resumed_without_it():
    harmless, other = compare_configs({"optimizer.offload": True}, {"optimizer.offload": False})
    assert harmless and not other


def test_a_device_without_memory_of_the_host_is_refused():
    class Device:
        device_kind = "abacus"

        def addressable_memories(self):
            return [type("Memory", (), {"kind": "beads"})()]

    class Mesh:
        devices = np.asarray([Device()])

    with pytest.raises(ValueError, match="optimizer.offload is True: abacus has no pinned_host memory, only beads"):
        check_host(Mesh(), "optimizer.offload is True")


def test_activations_wait_only_where_the_device_has_such_memory(tmp_path, monkeypatch):
    made = tiny.config(tmp_path)
    made.model.remat, made.model.remat_offload = "full", "query,key"
    monkeypatch.setattr("train.offload.HOST", "paper")
    with pytest.raises(ValueError, match="model.remat_offload is 'query,key': .* has no paper memory"):
        assemble(experiment.read(made), CharTokenizer("abcdefgh"))


def test_statistics_leave_the_memory_of_a_tpu(monkeypatch):
    """Compiled for four chips of a v5e: arguments in HBM are parameters and batch, moments lie on the host."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh, rules, c = make_mesh(MeshConfig(**{**WHOLE, "fsdp": 4}), devices), ShardingRules(), tiny.OPTIMIZER
    check_host(mesh, "optimizer.offload is True")
    with jax.set_mesh(mesh):
        model = build(dataclasses.replace(tiny.GPT, embed_dim=512, num_layers=2))
        optimizer = make_optimizer(c, parameters.weights(model), rules)
        target, loss = abstract_state(model, optimizer, rules, mesh), language_model_loss(model, rules)
        options = {"microbatches": 1, "clip_norm": 1.0, "seed": 0, "stochastic_rounding": False}
        step = make_train_step(loss, optimizer, make_schedule(c, 20), rules, **options)
        step, state = offloaded(step, target), on_host(target)
        shardings, rows = jax.tree.map(lambda x: x.sharding, state), batch_sharding(mesh, rules)
        batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in tiny.batch().items()}
        jitted = jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None), donate_argnums=0)
        used = jitted.lower(state, batch).compile().memory_analysis()

    def share(tree):
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(tree))

    moments, params = share(target.opt_state), share(target.params)
    assert used.host_argument_size_in_bytes == pytest.approx(moments, rel=0.1)  # beside a few padded biases
    assert used.host_alias_size_in_bytes == used.host_argument_size_in_bytes  # donated
    assert params <= used.argument_size_in_bytes < params + 0.3 * moments


WHOLE = {field.name: 1 for field in dataclasses.fields(MeshConfig)}
