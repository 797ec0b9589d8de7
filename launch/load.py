"""What `tessera.load` does: a run, a folder in the layout of Hugging Face, or the name of a model of the hub."""

from pathlib import Path

from evaluation.ask import AnyModel, ask
from launch.published import find, is_published, load_published, warn_of
from launch.saved import load_run
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
) -> AnyModel:
    """A network with its weights and tokeniser, whole on the first device, as an object to ask.

    Args:
        source: a run folder, a folder in the layout of Hugging Face, or a name such as "openai-community/gpt2".
        step: of a run, the checkpoint; None: the newest finished.
        max_length: of a run, another context than that of its training, for positions that are no table.
        head: of a published encoder, another head than the folder's: "masked_lm", "pooler", "none", or for
            fine-tuning a new "classification" or "token_classification" (with `num_labels`) or "span".
        param_dtype: of a published model: "float32", or "bfloat16" for half the memory.

    Raises:
        RunError: neither a run nor a model. CheckpointError, WeightsError, DataError: one that is broken.
    """
    folder = find(source)
    if not is_published(folder):
        if head is not None or num_labels or param_dtype != "float32":
            raise RunError(f"{folder} is no published model: head, num_labels and param_dtype are those of the run")
        config, params, tokenizer = load_run(folder, step=step, max_length=max_length)
        return ask(config, params, tokenizer, single_device_mesh())
    if step is not None or max_length is not None:
        raise RunError(f"{folder} is a published model: step and max_length are for runs")
    published = load_published(folder, head=head, num_labels=num_labels, param_dtype=param_dtype)
    warn_of(published, folder)
    return ask(published.config, published.params, published.tokenizer, single_device_mesh())
