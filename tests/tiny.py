"""What many tests need: tiny networks, meshes, batches and corpora."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from configs import defaults
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.losses import LossFn
from model.sharding import ShardingRules
from train.mesh import MeshConfig, make_mesh
from train.optimizers import OptimizerConfig, make_schedule
from train.step import make_train_step

GPT = ModelConfig(vocab_size=64, max_length=32, num_layers=2, embed_dim=32, num_heads=4)
LLAMA = dataclasses.replace(
    GPT, positions="rotary", norm="rms", mlp="swiglu", bias="none", tied_output=False, num_kv_heads=2, mlp_dim=64
)
OPTIMIZER = OptimizerConfig(
    name="adamw",
    peak_lr=1e-2,
    schedule="cosine",
    warmup_steps=2,
    final_lr_fraction=0.1,
    decay_fraction=0.2,
    b1=0.9,
    b2=0.95,
    epsilon=1e-8,
    moments_dtype="float32",
    stochastic_rounding=False,
    offload=False,
    muon_momentum=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
)


def mesh(**axes: int) -> jax.sharding.Mesh:
    """A mesh on the first devices that it needs."""
    config = MeshConfig(**({"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1} | axes))
    return make_mesh(config, jax.devices()[: math.prod(axes.values())])


@functools.cache
def initial(config: ModelConfig) -> parameters.Params:
    """The parameters of seed 0 in the memory of the host: to compile their draw takes as long as to compile a step."""
    with jax.set_mesh(mesh()):
        model = build(config)
        return jax.device_get(jax.jit(lambda: parameters.init(model, jax.random.key(0)))())


def start(config: ModelConfig, on: jax.sharding.Mesh, rules: ShardingRules | None = None) -> parameters.Params:
    """The same, cut as the rules say."""
    rules = rules or ShardingRules()
    return jax.device_put(initial(config), parameters.shardings(parameters.weights(build(config, rules)), rules, on))


def by_chance(config: ModelConfig, spread: float = 0.2) -> parameters.Params:
    """Weights far from those of a start, scales near 1, with nothing to compile."""
    rng = np.random.default_rng(0)

    def draw(weight: parameters.Weight) -> np.ndarray:
        return rng.normal(float(weight.role == "scale"), spread, weight.shape).astype(weight.dtype)

    return jax.tree.map(draw, parameters.weights(build(config)))


def train_step(loss: LossFn, made: optax.GradientTransformation, settings: OptimizerConfig, microbatches: int = 1):
    """One update, on a schedule of 20 steps."""
    return make_train_step(
        loss,
        made,
        make_schedule(settings, 20),
        ShardingRules(),
        microbatches=microbatches,
        clip_norm=settings.clip_norm,
        seed=0,
        stochastic_rounding=settings.stochastic_rounding,
    )


def batch(rows: int = 8, length: int = 32, vocab: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids with their successors as targets, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, (rows, length + 1), dtype=np.int32)
    weights = (rng.random((rows, length)) < 0.7).astype(np.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def config(folder: Path, text: str | None = None) -> ConfigDict:
    """An experiment that trains in a second on a text of its own, in `folder`."""
    source = folder / "corpus.txt"
    if not source.exists():
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(50)]
        source.write_text(text or " ".join(rng.choice(words, 8000)), encoding="utf-8")
    made = defaults.get_config()
    made.run.update(dir=str(folder / "run"), tensorboard=False)
    made.data.update(
        path=str(source), tokenizer="byte", held_out=0.1, held_out_by="tail", cache_dir=str(folder / "cache")
    )
    made.model.update(max_length=32, num_layers=2, embed_dim=32, num_heads=4)
    made.optimizer.update(peak_lr=1e-2, warmup_steps=2)
    made.train.update(steps=20, global_batch=8, log_every=1, eval_every=10, eval_sequences=32, sample_tokens=8)
    made.checkpoint.update(every_steps=5, every_minutes=0.0)
    return made
