"""What `tessera.load` does: a run, a folder in the layout of Hugging Face, or the name of a model of the hub."""

from pathlib import Path

from jax.sharding import Mesh

from evaluation.ask import AnyModel, ask
from launch.published import find, is_published, load_published, warn_of
from launch.saved import load_run
from model.sharding import ShardingRules
from train.mesh import single_device_mesh
from train.records import RunError


def load(
    source: str | Path,
    *,
    step: int | None = None,
    max_length: int | None = None,
    head: str | None = None,
    num_labels: int = 0,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> AnyModel:
    """A network with its weights and tokeniser, as an object to ask.

    Without a `mesh` it lies whole on the first device. With one (`train.mesh.make_mesh`), the weights of a model that
    is larger than a device are read straight into their shards, and every answer is computed by all of its devices.

    Args:
        source: a run folder, a folder in the layout of Hugging Face, or a name such as "openai-community/gpt2".
        step: of a run, the checkpoint; None: the newest finished.
        max_length: another context than that of its training, for positions that are no table.
        head: of a published encoder, another head than the folder's: "masked_lm", "pooler", "none", or for
            fine-tuning a new "classification" or "token_classification" (with `num_labels`) or "span".
        param_dtype: of a published model: "float32", or "bfloat16" for half the memory.
        rules: which mesh axis cuts which dimension; None: fsdp and tensor. A vocabulary that the tensor axis does not
            divide stays whole with `ShardingRules(vocab=None)`.

    Raises:
        RunError: neither a run nor a model. CheckpointError, WeightsError, DataError: one that is broken.
    """
    if rules is not None and mesh is None:
        raise RunError("rules are given without a mesh: one device holds everything, whatever they say")
    folder, mesh = find(source), mesh or single_device_mesh()
    if not is_published(folder):
        if head is not None or num_labels or param_dtype != "float32":
            raise RunError(f"{folder} is no published model: head, num_labels and param_dtype are those of the run")
        config, params, tokenizer = load_run(folder, step=step, max_length=max_length, mesh=mesh, rules=rules)
        return ask(config, params, tokenizer, mesh, rules)
    if step is not None:
        raise RunError(f"{folder} is a published model: step is for runs")
    published = load_published(
        folder,
        max_length=max_length,
        head=head,
        num_labels=num_labels,
        param_dtype=param_dtype,
        mesh=mesh,
        rules=rules,
    )
    warn_of(published, folder)
    return ask(published.config, published.params, published.tokenizer, mesh, rules)
