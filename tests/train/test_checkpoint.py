"""Checkpoints: bit-equal on any mesh, strict about what fits, and keeping what they should."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.sharding import ShardingRules
from tests import tiny
from train.checkpoint import CheckpointConfig, Checkpoints
from train.optimizers import make_optimizer
from train.restore import METADATA, TOKENIZER, CheckpointError, finished_steps, load_params
from train.state import abstract_state, init_state

CONFIG = CheckpointConfig(every_steps=5, every_minutes=0.0, keep_last=2, keep_best=0, keep_every_steps=0)
RULES = ShardingRules()


def target(mesh, config=tiny.GPT, optimizer=tiny.OPTIMIZER):
    model = build(config)
    with jax.set_mesh(mesh):
        return abstract_state(model, make_optimizer(optimizer, parameters.weights(model), RULES), RULES, mesh)


def fresh(mesh, config=tiny.GPT):
    model = build(config)
    with jax.set_mesh(mesh):
        made = make_optimizer(tiny.OPTIMIZER, parameters.weights(model), RULES)
        shardings = jax.tree.map(lambda x: x.sharding, target(mesh, config))
        return jax.jit(lambda: init_state(model, made, jnp.uint32(7)), out_shardings=shardings)()


def saved(folder, state, steps=(5,), config=CONFIG, losses=None):
    checkpoints = Checkpoints(folder, config)
    for i, step in enumerate(steps):
        checkpoints.save(step, state, losses[i] if losses else None)
    checkpoints.wait()
    return checkpoints


def forget(step):
    """Makes the checkpoint in the folder `step` one of before there were checksums."""
    about = json.loads((step / METADATA).read_text())
    about["custom_metadata"] = {TOKENIZER: about["custom_metadata"][TOKENIZER]}
    (step / METADATA).write_text(json.dumps(about))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(
    ("before", "after"), [({"fsdp": 4, "tensor": 2}, {}), ({}, {"fsdp": 4, "tensor": 2}), ({"data": 8}, {"fsdp": 2})]
)
def test_restores_bit_equal_on_another_mesh(tmp_path, before, after):
    state = fresh(tiny.mesh(**before))
    saved(tmp_path, state).close()
    wanted = target(tiny.mesh(**after))
    restored = Checkpoints(tmp_path, CONFIG).restore(5, wanted)
    assert_equal(state, restored)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, wanted)


def test_parameters_alone_are_enough_to_load(tmp_path):
    state = fresh(tiny.mesh())
    saved(tmp_path, state).close()
    params, step = load_params(tmp_path, target(tiny.mesh()).params)
    assert step == 5
    assert_equal(params, state.params)


F32 = "float32"
DEEPER, HALF, BARE = (
    dataclasses.replace(tiny.GPT, **change)
    for change in ({"num_layers": 4}, {"param_dtype": "bfloat16"}, {"bias": "none"})
)
LION = dataclasses.replace(tiny.OPTIMIZER, name="lion")


@pytest.mark.parametrize(
    ("config", "optimizer", "says"),
    [
        (
            DEEPER,
            tiny.OPTIMIZER,
            f"params/decoder/layers/mlp/up/kernel: checkpoint (2, 32, 128) {F32}, this run (4, 32, 128) {F32}",
        ),
        (HALF, tiny.OPTIMIZER, f"params/decoder/norm/scale: checkpoint (32,) {F32}, this run (32,) bfloat16"),
        (BARE, tiny.OPTIMIZER, f"params/decoder/layers/mlp/up/bias: checkpoint (2, 128) {F32}, this run missing"),
        (tiny.GPT, LION, f"training/opt_state/0/nu/embedding/embedding: checkpoint (64, 32) {F32}, this run missing"),
    ],
)
def test_what_does_not_fit_is_listed_by_path(tmp_path, config, optimizer, says):
    saved(tmp_path, fresh(tiny.mesh())).close()
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path, CONFIG).restore(5, target(tiny.mesh(), config, optimizer))
    assert says in str(error.value) or "more" in str(error.value)


def test_keeps_last_best_and_every(tmp_path):
    state = fresh(tiny.mesh())
    config = dataclasses.replace(CONFIG, keep_best=1, keep_every_steps=4)
    saved(tmp_path, state, range(1, 10), config, losses=[9, 8, 1, 7, 6, 5, 4, 3, 2]).close()
    assert finished_steps(tmp_path) == [3, 4, 8, 9]  # 3 is best; 4 and 8 are multiples; 8 and 9 are last


def test_best_is_kept_where_some_saves_have_no_score(tmp_path):
    state = fresh(tiny.mesh())
    config = dataclasses.replace(CONFIG, keep_best=1)
    saved(tmp_path, state, range(1, 7), config, losses=[3.0, 1.0, None, 2.0, None, None]).close()
    assert finished_steps(tmp_path) == [2, 5, 6]


def test_folders_that_are_no_checkpoint_are_ignored(tmp_path):
    saved(tmp_path, fresh(tiny.mesh())).close()
    (tmp_path / "99").mkdir()
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "6").mkdir()
    assert finished_steps(tmp_path) == [5]
    checkpoints = Checkpoints(tmp_path, CONFIG)
    state, step = checkpoints.resume(target(tiny.mesh()))
    assert step == 5
    assert_equal(state, fresh(tiny.mesh()))
    checkpoints.save(6, fresh(tiny.mesh()))  # the empty folder of that name stepped aside
    checkpoints.wait()
    assert finished_steps(tmp_path) == [5, 6]


def test_due_by_steps_and_by_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("train.checkpoint.time.monotonic", lambda: clock[0])
    checkpoints = Checkpoints(tmp_path, dataclasses.replace(CONFIG, every_minutes=2.0))
    assert [step for step in range(1, 12) if checkpoints.due(step)] == [5, 10]
    assert not checkpoints.overdue()
    clock[0] = 121.0
    assert checkpoints.overdue() and not checkpoints.due(3)


def test_missing_steps_say_which_there_are(tmp_path):
    wanted = target(tiny.mesh()).params
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        load_params(tmp_path, wanted)
    saved(tmp_path, fresh(tiny.mesh())).close()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 6.*\[5\]"):
        load_params(tmp_path, wanted, 6)


def test_another_tokeniser_is_refused_with_both_fingerprints(tmp_path):
    state, wanted = fresh(tiny.mesh()), target(tiny.mesh())
    first = Checkpoints(tmp_path, CONFIG, tokenizer="aaaa")
    first.save(5, state)
    first.wait()
    assert_equal(first.restore(5, wanted), state)
    says = "trained on ids of the tokeniser aaaa, and this is bbbb"
    with pytest.raises(CheckpointError, match=says):
        Checkpoints(tmp_path, CONFIG, tokenizer="bbbb").restore(5, wanted)
    with pytest.raises(CheckpointError, match=says):
        load_params(tmp_path, wanted.params, tokenizer="bbbb")
    assert load_params(tmp_path, wanted.params, tokenizer="aaaa")[1] == 5
