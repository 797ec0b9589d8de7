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
from launch.plan.memory import gradient_bytes
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

KINDS = ("parameters", "optimizer", "batch", "gradients", "activations", "logits", "gathered weights", "host")


def held_bytes(experiment: Experiment, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of one device by kind (KINDS), for a network whose vocabulary is known (`model.vocab_size`).

    Exact are parameters, optimizer (its step included) and batch: what the step takes as arguments; and host, which is
    not on the device. Gradients are those of `gradient_bytes`. Activations are what the backward pass needs of all
    layers plus what it makes again of one; logits are the scores and their gradient in f32 and what the network put
    out. Of an optimizer on the host counts what its visit for the update adds to the peak.

    Raises:
        ValueError: a weight that the mesh cannot cut.
    """
    lengths = _lengths(experiment)
    model, rules = _model(experiment, sizes, lengths), experiment.rules
    laid = lay_weights(_weights(experiment, model), rules, sizes)
    state = _state(experiment, model, sizes)  # goes where its weights go, which can be cut
    tokens = _tokens(experiment, lengths.inputs, sizes)
    number, width = _itemsize(model.compute_dtype), shards(rules.vocab, dict(sizes))
    has_logits = model.head in ("lm", "masked_lm", "pretraining")
    scores = tokens * math.ceil(model.vocab_size / width) if has_logits else 0
    made = {
        "activations": _activations(experiment, model, lengths, sizes),
        "logits": scores * (8 + number) // experiment.train.loss_chunks,
        "gathered weights": _gathered(laid, number),
    }
    host = 0
    if experiment.optimizer.offload:  # on the device for the update alone, when all of these have gone
        host = _on_host(experiment, model, sizes)
        state["optimizer"] = max(0, state["optimizer"] - sum(made.values()))
    numbers = sum(math.prod(one.tile_shape) for one in laid)
    gradients = gradient_bytes(state["parameters"], numbers, experiment.train.microbatches)
    return {**state, "batch": _batch_bytes(experiment, sizes), "gradients": gradients, **made, "host": host}


def step_work(experiment: Experiment, sizes: Mapping[str, int]) -> tuple[float, dict[str, int]]:
    """FLOPs of one step on one device, recomputation included; and the bytes it exchanges along each mesh axis.

    `model.vocab_size` is known, as in `held_bytes`.

    Bytes are what a device sends (and receives) when every exchange goes round a ring: (n - 1) / n of an all-gather or
    reduce-scatter, twice that of an all-reduce.
    """
    lengths, rules, t = _lengths(experiment), experiment.rules, experiment.train
    model = _model(experiment, sizes, lengths)
    again = {"none": 1.0, "full": 4 / 3}.get(model.remat, 1.1)
    flops = again * t.global_batch * flops_per_sequence(model, *lengths) / math.prod(sizes.values())
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
    stacks = _stacks(experiment, model, lengths, sizes)
    rows = t.global_batch // t.microbatches
    ticks = kept_rows(rows, dict(sizes), rules, model.pipeline_microbatches) / rows  # idle stages send as well
    residual = sum(stack.layers * stack.tokens for stack in stacks) * t.microbatches * model.embed_dim * number * ticks
    across = sum(stack.layers * stack.tokens for stack in stacks if stack.source) * t.microbatches * ticks
    if (n := sizes["tensor"]) > 1:  # two sums a layer, three with attention to a source, forward and backward
        sent["tensor"] += 2 * (n - 1) / n * (4 * residual + 2 * across * model.embed_dim * number)
    if (n := sizes["context"]) > 1:
        keys = residual * model.num_kv_heads * model.head_dim / model.embed_dim
        sent["context"] += (n - 1) * 2 * 3 * keys  # keys and values go round, back with their gradients
    if model.experts:
        for axis, count in _travel(model, rules, sizes, residual).items():
            sent[axis] += count
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


class _Lengths(NamedTuple):
    """Tokens of a row, as the objective cuts them."""

    inputs: int
    source: int  # that an encoder reads for a decoder, else 0


class _Stack(NamedTuple):
    """Layers behind each other, which see the same tokens."""

    layers: int
    length: int  # of a row
    source: int  # tokens of a row that each layer attends to besides
    tokens: int  # of one device in one microbatch


def _lengths(experiment: Experiment) -> _Lengths:
    lengths = {name: shape[0] for name, (shape, _) in features(experiment).items()}
    return _Lengths(lengths["inputs"], lengths.get("source", 0))


def _stacks(
    experiment: Experiment, model: ModelConfig, lengths: _Lengths, sizes: Mapping[str, int]
) -> tuple[_Stack, ...]:
    """The layers of a network, and where it has an encoder for its decoder those of that."""
    tokens = [_tokens(experiment, length, sizes) for length in lengths]
    main = _Stack(model.num_layers, lengths.inputs, lengths.source, tokens[0])
    return (main, _Stack(model.num_encoder_layers, lengths.source, 0, tokens[1])) if lengths.source else (main,)


def _model(experiment: Experiment, sizes: Mapping[str, int], lengths: _Lengths) -> ModelConfig:
    """Resolved, and with a budget of activations turned into names."""
    model, t = experiment.model.resolved(), experiment.train
    rows = t.global_batch // t.microbatches
    return within_budget(model, experiment.rules, sizes, rows=rows, length=lengths.inputs, source_length=lengths.source)


def _state(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    _, params, others = _declared(_plain(model), experiment.optimizer, experiment.rules)
    return {
        "parameters": sum(leaf.device_bytes(sizes) for leaf in params),
        "optimizer": sum(leaf.device_bytes(sizes) for leaf in others),
    }


def _on_host(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Of an optimizer that lies on the host (`train.offload.on_host`): all but single numbers."""
    _, _, others = _declared(_plain(model), experiment.optimizer, experiment.rules)
    return sum(leaf.device_bytes(sizes) for leaf in others if math.prod(leaf.shape) > 1)


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


def _tokens(experiment: Experiment, length: int, sizes: Mapping[str, int]) -> int:
    """Tokens of one device in one microbatch, of rows of so many."""
    parts, across = (shards(axes, dict(sizes)) for axes in (experiment.rules.batch, experiment.rules.length))
    rows = math.ceil(experiment.train.global_batch / experiment.train.microbatches / parts)
    return rows * math.ceil(length / across)


def _activations(experiment: Experiment, model: ModelConfig, lengths: _Lengths, sizes: Mapping[str, int]) -> int:
    """Bytes that the backward pass of one microbatch finds of all layers, and what it makes again of one."""
    rules, number = experiment.rules, _itemsize(model.compute_dtype)
    stacks = _stacks(experiment, model, lengths, sizes)
    if not model.attends:
        return 6 * model.embed_dim * number * sum(stack.layers * stack.tokens for stack in stacks)
    rows = experiment.train.global_batch // experiment.train.microbatches  # over all devices
    ticks = kept_rows(rows, dict(sizes), rules, model.pipeline_microbatches) / rows
    made = [_layer(model, rules, sizes, rows, stack) for stack in stacks]
    if model.remat in ("none", "dots"):
        kept = [whole if model.remat == "none" else dots for whole, dots in made]
        again = max(whole - stays for (whole, _), stays in zip(made, kept, strict=True))
        return round(ticks * sum(stack.layers * stays for stack, stays in zip(stacks, kept, strict=True)) + again)
    length, source = lengths
    inputs, named = priced(model, rules, sizes, rows=rows, length=length, source_length=source)
    found = inputs + sum(saving.bytes for saving in named if saving.name in model.remat.split(","))
    of_one = found / sum(stack.layers for stack in stacks) / ticks
    return round(found + max(whole for whole, _ in made) - of_one)


def _layer(
    model: ModelConfig, rules: ShardingRules, sizes: Mapping[str, int], rows: int, stack: _Stack
) -> tuple[float, float]:
    """Bytes of one layer on a device that its backward pass needs: all, and those that "dots" keeps."""
    number, shape = _itemsize(model.compute_dtype), dict(sizes)
    residual = model.embed_dim / shards(rules.residual, shape)
    heads = model.num_heads / shards(rules.heads, shape)
    groups = model.num_kv_heads / shards(rules.kv_heads, shape)
    taken = hidden_rows(model, rules, sizes, rows, stack.length)[0] / stack.tokens if model.experts else 1.0
    hidden = taken * model.mlp_dim / shards(rules.mlp, shape) * (2 if model.gated else 1)
    products = (heads + 2 * groups) * model.head_dim + 2 * residual + hidden  # of weights: what "dots" keeps
    # Between them: two norms in f32, the attended values, the activated hidden layer.
    between = 2 * residual * 4 / number + heads * model.head_dim + 2 * hidden
    between += 2 * taken * residual if model.experts else 0  # what experts take in and put out
    scores = heads * stack.length * 2  # of a token with all others, and their softmax
    if stack.source:  # attention to it: queries and keys, a norm and values, scores
        products += (heads + 2 * groups * stack.source / stack.length) * model.head_dim + residual
        between += residual * 4 / number + heads * model.head_dim
        scores += heads * stack.source * 2
    # What each expert multiplies is its own: "dots" makes it again.
    dots = residual + products - (hidden if model.experts else 0)
    tokens = number * stack.tokens
    return tokens * (residual + products + between + scores), tokens * dots


def _travel(model: ModelConfig, rules: ShardingRules, sizes: Mapping[str, int], residual: float) -> dict[str, float]:
    """Bytes that tokens travel to the experts and back, and so do their gradients, by mesh axis.

    `residual`: bytes of the residual stream on a device, of all layers in all microbatches. With a capacity an
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
