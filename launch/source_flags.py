"""The flags by which a data command reads its source: the leaves of `SourceConfig`."""

from typing import Any

from absl import flags

FIELDS = {
    "text_field": ("text", "field of a record that holds the text"),
    "id_field": ("id", "field of a record that names the document"),
    "score_field": ("", "field with a number for each document; empty: none is read"),
    "document_separator": ("", r"split text files at this, \n for a line end; empty: one document each"),
    "dataset_split": ("train", "split of a Hugging Face dataset"),
    "skip_broken": (0, "records of a source that cannot be read and may be left out, counted, before one is an error"),
    "language": ("", "recorded with the documents, as an ISO 639-1 code"),
    "licence": ("", "recorded with the documents"),
}
READING = ("text_field", "id_field", "document_separator", "dataset_split")  # what a command has that only reads text


def define_source(values: flags.FlagValues, names: tuple[str, ...] = READING) -> None:
    for name in names:
        default, what = FIELDS[name]
        define = flags.DEFINE_string if isinstance(default, str) else flags.DEFINE_integer
        define(name, default, what, flag_values=values)


def source_fields(values: Any) -> dict[str, Any]:
    """Those of the flags that the command has, for `SourceConfig(path, **fields)`."""
    fields = {name: values[name].value for name in FIELDS if name in values}
    return fields | {"document_separator": fields["document_separator"].replace("\\n", "\n")}
