"""The program of an experiment: network, loss, optimiser and mesh as one compiled training step."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from data.mixture import check_stages
from data.objectives.examples import Features, Objective
from data.objectives.objectives import check_objective
from data.rows import row_features
from data.tokenizers.tokenizer import Tokenizer
from launch.experiment import Experiment
from launch.rows import objective_of
from model import parameters
from model.build import build
from model.chunks import check_chunks
from model.config import RECURRENT, ModelConfig
from model.kernels import choose_attention
from model.losses import LossFn, language_model_loss
from model.pipeline import count_microbatches
from model.remat import within_budget
from model.ring import check_cut
from model.sharding import STAGE, mesh_axes, shards
from train.mesh import batch_sharding, check_batch, check_length, make_mesh
from train.offload import check_host, offloaded, on_host
from train.optimizers import make_optimizer, make_schedule
from train.state import State, abstract_state, init_state
from train.step import make_train_step

# What each objective can train, by architecture and head.
TRAINS = {
    "causal_lm": ({"decoder", "ngram", *RECURRENT}, "lm"),
    "prefix_lm": ({"decoder"}, "lm"),
    "masked_lm": ({"encoder"}, "masked_lm"),
    "span_corruption": ({"encoder_decoder"}, "lm"),
    "ul2": ({"encoder_decoder"}, "lm"),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What `assemble` makes of an experiment. Use it under `jax.set_mesh(mesh)`."""

    mesh: Mesh
    config: ModelConfig  # resolved
    attention: str  # which implementation, and why
    tokenizer: Tokenizer  # with the special ids of the objective
    objective: Objective
    features: Features  # of a row
    model: nn.Module
    weights: parameters.Params  # declared `Weight`s
    loss_fn: LossFn
    global_batch: int  # rows
    batch_sharding: NamedSharding
    target: State  # shapes, types and shardings of the state
    init: Callable[[int], State]
    step_fn: Callable[..., Any]  # (state, batch) -> (state, metrics), pure

    def compile(self) -> tuple[Any, float]:
        """The training step for these very shapes and shardings, its state donated; and the seconds it took."""
        shardings = jax.tree.map(lambda x: x.sharding, self.target)
        # Without out_shardings the compiler may replicate what it returns.
        out = (shardings, NamedSharding(self.mesh, PartitionSpec()))
        began = time.perf_counter()
        placed = (shardings, self.batch_sharding)
        jitted = jax.jit(self.step_fn, in_shardings=placed, out_shardings=out, donate_argnums=0)
        return jitted.lower(self.target, self.abstract_batch()).compile(), time.perf_counter() - began

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch."""
        rows, placed, features = self.global_batch, self.batch_sharding, self.features.items()
        return {name: jax.ShapeDtypeStruct((rows, *shape), kind, sharding=placed) for name, (shape, kind) in features}


def check(experiment: Experiment, devices: Sequence[Any] | None = None) -> Mesh:
    """All that can be checked before there is data; the mesh, of `devices` or of all that there are.

    Raises:
        ValueError: sizes that the devices, the mesh or the number of steps do not fit.
    """
    mesh = make_mesh(experiment.mesh, devices)
    check_on(experiment, mesh)
    return mesh


def check_on(experiment: Experiment, mesh: Mesh | AbstractMesh) -> None:
    """`check` on a mesh that is made, or of which only the sizes are known."""
    rules = experiment.rules
    used = {axis for field in dataclasses.fields(rules) for axis in mesh_axes(getattr(rules, field.name))}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            raise ValueError(
                f"mesh.{axis} is {size}, but no sharding rule uses the axis: its devices would all compute the same. "
                f"Use mesh.{axis}=1, or set a rule such as --config.sharding.mlp={axis}"
            )
    if (parts := mesh.shape["expert"]) > 1 and not experiment.model.experts:
        raise ValueError(
            f"mesh.expert is {parts}, but model.experts is 0: use mesh.data to cut the batch alone, or set the number "
            "of experts"
        )
    architectures, head = TRAINS[experiment.objective.name]
    if experiment.model.architecture not in architectures or experiment.model.head != head:
        raise ValueError(
            f"objective.name {experiment.objective.name!r} trains {' or '.join(sorted(architectures))} with head "
            f"{head!r}: model.architecture is {experiment.model.architecture!r} with head {experiment.model.head!r}"
        )
    kept = {experiment.optimizer.moments_dtype, experiment.model.param_dtype}
    if experiment.optimizer.stochastic_rounding and kept == {"float32"}:
        raise ValueError(
            "optimizer.stochastic_rounding is True, but moments and parameters are float32, which nothing rounds: set "
            "optimizer.moments_dtype or model.param_dtype to bfloat16, or leave it False"
        )
    experiment.checks.check(mesh.size)
    check_cut(experiment.model, rules, dict(mesh.shape))
    check_objective(experiment.objective, experiment.model.max_length)
    check_stages(experiment.data, experiment.train.steps)
    make_schedule(experiment.optimizer, experiment.train.steps)
    check_batch(mesh, experiment.rules, experiment.train.global_batch, experiment.train.microbatches)
    _check_pipeline(experiment, dict(mesh.shape))


def _check_pipeline(experiment: Experiment, mesh_shape: dict[str, int]) -> None:
    model, t = experiment.model, experiment.train
    if mesh_shape[STAGE] > 1 and not model.attends:
        raise ValueError(
            f"mesh.stage is {mesh_shape[STAGE]}: stages are parts of a Transformer's layers, the architecture is "
            f"{model.architecture!r}. Use mesh.data"
        )
    if shards(experiment.rules.layers, mesh_shape) > 1:
        count_microbatches(t.global_batch // t.microbatches, mesh_shape, experiment.rules, model.pipeline_microbatches)
    elif model.pipeline_microbatches:
        raise ValueError(
            f"model.pipeline_microbatches is {model.pipeline_microbatches}, but the mesh has no stages: "
            "set mesh.stage, or leave it at 0"
        )


def assemble(experiment: Experiment, tokenizer: Tokenizer, devices: Sequence[Any] | None = None) -> Program:
    """Puts network, loss, optimiser and mesh together; computes nothing yet.

    Args:
        tokenizer: the corpus's. It gets the special ids that the objective needs, behind its own ids. The embedding
            has a row for each id, or more where the config says so.
        devices: of the mesh; without them all that there are. They need not be there: a plan only compiles for them.

    Raises:
        ValueError: weights or rows that the mesh cannot cut, or an embedding with fewer rows than there are ids.
    """
    mesh = check(experiment, devices)
    with jax.set_mesh(mesh):
        return _assemble(experiment, mesh, tokenizer)


def _assemble(experiment: Experiment, mesh: Mesh, tokenizer: Tokenizer) -> Program:
    rules, t, o = experiment.rules, experiment.train, experiment.objective
    tokenizer, objective = objective_of(experiment, tokenizer)
    features = row_features(objective, experiment.data.packing)
    for shape, _ in features.values():
        check_length(mesh, rules, shape[0])
    check_chunks(t.loss_chunks, features["inputs"][0][0], rules, dict(mesh.shape))
    lengths = {name: shape[0] for name, (shape, _) in features.items()}
    length, source_length = lengths["inputs"], lengths.get("source", 0)
    asked = _completed(experiment.model, tokenizer, o.name)
    impl, why = choose_attention(
        asked,
        mesh.devices.flat[0].platform,
        rules,
        mesh.shape,
        length=length,
        source_length=source_length,
        segments=bool({"segments", "source_segments"} & set(features)),
    )
    built, rows = dataclasses.replace(asked, attention_impl=impl), t.global_batch // t.microbatches
    built = within_budget(built, rules, mesh.shape, rows=rows, length=length, source_length=source_length)
    if built.remat_offload:
        check_host(mesh, f"model.remat_offload is {built.remat_offload!r}")
    config, model = dataclasses.replace(built, attention_impl=asked.attention_impl), build(built, rules)
    weights = parameters.weights(model)
    optimizer = make_optimizer(experiment.optimizer, weights, rules, config.base_width)
    loss_fn = language_model_loss(
        model, rules, label_smoothing=o.label_smoothing, z_loss=o.z_loss, chunks=t.loss_chunks
    )
    step_fn = make_train_step(
        loss_fn,
        optimizer,
        make_schedule(experiment.optimizer, t.steps),
        rules,
        microbatches=t.microbatches,
        clip_norm=experiment.optimizer.clip_norm,
        seed=experiment.seed,
        stochastic_rounding=experiment.optimizer.stochastic_rounding,
        spike_sigmas=t.spike_sigmas,
    )
    target = abstract_state(model, optimizer, rules, mesh, t.spike_window)
    if experiment.optimizer.offload:
        check_host(mesh, "optimizer.offload is True")
        step_fn, target = offloaded(step_fn, target), on_host(target)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    make = jax.jit(lambda seed: init_state(model, optimizer, seed, t.spike_window), out_shardings=shardings)
    return Program(
        mesh=mesh,
        config=config,
        attention=f"{impl}: {why}",
        tokenizer=tokenizer,
        objective=objective,
        features=features,
        model=model,
        weights=weights,
        loss_fn=loss_fn,
        global_batch=t.global_batch,
        batch_sharding=batch_sharding(mesh, rules),
        target=target,
        init=lambda seed: make(jnp.uint32(seed)),
        step_fn=step_fn,
    )


def _completed(config: ModelConfig, tokenizer: Tokenizer, objective: str) -> ModelConfig:
    """With what the tokeniser and the objective say: vocabulary, the start of a decoder, how a prompt is read."""
    size = tokenizer.vocab_size
    if config.architecture == "encoder_decoder":  # T5: the decoder starts with the padding
        pad = tokenizer.special_ids["pad"]
        if config.decoder_start_id not in (0, pad):
            raise ValueError(f"model.decoder_start_id is {config.decoder_start_id}: the tokeniser's padding is {pad}")
        config = dataclasses.replace(config, decoder_start_id=pad)
    if config.prefix_lm and objective != "prefix_lm":
        raise ValueError(f"model.prefix_lm is True: the objective is {objective!r}, use prefix_lm or leave it False")
    config = dataclasses.replace(config, prefix_lm=objective == "prefix_lm")
    if not config.vocab_size:
        return dataclasses.replace(config, vocab_size=size).resolved()
    if config.vocab_size < size:
        raise ValueError(
            f"model.vocab_size {config.vocab_size} is smaller than the tokeniser's vocabulary of {size}: "
            f"use {size} or more, or 0 for the tokeniser's"
        )
    return config.resolved()
