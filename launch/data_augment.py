"""`tessera data augment`: a source, and changed copies of its documents, as one JSONL file."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from launch.source_flags import READING, define_source, source_fields

USAGE = (
    "write changed copies of documents beside them: token_masking, token_deletion, swap, character_noise, "
    "sentence_shuffle, each with its rate",
    "tessera data augment SOURCE --transforms=swap:0.1,character_noise:0.05 --copies=2 --out=FILE.jsonl",
)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("transforms", "", "NAME:RATE, applied in this order, joined by commas", flag_values=values)
    flags.DEFINE_integer("copies", 1, "changed copies of each document", flag_values=values)
    flags.DEFINE_integer("seed", 0, "other seeds change other words", flag_values=values)
    flags.DEFINE_string("out", "", "the .jsonl file to write", flag_values=values)
    flags.DEFINE_bool("original", True, "write each document as it is before its copies", flag_values=values)
    define_source(values, (*READING, "score_field"))


def run(values: Any, rest: Sequence[str]) -> int:
    """Writes the file, whole or not at all. Raises ValueError for flags that say too little, DataError for bad data."""
    import json
    import os
    from pathlib import Path

    from data.augmentation import augment, parse_transforms
    from data.config import SourceConfig
    from data.sources.read import read_documents

    if len(rest) != 1:
        raise ValueError(f"one source is needed, {len(rest)} are given: {USAGE[1]}")
    out = Path(values.out).expanduser()
    if out.suffix != ".jsonl" or out.exists():
        why = "exists already" if out.suffix == ".jsonl" else "is no name of a .jsonl file"
        raise ValueError(f"--out={values.out} {why}: {USAGE[1]}")
    if not values.transforms:
        raise ValueError(f"--transforms says nothing: {USAGE[1]}")
    source = SourceConfig(rest[0], **source_fields(values))
    transforms = parse_transforms(values.transforms)
    records = augment(
        read_documents(source), transforms, copies=values.copies, seed=values.seed, original=values.original
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    originals = copies = 0
    try:
        # A file name that is not UTF-8 may be part of an id: as JSON, its odd bytes are escapes.
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                originals, copies = originals + ("transform" not in record), copies + ("transform" in record)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    print(f"{out}: {originals:,} documents as they are, {copies:,} copies by {values.transforms}, seed {values.seed}")
    return 0
