"""Published models, in the layout of Hugging Face: found, loaded, imported as a run, and written again."""

import dataclasses
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from data.atomic import new_folder
from data.errors import DataError
from data.json_text import parse_json
from data.tokenizers.export import export_tokenizer
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from launch.saved import RUN_FILE, load_run, read_run
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.parameters import named_leaves
from model.pretrained.export import export
from model.pretrained.safetensors_files import read_json
from model.pretrained.weights import LoadReport, WeightsError, load_weights, read_config
from model.sharding import ShardingRules
from train.checkpoint import save_params
from train.mesh import single_device_mesh
from train.records import RunError, check_run_name, environment, write_json

# All that Tessera reads of a repository: weights only as safetensors, never a pickle, never code.
FILES = ("model.safetensors", "model-*.safetensors", "*.json", "merges.txt", "vocab.txt", "*.model", "vocab.bpe")
MEANS = "pooling_mode_mean_tokens"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class Published:
    """A model of a folder in the layout of Hugging Face."""

    config: ModelConfig
    model_type: str
    params: Any
    tokenizer: Tokenizer
    report: LoadReport


def is_published(folder: Path) -> bool:
    """Whether a folder is a published model, not a run: its config.json names a `model_type`."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        keys = parse_json(path.read_bytes())
    except ValueError:
        return False
    return isinstance(keys, dict) and "model_type" in keys


def find(name: str | Path) -> Path:
    """The folder of a model: a path, or else the name of a repository of the hub, which is fetched.

    Raises:
        RunError: neither, or no network; with what to do.
    """
    folder = Path(name).expanduser()
    meant = "/" in str(name) and folder.parent.is_dir()  # runs/mistyped is no name of the hub where there is a runs
    if folder.exists() or meant or not HUB_NAME.fullmatch(str(name)):
        return folder
    nothing = f"{name} is not the folder of a run or a model"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise RunError(f"{nothing}. If it is the name of a model of the hub: pip install 'tessera-lm[hub]'") from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise RunError(f"{nothing}, nor the name of a model of the hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"{nothing}, and the hub cannot be reached ({type(error).__name__}): on a machine with a network, fetch "
            f"{name} with huggingface_hub, copy the folder here and give its path"
        ) from error


def load_published(
    folder: Path,
    *,
    max_length: int | None = None,
    head: str | None = None,
    num_labels: int = 0,
    param_dtype: str = "float32",
    seed: int = 0,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Published:
    """Reads a published model onto `mesh` by `rules`, each device its share; without a mesh, onto the first device.

    Args:
        max_length: another context than the folder's, for positions that are no table.
        head: of an encoder, another one than the folder's; a new classification, tagging or span head starts random.
        param_dtype: "bfloat16" halves the memory and rounds f32 weights, which the report says.

    Raises:
        RunError: options that do not go with the model. WeightsError: the folder is not what it says it is.
        DataError: the tokeniser is missing or does not fit.
    """
    config, model_type = read_config(folder)
    changes: dict[str, Any] = {"param_dtype": param_dtype, "compute_dtype": param_dtype}
    if head is not None:
        changes |= {"head": head, "num_labels": num_labels}
    elif num_labels:
        raise RunError(
            f"num_labels is {num_labels}, but no head is given: it is for a new one, head='classification' or "
            "head='token_classification'"
        )
    if max_length is not None:
        if config.positions == "learned":
            raise RunError(
                f"{folder}: max_length is {max_length}, but its positions are a learned table of {config.max_length} "
                "rows: leave max_length out"
            )
        changes["max_length"] = max_length
    config = dataclasses.replace(config, **changes).resolved()
    tokenizer = load_pretrained_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{folder}: the tokeniser has {tokenizer.vocab_size} ids, the embedding {config.vocab_size} rows: they are "
            "not of one model"
        )
    mesh, rules = mesh or single_device_mesh(), rules or ShardingRules()
    model = build(config, rules)
    weights = parameters.weights(model)
    shardings = parameters.shardings(weights, rules, mesh)
    params, report = load_weights(folder, config, weights, shardings, allow_missing_head=head is not None)
    if report.missing:
        fresh = _fresh(model, seed, report.missing, named_leaves(shardings), mesh)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: fresh.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), params
        )
    return Published(config, model_type, params, tokenizer, report)


def _fresh(
    model: nn.Module, seed: int, missing: list[str], shardings: dict[str, Any], mesh: Mesh
) -> dict[str, jax.Array]:
    """New weights for the `missing` paths alone: XLA drops the rest of the network, which may be large."""

    def make() -> dict[str, jax.Array]:
        leaves = named_leaves(parameters.init(model, jax.random.key(seed)))
        return {path: leaves[path] for path in missing}

    with jax.set_mesh(mesh):
        return jax.jit(make, out_shardings={path: shardings[path] for path in missing})()


def warn_of(published: Published, folder: Path) -> None:
    """Tells what a caller of `tessera.load` may not expect of the folder."""
    report = published.report
    if report.missing:
        warnings.warn(f"{folder}: new, random weights for {', '.join(report.missing)}: train them first", stacklevel=3)
    if report.unused:
        shown = ", ".join(report.unused[:4]) + (", …" if len(report.unused) > 4 else "")
        warnings.warn(f"{folder}: {len(report.unused)} tensors were not used: {shown}", stacklevel=3)
    pooling = folder / "1_Pooling" / "config.json"  # of sentence-transformers
    if pooling.is_file() and not _means(read_json(pooling)):
        warnings.warn(f"{folder}: its own embeddings are not means over tokens; `embed` takes means", stacklevel=3)
    if further := [kind for kind in _modules(folder) if kind not in ("Transformer", "Pooling")]:
        shown = ", ".join(further)
        warnings.warn(f"{folder}: its own embeddings end in {shown}, which `embed` leaves out", stacklevel=3)


def _modules(folder: Path) -> list[str]:
    """The kinds of the modules through which sentence-transformers embeds, in order, where the folder is of it."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [module["type"].rsplit(".", 1)[-1] for module in parse_json(path.read_bytes())]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}: is no list of modules, each with its type: get the file again") from error


def _means(pooling: dict[str, Any]) -> bool:
    """Whether sentence-transformers pools by the mean and by nothing else, which it would put beside it."""
    return [key for key, on in pooling.items() if on is True and key.startswith("pooling_mode")] == [MEANS]


def import_run(source: str | Path, run: str | Path, *, param_dtype: str = "float32") -> Published:
    """Makes a published model a run folder, whole or not at all: tokeniser, config, parameters as step 0.

    Raises:
        RunError: the run folder exists. And what `load_published` raises.
    """
    target = Path(run).expanduser()
    if target.exists():
        raise RunError(f"{target} exists: give another folder, nothing is overwritten")
    check_run_name(target)
    folder = find(source)
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}")
    published = load_published(folder, param_dtype=param_dtype)
    record = {
        "config": {"imported.source": str(source), "imported.model_type": published.model_type},
        "model": dataclasses.asdict(published.config),
        "fingerprints": {"tokenizer": published.tokenizer.fingerprint},
    }
    with new_folder(target) as temporary:
        published.tokenizer.save(temporary / "tokenizer")
        save_params(temporary / "checkpoints", published.params, tokenizer=published.tokenizer.fingerprint)
        write_json(temporary / "environment.json", [environment()])
        write_json(temporary / RUN_FILE, record)
    return published


def export_run(run: str | Path, to: str | Path, *, step: int | None = None) -> list[str]:
    """Writes a run as a folder that `transformers` loads: config.json, safetensors, and the tokeniser's files.

    Rows of the vocabulary that only pad it are left out.

    Returns:
        What the folder lacks, in words: a tokeniser that has no published form.

    Raises:
        RunError: not a run, or `to` exists. WeightsError: a network that no published family has.
    """
    folder, target = Path(run).expanduser(), Path(to).expanduser()
    if target.exists():
        raise RunError(f"{target} exists: give another folder, nothing is overwritten")
    record = read_run(folder)
    config, params, tokenizer = load_run(folder, step=step)
    if config.architecture == "ngram":
        raise WeightsError("an n-gram model is a table of counts: no published family has such weights")
    imported = "imported.source" in record["config"]
    vocab = config.vocab_size if imported else tokenizer.vocab_size
    lacks: list[str] = []
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        export(params, config, temporary, vocab, special_ids=tokenizer.special_ids)
        try:
            export_tokenizer(tokenizer, temporary)
        except DataError as error:
            lacks.append(f"no tokeniser: {error}")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return lacks
