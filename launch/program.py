"""The program of an experiment: network, loss, optimiser and mesh as one compiled training step."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.experiment import Experiment
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.losses import LossFn, causal_lm
from model.sharding import mesh_axes
from model.transformer import Transformer
from train.mesh import batch_sharding, check_batch, check_length, make_mesh
from train.optimizers import make_optimizer, make_schedule
from train.state import State, abstract_state, init_state
from train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What `assemble` makes of an experiment. Use it under `jax.set_mesh(mesh)`."""

    mesh: Mesh
    config: ModelConfig  # resolved
    model: Transformer
    weights: parameters.Params  # declared `Weight`s
    loss_fn: LossFn
    batch_shape: tuple[int, int]  # rows, length
    batch_sharding: NamedSharding
    target: State  # shapes, types and shardings of the state
    init: Callable[[int], State]
    step_fn: Callable[..., Any]  # (state, batch) -> (state, metrics), pure

    def compile(self) -> tuple[Any, float]:
        """The training step for these very shapes and shardings, its state donated; and the seconds it took."""
        shape, placed = self.batch_shape, self.batch_sharding
        types = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=placed) for name, kind in types.items()}
        shardings = jax.tree.map(lambda x: x.sharding, self.target)
        # Without out_shardings the compiler may replicate what it returns.
        out = (shardings, NamedSharding(self.mesh, PartitionSpec()))
        began = time.perf_counter()
        jitted = jax.jit(self.step_fn, in_shardings=(shardings, placed), out_shardings=out, donate_argnums=0)
        return jitted.lower(self.target, batch).compile(), time.perf_counter() - began


def check(experiment: Experiment) -> Mesh:
    """All that can be checked before there is data; the mesh.

    Raises:
        ValueError: sizes that the devices, the mesh or the number of steps do not fit.
    """
    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes: so far one process, with all its local devices, trains")
    mesh, rules = make_mesh(experiment.mesh), experiment.rules
    used = {axis for field in dataclasses.fields(rules) for axis in mesh_axes(getattr(rules, field.name))}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            raise ValueError(
                f"mesh.{axis} is {size}, but no sharding rule uses the axis: its devices would all compute the same. "
                f"Use mesh.{axis}=1, or set a rule such as --config.sharding.mlp={axis}"
            )
    make_schedule(experiment.optimizer, experiment.train.steps)
    check_batch(mesh, experiment.rules, experiment.train.global_batch, experiment.train.microbatches)
    check_length(mesh, experiment.rules, experiment.model.max_length)
    return mesh


def assemble(experiment: Experiment, vocab_size: int) -> Program:
    """Puts network, loss, optimiser and mesh together; computes nothing yet.

    Args:
        vocab_size: ids of the tokeniser; the embedding has as many rows, or more where the config says so.

    Raises:
        ValueError: weights that the mesh cannot cut, or an embedding with fewer rows than the tokeniser has ids.
    """
    mesh = check(experiment)
    with jax.set_mesh(mesh):
        return _assemble(experiment, mesh, vocab_size)


def _assemble(experiment: Experiment, mesh: Mesh, vocab_size: int) -> Program:
    rules, t = experiment.rules, experiment.train
    config = _with_vocabulary(experiment.model, vocab_size)
    model = build(config, rules)
    weights = parameters.weights(model)
    optimizer = make_optimizer(experiment.optimizer, weights)
    loss_fn = causal_lm(model)
    step_fn = make_train_step(
        loss_fn,
        optimizer,
        make_schedule(experiment.optimizer, t.steps),
        rules,
        microbatches=t.microbatches,
        clip_norm=experiment.optimizer.clip_norm,
        seed=experiment.seed,
    )
    target = abstract_state(model, optimizer, rules, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    make = jax.jit(lambda seed: init_state(model, optimizer, seed), out_shardings=shardings)
    return Program(
        mesh=mesh,
        config=config,
        model=model,
        weights=weights,
        loss_fn=loss_fn,
        batch_shape=(t.global_batch, config.max_length),
        batch_sharding=batch_sharding(mesh, rules),
        target=target,
        init=lambda seed: make(jnp.uint32(seed)),
        step_fn=step_fn,
    )


def _with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    if not config.vocab_size:
        return dataclasses.replace(config, vocab_size=size).resolved()
    if config.vocab_size < size:
        raise ValueError(
            f"model.vocab_size {config.vocab_size} is smaller than the tokeniser's vocabulary of {size}: "
            f"use {size} or more, or 0 for the tokeniser's"
        )
    return config.resolved()
