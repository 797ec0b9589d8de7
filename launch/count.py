"""`tessera train` of an n-gram model: one pass of counting instead of steps of descent, in a run like any other."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.corpus import prepare
from data.objectives.objectives import make_objective
from evaluation.held_out import make_evaluator
from evaluation.language_model import LanguageModel
from launch import scores
from launch.experiment import Experiment
from launch.records import run_folder, same_run, write_run
from model.ngram import ngram_loss
from model.ngram_table import count_ngrams, save_ngram
from model.sharding import MESH_AXES
from train.console import Console
from train.mesh import make_mesh, single_device_mesh
from train.records import MetricsLog, open_run

TABLE = "ngram.npz"  # of a run folder


def count(config: ConfigDict, experiment: Experiment, *, fresh: bool, console: Console) -> int:
    """Counts the training text and scores the held-out text: exit code 0."""
    began = time.monotonic()
    mesh = check(experiment)
    with open_run(run_folder(experiment, fresh, console)) as folder:
        corpus = prepare(experiment.data, report=console.say)
        tokenizer = corpus.tokenizer
        model = dataclasses.replace(
            experiment.model, vocab_size=experiment.model.vocab_size or tokenizer.vocab_size
        ).resolved()
        record = same_run(folder, config, model, tokenizer, corpus, experiment, console)
        if (folder / TABLE).is_file():
            console.say(f"run {folder} is complete    anew: --fresh")
            return 0
        lm = LanguageModel(model, None, tokenizer, mesh)
        scores.check_prompts(lm, experiment)
        write_run(folder, record, tokenizer)
        started = time.perf_counter()
        lm.params = table = count_ngrams(np.asarray(corpus.train.tokens), model.vocab_size, model.ngram_order)
        seconds = time.perf_counter() - started
        size = sum(array.nbytes for array in table.values()) / 1e6
        console.say(f"counted {corpus.train.num_tokens:,} tokens in {seconds:.1f} s: a table of {size:.1f} MB")
        values = held_out_scores(experiment, model, table, corpus)
        log = MetricsLog(folder, tensorboard=experiment.run.tensorboard)
        log.write({"step": 1, "tokens": corpus.train.num_tokens, "elapsed": seconds, **values})
        log.close()
        save_ngram(folder / TABLE, table)  # after the scores: where there is a table, the run is complete
        scores.write_samples(lm, experiment, folder, 1, console)
        scores.farewell(console, folder, experiment, time.monotonic() - began, saved=folder / TABLE)
        return 0


def check(experiment: Experiment) -> Mesh:
    """The mesh of one device. Raises ValueError for what an n-gram model cannot be asked."""
    if experiment.objective.name != "causal_lm":
        raise ValueError(f"objective.name is {experiment.objective.name!r}: an n-gram model has causal_lm")
    if experiment.data.mixture or experiment.data.packing != "chunk":
        raise ValueError("an n-gram model counts one text as it is: use data.path, not data.mixture, and packing chunk")
    for axis in MESH_AXES:
        if (size := getattr(experiment.mesh, axis)) not in (1, -1):
            raise ValueError(f"mesh.{axis} is {size}: an n-gram model is counted and scored on one device, use 1")
    return make_mesh(experiment.mesh, jax.devices()[:1])


def held_out_scores(experiment: Experiment, model: Any, table: Mapping[str, Any], corpus: Any) -> dict[str, float]:
    """Scores of a table of `model.ngram_order` or more, on the held-out text."""
    objective = make_objective(experiment.objective, max_length=model.max_length, tokenizer=corpus.tokenizer)
    batches = scores.held_out(experiment, objective, corpus)
    loss = ngram_loss(model.ngram_order)
    evaluate = make_evaluator(loss, batches, lambda batch: dict(batch), corpus.tokenizer.token_bytes_V)
    with jax.set_mesh(single_device_mesh()):
        return evaluate(table)
