"""`tessera data augment`: a source, and changed copies of its documents, as one JSONL file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.source_flags import READING, define_source, source_fields

if TYPE_CHECKING:
    from launch.translation import Translator

USAGE = (
    "write changed copies of documents beside them: token_masking, token_deletion, swap, character_noise, "
    "sentence_shuffle, each with its rate; back-translation by two models",
    "tessera data augment SOURCE --transforms=swap:0.1,character_noise:0.05 --copies=2 --out=FILE.jsonl",
)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("transforms", "", "NAME:RATE, applied in this order, joined by commas", flag_values=values)
    flags.DEFINE_integer("copies", 1, "changed copies of each document", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "other seeds change other words", lower_bound=0, flag_values=values)
    flags.DEFINE_list(
        "back_translate",
        [],
        "THERE,BACK: two models (run, folder or name), to another language and back, before the transforms",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "prompt",
        [],
        "what the models of --back_translate read, with {} for a sentence: given twice; without: the sentence alone",
        flag_values=values,
    )
    flags.DEFINE_integer("max_tokens", 128, "the longest translation of a sentence", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "temperature", 1.0, "of the translations; 0: the most likely, the same in all copies", flag_values=values
    )
    flags.DEFINE_string("out", "", "the .jsonl file to write", flag_values=values)
    flags.DEFINE_bool("original", True, "write each document as it is before its copies", flag_values=values)
    define_source(values, (*READING, "score_field"))


def run(values: Any, rest: Sequence[str]) -> int:
    """Writes the file, whole or not at all. Raises ValueError for flags that say too little, DataError for bad data."""
    import json
    import os
    from pathlib import Path

    from data.augmentation import BackTranslation, augment, parse_transforms
    from data.config import SourceConfig
    from data.sources.read import read_documents

    if len(rest) != 1:
        raise ValueError(f"one source is needed, {len(rest)} are given: {USAGE[1]}")
    out = Path(values.out).expanduser()
    if out.suffix != ".jsonl" or out.exists():
        why = "exists already" if out.suffix == ".jsonl" else "is no name of a .jsonl file"
        raise ValueError(f"--out={values.out} {why}: {USAGE[1]}")
    _check_back_translation(values)
    if not values.transforms and not values.back_translate:
        raise ValueError(f"neither --transforms nor --back_translate says anything: {USAGE[1]}")
    source = SourceConfig(rest[0], **source_fields(values))
    transforms = parse_transforms(values.transforms) if values.transforms else ()
    translators = _translators(values)
    if translators:
        transforms = (BackTranslation(*translators, name=_name(values)), *transforms)
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
    says = ",".join(filter(None, [_name(values), values.transforms]))
    print(f"{out}: {originals:,} documents as they are, {copies:,} copies by {says}, seed {values.seed}")
    if failures := sum(translator.failures for translator in translators):
        print(f"{failures:,} times a sentence stayed as it is: it is too long for the model, or got no answer")
    return 0


def _check_back_translation(values: Any) -> None:
    models, prompts = values.back_translate, values.prompt
    if models and len(models) != 2:
        raise ValueError(f"--back_translate names {len(models)} models: two are needed, THERE,BACK")
    if given := [
        f"--{name}" for name in ("prompt", "max_tokens", "temperature") if values[name].present and not models
    ]:
        raise ValueError(f"{', '.join(given)} would change nothing without --back_translate")
    if prompts and (len(prompts) != 2 or not all("{}" in prompt for prompt in prompts)):
        raise ValueError(f"--prompt is needed twice, each with {{}} for the sentence, not as {prompts}")


def _translators(values: Any) -> list["Translator"]:
    if not values.back_translate:
        return []
    from launch.translation import Translator

    settings = {"max_tokens": values.max_tokens, "temperature": values.temperature}
    prompts = values.prompt or ["{}", "{}"]
    return [
        Translator(model, prompt=prompt, **settings)
        for model, prompt in zip(values.back_translate, prompts, strict=True)
    ]


def _name(values: Any) -> str:
    return ":".join(["back_translation", *values.back_translate]) if values.back_translate else ""
