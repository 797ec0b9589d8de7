"""What a run folder says of its run, and whether it is the same run that is started again."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import defaults
from data.corpus import Corpus
from data.json_text import parse_json
from data.tokenizers.tokenizer import Tokenizer
from launch.experiment import Experiment
from launch.leaves import flat
from model.config import ModelConfig
from train.console import Console
from train.peers import peers
from train.records import RunError, compare_configs, environment, open_run, read_object, write_json

SIZES = ("files", "bytes of files", "documents", "bytes of text", "tokens")  # of a part of a corpus


def run_folder(experiment: Experiment, fresh: bool, console: Console) -> Path:
    """The run folder; with `fresh`, an old one steps aside: nothing is deleted."""
    folder = Path(experiment.run.dir).expanduser()
    if fresh and folder.exists():
        with open_run(folder):  # refuses while another process trains there
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            os.rename(folder, aside)
        console.say(f"starting over: the old run is now {aside}")
    return folder


@contextlib.contextmanager
def open_shared_run(experiment: Experiment, fresh: bool, console: Console) -> Iterator[Path]:
    """The run folder, locked by process 0 for all.

    Raises:
        ValueError: a folder that not all processes see.
    """
    group = peers()
    with contextlib.ExitStack() as held:
        with group.first_alone("run folder"):
            folder = run_folder(experiment, fresh and group.first, console)
            if group.first:
                held.enter_context(open_run(folder))
        lock = folder / ".lock"
        group.same(f"the owner of run folder {folder.resolve()}", lock.read_text() if lock.is_file() else "missing")
        yield folder


def check_same_config(config: ConfigDict) -> None:
    """Raises ValueError where processes of one run were started with different configs."""
    group, own = peers(), flat(config)
    for name, text in zip(group.names, group.gather("config", json.dumps(own)), strict=True):
        differing = [line for lines in compare_configs(own, json.loads(text)) for line in lines]
        if differing:
            raise ValueError(f"{group.names[group.index]} and {name} have other configs:\n  " + "\n  ".join(differing))


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
    now["data"] = contents(corpus)
    if not path.is_file():
        return now
    saved = read_object(path, "config", "fingerprints")
    if "imported.source" in saved["config"]:
        raise RunError(
            f"{folder} holds a model imported from {saved['config']['imported.source']}: train in another folder, "
            "with another --config.run.dir"
        )
    # A leaf that an older release did not have: its default is what that release did.
    added = {name: value for name, value in flat(defaults.get_config()).items() if name in now["config"]}
    before = {**added, **saved["config"]}
    harmless, other = compare_configs(before, now["config"])
    other += fingerprint_changes(saved, now)
    if other:
        raise RunError(
            f"{folder} holds another run:\n  " + "\n  ".join(other) + "\n"
            "Use the old values to continue it, another --config.run.dir beside it, or --fresh to start over"
        )
    for line in harmless:
        console.say(f"changed since the run began: {line}")
    schedule = experiment.optimizer.schedule
    if before["train.steps"] != experiment.train.steps and schedule in ("cosine", "linear", "wsd"):
        console.warn(f"the {schedule} schedule now spans {experiment.train.steps} steps: the learning rate jumps")
    return now


def contents(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """How much there is of each part of a corpus, so that a change can be told by more than a fingerprint."""
    found = {}
    for name, part in corpus.parts.items():
        stores, provenance = (part.train, part.held_out), part.train.manifest["provenance"]
        found[name] = {
            "path": provenance["path"],
            "files": provenance["num_files"],
            "bytes of files": provenance["num_bytes"],
            "documents": sum(store.num_documents for store in stores),
            "bytes of text": sum(store.num_bytes for store in stores),
            "tokens": sum(store.num_tokens for store in stores),
            "fingerprint": part.train.manifest["source_fingerprint"],
        }
    return found


def fingerprint_changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same of the corpus and the tokeniser, a line each, as `same_run` records them."""
    before, after = saved["fingerprints"], now["fingerprints"]
    lines = [f"{name}: {before.get(name)} -> {value}" for name, value in after.items() if before.get(name) != value]
    if before.get("corpus") == after["corpus"]:
        return lines
    for name, part in now["data"].items():
        known = saved.get("data", {}).get(name, part)  # older runs do not say it
        if known["fingerprint"] != part["fingerprint"]:
            sizes = [f"{what} {known[what]} -> {part[what]}" for what in SIZES if known[what] != part[what]]
            same = f"{part['documents']} documents as before, of which some were changed or moved"
            lines.append(f"  data of {name and f'{name}, '}{part['path']}: {', '.join(sizes) or same}")
    return lines


def write_run(folder: Path, record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """config.json, the tokeniser, and environment.json with one entry a start: process 0's, with the others' in it."""
    path = folder / "environment.json"
    starts = _starts(path) if path.is_file() else []
    everyone = [json.loads(text) for text in peers().gather("environment", json.dumps(environment()))]
    if not peers().first:
        return
    others = {"processes": everyone[1:]} if len(everyone) > 1 else {}
    tokenizer.save(folder / "tokenizer")
    write_json(path, [*starts, {**everyone[0], **others}])
    write_json(folder / "config.json", record)


def _starts(path: Path) -> list[Any]:
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {str(error)[:150]}: rename it, and the run begins another") from error
    if not isinstance(found, list):
        raise RunError(f"{path} must hold a list of starts: rename it, and the run begins another")
    return found
