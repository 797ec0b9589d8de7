"""Bytes of one device and seconds of one step from shapes alone: what to try first, before a compiler has the say.

State and batch are exact. The rest is a model of what XLA keeps, good to some tens of percent: it ranks, and says by
how much a change would help; it does not promise that something fits.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from data.objectives.examples import Features
from data.rows import row_features
from data.tokenizers.tokenizer import CharTokenizer
from launch.experiment import Experiment
from launch.plan.layout import Laid, abstract_mesh, full_sizes, lay_weights
from launch.rows import objective_of
from model import parameters
from model.build import build
from model.config import ModelConfig, flops_per_sequence
from model.moe import hidden_rows, shared_axes
from model.pipeline import kept_rows
from model.remat import priced, within_budget
from model.sharding import ShardingRules, shards
from train.optimizers import OptimizerConfig, make_optimizer
from train.state import abstract_state

KINDS = ("parameters", "optimizer", "batch", "gradients", "activations", "logits", "gathered weights")


def held_bytes(experiment: Experiment, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of one device by kind (KINDS), for a network whose vocabulary is known (`model.vocab_size`).

    Exact are parameters, optimizer (its step included) and batch: what the step takes as arguments. Gradients are one
    for each parameter, twice where microbatches are summed. Activations are what the backward pass needs of all layers
    plus what it makes again of one; logits are the scores and their gradient in f32 and what the network put out.
    Of an optimizer on the host counts what its visit for the update adds to the peak.

    Raises:
        ValueError: a weight that the mesh cannot cut.
    """
    model, rules = _model(experiment, sizes), experiment.rules
    laid = lay_weights(_weights(experiment, model), rules, sizes)
    state = _state(experiment, model, sizes)  # goes where its weights go, which can be cut
    tokens = _tokens(experiment, model, sizes)
    number, width = _itemsize(model.compute_dtype), shards(rules.vocab, dict(sizes))
    has_logits = model.head in ("lm", "masked_lm", "pretraining")
    scores = tokens * math.ceil(model.vocab_size / width) if has_logits else 0
    rows = experiment.train.global_batch // experiment.train.microbatches
    kept, made_again = _activations(model, rules, sizes, rows)
    summed = 4 * sum(math.prod(one.tile_shape) for one in laid) if experiment.train.microbatches > 1 else 0
    made = {
        "activations": round(tokens * ((model.num_layers + model.num_encoder_layers) * kept + made_again)),
        "logits": scores * (8 + number) // experiment.train.loss_chunks,
        "gathered weights": _gathered(laid, number),
    }
    if experiment.optimizer.offload:  # there for the update alone, when all of these have gone
        state["optimizer"] = max(0, state["optimizer"] - sum(made.values()))
    batch, gradients = _batch_bytes(experiment, sizes), state["parameters"] + summed
    return {**state, "batch": batch, "gradients": gradients, **made}


def step_work(experiment: Experiment, sizes: Mapping[str, int]) -> tuple[float, dict[str, int]]:
    """FLOPs of one step on one device, recomputation included; and the bytes it exchanges along each mesh axis.

    `model.vocab_size` is known, as in `held_bytes`.

    Bytes are what a device sends (and receives) when every exchange goes round a ring: (n - 1) / n of an all-gather or
    reduce-scatter, twice that of an all-reduce.
    """
    model, rules, t = _model(experiment, sizes), experiment.rules, experiment.train
    again = {"none": 1.0, "full": 4 / 3}.get(model.remat, 1.1)
    source = model.max_length if model.architecture == "encoder_decoder" else 0
    flops = again * t.global_batch * flops_per_sequence(model, model.max_length, source) / math.prod(sizes.values())
    tokens = _tokens(experiment, model, sizes)
    number = _itemsize(model.compute_dtype)
    sent = dict.fromkeys(sizes, 0.0)
    for laid in lay_weights(_weights(experiment, model), rules, sizes):
        tile = math.prod(laid.tile_shape)
        cut = {axis for axes in laid.cuts for axis in axes}
        for axis, size in sizes.items():
            along = shards(rules.batch, {**dict.fromkeys(sizes, 1), axis: size})
            if size > 1 and along > 1 and axis in cut and axis not in ("expert", "stage"):
                # Gathered for the forward and again for the backward pass, its gradient scattered, each microbatch.
                sent[axis] += (size - 1) * tile * t.microbatches * (2 * number + 4)
            elif size > 1 and axis not in cut and axis != "tensor":
                sent[axis] += 2 * (size - 1) / size * tile * 4  # copies: their gradients are summed once a step
    layers = model.num_layers + model.num_encoder_layers
    residual = tokens * t.microbatches * model.embed_dim * number
    if (n := sizes["tensor"]) > 1:
        sent["tensor"] += 2 * (n - 1) / n * 4 * layers * residual  # two sums a layer, forward and backward
    if (n := sizes["context"]) > 1:
        keys = residual * model.num_kv_heads * model.head_dim / model.embed_dim
        sent["context"] += (n - 1) * layers * 2 * 3 * keys  # keys and values go round, back with their gradients
    if model.experts:
        for axis, count in _travel(model, rules, sizes, residual).items():
            sent[axis] += layers * count
    return flops, {axis: round(count) for axis, count in sent.items() if count}


def features(experiment: Experiment) -> Features:
    """Shapes and types of the arrays of a row, which do not depend on the tokeniser."""
    return row_features(objective_of(experiment, CharTokenizer("a"))[1], experiment.data.packing)


class _Leaf(NamedTuple):
    """One array of the state: the axes that its spec names cut it."""

    shape: tuple[int, ...]
    itemsize: int
    spec: tuple[Any, ...]

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        parts = math.prod(shards(entry, dict(sizes)) for entry in self.spec)
        return math.prod(self.shape) // parts * self.itemsize


def _model(experiment: Experiment, sizes: Mapping[str, int]) -> ModelConfig:
    """Resolved, and with a budget of activations turned into names."""
    model, t = experiment.model.resolved(), experiment.train
    rows, length = t.global_batch // t.microbatches, model.max_length
    return within_budget(model, experiment.rules, sizes, rows=rows, length=length, source_length=length)


def _state(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    _, params, others = _declared(_plain(model), experiment.optimizer, experiment.rules)
    return {
        "parameters": sum(leaf.device_bytes(sizes) for leaf in params),
        "optimizer": sum(leaf.device_bytes(sizes) for leaf in others),
    }


def _weights(experiment: Experiment, model: ModelConfig) -> parameters.Params:
    return _declared(_plain(model), experiment.optimizer, experiment.rules)[0]


def _plain(model: ModelConfig) -> ModelConfig:
    """Without what changes no weight, so that many variants share one look at the network."""
    model = dataclasses.replace(model, remat="none", remat_bytes=0.0, remat_offload="")
    return dataclasses.replace(model, compute_dtype="float32", attention_impl="xla", scan_unroll=1)


@functools.lru_cache(maxsize=32)
def _declared(
    model: ModelConfig, optimizer: OptimizerConfig, rules: ShardingRules
) -> tuple[parameters.Params, list[_Leaf], list[_Leaf]]:
    """Declared weights, parameters, and what else a state holds. Traces the network, which takes a second."""
    mesh = abstract_mesh(full_sizes({}))
    with jax.sharding.use_abstract_mesh(mesh):
        network = build(model, rules)
        weights = parameters.weights(network)
        target = abstract_state(network, make_optimizer(optimizer, weights, rules, model.base_width), rules, mesh)
    params, others = jax.tree.leaves(target.params), jax.tree.leaves((target.step, target.opt_state))

    def leaf(x: Any) -> _Leaf:
        return _Leaf(x.shape, x.dtype.itemsize, tuple(x.sharding.spec))

    return weights, [leaf(x) for x in params], [leaf(x) for x in others]


def _tokens(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Tokens of one device in one microbatch."""
    parts, length = (shards(axes, dict(sizes)) for axes in (experiment.rules.batch, experiment.rules.length))
    rows = math.ceil(experiment.train.global_batch / experiment.train.microbatches / parts)
    return rows * math.ceil(model.max_length / length)


def _activations(model: ModelConfig, rules: ShardingRules, sizes: Mapping[str, int], rows: int) -> tuple[float, float]:
    """Bytes a token and layer: kept for the backward pass, and made again by it for the layer it is at.

    `rows`: of a microbatch, over all devices.
    """
    number = _itemsize(model.compute_dtype)
    if not model.attends:
        return 6.0 * model.embed_dim * number, 0.0
    residual = model.embed_dim / shards(rules.residual, dict(sizes))
    heads = model.num_heads / shards(rules.heads, dict(sizes))
    groups = model.num_kv_heads / shards(rules.kv_heads, dict(sizes))
    tokens = rows * model.max_length / shards(rules.batch, dict(sizes)) / shards(rules.length, dict(sizes))
    taken = hidden_rows(model, rules, sizes, rows, model.max_length)[0] / tokens if model.experts else 1.0
    hidden = taken * model.mlp_dim / shards(rules.mlp, dict(sizes)) * (2 if model.gated else 1)
    products = (heads + 2 * groups) * model.head_dim + 2 * residual + hidden  # of weights: what "dots" keeps
    # Between them: two norms in f32, the attended values, the activated hidden layer.
    between = 2 * residual * 4 / number + heads * model.head_dim + 2 * hidden
    between += 2 * taken * residual if model.experts else 0  # what experts take in and put out
    scores = heads * model.max_length * 2  # of a token with all others, and their softmax
    everything = number * (residual + products + between + scores)
    ticks = kept_rows(rows, dict(sizes), rules, model.pipeline_microbatches) / rows
    # What each expert multiplies is its own: "dots" makes it again.
    dots = residual + products - (hidden if model.experts else 0)
    if model.remat in ("none", "dots"):
        kept = everything if model.remat == "none" else number * dots
    else:
        length, layers = model.max_length, model.num_layers + model.num_encoder_layers
        inputs, named = priced(model, rules, sizes, rows=rows, length=length, source_length=length)
        bytes_kept = inputs + sum(saving.bytes for saving in named if saving.name in model.remat.split(","))
        return bytes_kept / tokens / layers, everything - bytes_kept / tokens / layers / ticks
    return kept * ticks, everything - kept


def _travel(model: ModelConfig, rules: ShardingRules, sizes: Mapping[str, int], residual: float) -> dict[str, float]:
    """Bytes that tokens travel to the experts of one layer and back, and so do their gradients, by mesh axis.

    `residual`: bytes of the residual stream of one layer on a device, in all microbatches. With a capacity an
    all-to-all of the slots, of which (n - 1) / n leave; without, all tokens are gathered.
    """
    axes = [axis for axis in shared_axes(rules) if sizes[axis] > 1]
    if not model.capacity_factor:
        found, whole = {}, residual
        for axis in reversed(axes):
            found[axis] = 4 * (sizes[axis] - 1) * whole
            whole *= sizes[axis]
        return found
    share = min(model.capacity_factor * model.experts_per_token, model.experts)
    return {axis: 4 * (sizes[axis] - 1) / sizes[axis] * share * residual for axis in axes}


def _gathered(laid: list[Laid], number: int) -> int:
    """The largest layer whole along the axes that only store it apart, twice: one in use, the next on its way."""
    layer, tables = 0.0, 0.0
    for one in laid:
        cut = {axis: one.mesh[axis] for axes in one.cuts for axis in axes}
        if "fsdp" not in cut:
            continue
        whole = math.prod(one.shape) / math.prod(size for axis, size in cut.items() if axis != "fsdp") * number
        if one.axes[0] == "layers":
            layer += whole / one.shape[0] * cut.get("stage", 1)
        else:
            tables = max(tables, whole)
    return round(2 * layer + tables)


def _batch_bytes(experiment: Experiment, sizes: Mapping[str, int]) -> int:
    rows = experiment.train.global_batch // shards(experiment.rules.batch, dict(sizes))
    length, arrays = shards(experiment.rules.length, dict(sizes)), features(experiment).values()
    return sum(rows * math.prod(shape) // length * np.dtype(kind).itemsize for shape, kind in arrays)


def _itemsize(name: str) -> int:
    return {"bfloat16": 2, "float32": 4}[name]
