"""What a run folder says of its run, and whether it is the same run that is started again."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data.corpus import Corpus
from data.tokenizers.tokenizer import Tokenizer
from launch.experiment import Experiment
from launch.leaves import flat
from model.config import ModelConfig
from train.console import Console
from train.records import RunError, compare_configs, environment, open_run, write_json


def run_folder(experiment: Experiment, fresh: bool, console: Console) -> Path:
    """The run folder; with `fresh`, an old one steps aside: nothing is deleted."""
    folder = Path(experiment.run.dir).expanduser()
    if fresh and folder.exists():
        with open_run(folder):  # refuses while another process trains there
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            os.rename(folder, aside)
        console.say(f"starting over: the old run is now {aside}")
    return folder


def same_run(
    folder: Path,
    config: ConfigDict,
    model: ModelConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    experiment: Experiment,
    console: Console,
) -> dict[str, Any]:
    """What config.json is to say, once it is clear that the folder is new or holds this very run."""
    path = folder / "config.json"
    fingerprints = {"corpus": corpus.fingerprint, "tokenizer": tokenizer.fingerprint}
    now = {"config": flat(config), "model": dataclasses.asdict(model), "fingerprints": fingerprints}
    if not path.is_file():
        return now
    saved = json.loads(path.read_text(encoding="utf-8"))
    if "imported.source" in saved["config"]:
        raise RunError(
            f"{folder} holds a model imported from {saved['config']['imported.source']}: train in another folder, "
            "with another --config.run.dir"
        )
    harmless, other = compare_configs(saved["config"], now["config"])
    before = saved["fingerprints"]
    other += [f"{name}: {before[name]} -> {value}" for name, value in fingerprints.items() if before[name] != value]
    if other:
        raise RunError(
            f"{folder} holds another run:\n  " + "\n  ".join(other) + "\n"
            "Use the old values to continue it, another --config.run.dir beside it, or --fresh to start over"
        )
    for line in harmless:
        console.say(f"changed since the run began: {line}")
    schedule = experiment.optimizer.schedule
    if saved["config"]["train.steps"] != experiment.train.steps and schedule in ("cosine", "linear", "wsd"):
        console.warn(f"the {schedule} schedule now spans {experiment.train.steps} steps: the learning rate jumps")
    return now


def write_run(folder: Path, record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """config.json, the tokeniser, and environment.json with one entry a start."""
    path = folder / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    tokenizer.save(folder / "tokenizer")
    write_json(path, [*starts, environment()])
    write_json(folder / "config.json", record)
