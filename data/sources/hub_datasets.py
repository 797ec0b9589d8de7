"""Documents of a Hugging Face dataset, streamed: nothing is kept on this machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.config import SourceConfig
from data.errors import DataError
from data.sources.broken import Broken
from data.sources.documents import Document, document_of_record
from data.sources.remote import Unreachable

_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>.+))?")


def is_dataset(path: str) -> bool:
    """Whether a path is "hf:…", and not the URL of a file on the Hub, "hf://…"."""
    return path.startswith("hf:") and not path.startswith("hf://")


def revision(source: SourceConfig) -> str:
    """The commit at which the Hub has the dataset now. Raises DataError as `read_dataset`; Unreachable if offline."""
    name, _ = _parsed(source)
    try:
        import huggingface_hub
    except ImportError as error:
        raise _not_installed(source, "huggingface_hub") from error
    try:
        return str(huggingface_hub.HfApi().dataset_info(name).sha)
    except Exception as error:
        raise _refused(source, name, error) from error


def read_dataset(source: SourceConfig, broken: Broken) -> Iterator[Document]:
    """The documents of `source.dataset_split` of "hf:OWNER/NAME" or "hf:OWNER/NAME:CONFIG", in the dataset's order.

    They are those of its present `revision`.

    Code that a dataset brings along is never run. A document without an id is called "SPLIT:ROW", rows from 1. Raises
    DataError where the `hub` extra is missing, and for all that the Hub refuses or cannot deliver.
    """
    name, config = _parsed(source)
    if Path(name).exists():
        raise DataError(
            f"{source.path} would not come from the Hub, as {Path(name).absolute()} exists here, and the package "
            f"datasets reads that first: give '{name}' as data.path, or start elsewhere"
        )
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (the extra `hub`)
    except ImportError as error:
        raise _not_installed(source, "datasets") from error
    commit = revision(source)
    try:
        rows = datasets.load_dataset(name, config, split=source.dataset_split, revision=commit, streaming=True)
        columns = rows.column_names or []  # not always known before the first row
        if source.text_field in columns:  # else the first row tells what is there
            wanted = {source.text_field, source.id_field, source.score_field}
            rows = rows.select_columns([column for column in columns if column in wanted])
    except Exception as error:
        raise _refused(source, name, error) from error
    return _documents(rows, source, name, broken)


def _parsed(source: SourceConfig) -> tuple[str, str | None]:
    """Name and configuration."""
    match = _NAME.fullmatch(source.path)
    if not match:
        raise DataError(f"data.path {source.path!r} is no dataset: write 'hf:OWNER/NAME' or 'hf:OWNER/NAME:CONFIG'")
    return match["name"], match["config"]


def _not_installed(source: SourceConfig, package: str) -> DataError:
    return DataError(f"{source.path} is read by the package {package}: pip install 'tessera-lm[hub]'")


def _documents(rows: Any, source: SourceConfig, name: str, broken: Broken) -> Iterator[Document]:
    number = 0
    for number, row in enumerate(_delivered(rows, source, name), 1):
        place = f"{source.path}, split {source.dataset_split}, row {number}"
        with broken:
            yield document_of_record(row, place, f"{source.dataset_split}:{number}", source)
    if not number:
        raise DataError(f"data.path {source.path!r} has no text: split {source.dataset_split!r} has 0 rows")


def _delivered(rows: Any, source: SourceConfig, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:
        raise _refused(source, name, error) from error


def _refused(source: SourceConfig, name: str, error: Exception) -> DataError:
    """What to do about an error, which may be of many packages and types."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, ValueError):  # of the configuration or the split, and names those there are
        way_out = (
            "set data.dataset_split, and the configuration after the name (hf:OWNER/NAME:CONFIG), to some there are"
        )
    else:
        way_out = (
            "if the name is right, and this machine has no network (or HF_HUB_OFFLINE is set), run `hf download "
            f"--repo-type dataset {name} --local-dir FOLDER` where there is one, bring FOLDER here, and give the "
            "folder of its files as data.path"
        )
    answered = isinstance(error, ValueError) or 400 <= _status(error) < 500
    kind = DataError if answered else Unreachable
    return kind(f"{source.path}, split {source.dataset_split!r}, cannot be read ({said}): {way_out}")


def _status(error: Exception) -> int:
    """The number of the Hub's answer; 0 where there was none."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0
