"""`tessera data tokenizer`: trains a tokenizer on any source, judges it, and compares several on held-out text."""

import difflib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.source_flags import define_source, source_fields

if TYPE_CHECKING:
    from data.config import SourceConfig
    from data.tokenizers.tokenizer import Tokenizer

USAGE = (
    "train a tokenizer on text, judge it, and compare several; a source is PATH or LANGUAGE:PATH",
    "tessera data tokenizer en:books/*.txt --kind=bpe --vocab_size=8000 --out=FOLDER [--compare=FOLDER] "
    "[--held_out=en:PATH]",
)
KINDS = ("bpe", "unigram", "byte_bpe", "wordpiece")

_ONLY = {  # settings that change nothing in the other kinds
    "coverage": ("bpe", "unigram", "wordpiece"),
    "byte_fallback": ("bpe", "unigram"),
    "lowercase": ("wordpiece",),
    "chinese_characters": ("wordpiece",),
}
_TRAINING = ("kind", "vocab_size", "out", "symbols", "sentinels", "max_characters", "seed", *_ONLY)
_JUDGED_CHARACTERS = 4_000_000  # of each language: seconds of time, and enough for the digits that are printed
_NO_LANGUAGE = "text"  # in tables


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("kind", "bpe", f"what to train: {', '.join(KINDS)}", flag_values=values)
    flags.DEFINE_integer("vocab_size", 8000, "number of ids", flag_values=values)
    flags.DEFINE_string("out", None, "the new folder, for data.tokenizer in a config", flag_values=values)
    flags.DEFINE_float(
        "coverage",
        None,
        "part of the text whose characters get a piece each; without: 0.9999, and where bytes can stand for the "
        "others, at most half of the pieces",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "byte_fallback",
        None,
        "bpe, unigram: bytes for the other characters; without them, --nobyte_fallback, these are lost",
        flag_values=values,
    )
    flags.DEFINE_list("symbols", [], "texts that are never split, with an id each: <a>,<b>", flag_values=values)
    flags.DEFINE_integer(
        "sentinels", 0, "number of sentinel ids, extra_0 and on, for span corruption", flag_values=values
    )
    flags.DEFINE_integer(
        "max_characters",
        None,
        "train on a sample of so many characters at most; without: 32,000,000",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "of the sample", flag_values=values)
    flags.DEFINE_bool("lowercase", None, "wordpiece: take case and accents away", flag_values=values)
    flags.DEFINE_bool(
        "chinese_characters", None, "wordpiece: each Chinese character is a word; true without", flag_values=values
    )
    flags.DEFINE_multi_string(
        "compare",
        [],
        "a tokenizer to compare: a folder, a .model file, or 'byte'; may be given several times",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "held_out", [], "a source to judge by, not trained on; may be given several times", flag_values=values
    )
    flags.DEFINE_enum("format", "markdown", ["markdown", "json"], "of the report", flag_values=values)
    define_source(values, ("text_field", "document_separator", "dataset_split"))


def run(values: Any, rest: Sequence[str]) -> int:
    from data.tokenizers.report import comparison, tokenizer_report

    _check(values, rest)
    # What can be wrong with texts and other tokenizers is found before the training, which takes long.
    texts = _judged(values, values.held_out or rest)
    others = [_load(place) for place in values.compare]
    trained = [_train(values, rest)] if rest else []
    names = _names([values.out, *values.compare] if rest else values.compare)
    judged = [tokenizer_report(tokenizer, texts) for tokenizer in [*trained, *others]]
    reports = dict(zip(names, judged, strict=True))
    if values.format == "json":
        print(json.dumps({name: report.fields() for name, report in reports.items()}, ensure_ascii=False, indent=2))
        return 0
    parts = [report.markdown() for report in judged[: len(trained)]]
    parts += [comparison(reports)] if others else []
    print("\n\n".join(parts))
    return 0


def _check(values: Any, rest: Sequence[str]) -> None:
    from data.errors import DataError

    if len(set(values.compare)) < len(values.compare):
        raise ValueError(f"--compare names a tokenizer twice: {', '.join(values.compare)}")
    if not rest:
        if given := [f"--{name}" for name in _TRAINING if values[name].present]:
            raise ValueError(f"{', '.join(given)} would change nothing without a source to train on: {USAGE[1]}")
        if not (values.compare and values.held_out):
            raise ValueError(f"give a source to train on, or --compare and --held_out: {USAGE[1]}")
        return
    if values.kind not in KINDS:
        near = difflib.get_close_matches(values.kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"{', '.join(KINDS)} are trained"
        raise ValueError(f"no kind of tokenizer {values.kind!r}: {hint}")
    for name, kinds in _ONLY.items():
        if values[name].present and values.kind not in kinds:
            raise ValueError(f"--{name} would change nothing in {values.kind}: it is for {', '.join(kinds)}")
    if not values.out:
        raise ValueError("where to? --out=FOLDER is needed; to compare alone, give the text as --held_out=SOURCE")
    out = Path(values.out).expanduser()
    if out.exists():
        raise DataError(f"{values.out} exists already: remove it, or give another --out")
    if file := next((parent for parent in out.parents if parent.is_file()), None):
        raise DataError(f"--out={values.out} would lie in the file {file}: give another --out")


def _train(values: Any, sources: Sequence[str]) -> "Tokenizer":
    """Trains, saves, and gives what was saved."""
    from data.atomic import new_folder
    from data.tokenizers.bpe_training import train_byte_bpe, train_word_pieces
    from data.tokenizers.sentencepiece_training import train_model
    from data.tokenizers.tokenizer import SentencePieceTokenizer, load_tokenizer
    from data.tokenizers.training_text import MAX_CHARACTERS

    settings = {name: values[name].value for name in _ONLY if values[name].present}
    settings |= {"symbols": values.symbols, "sentinels": values.sentinels}
    settings["max_characters"] = MAX_CHARACTERS if values.max_characters is None else values.max_characters
    started, count = time.perf_counter(), {"documents": 0, "characters": 0}
    texts = _counted(_texts(values, sources), count)
    if values.kind == "byte_bpe":
        tokenizer = train_byte_bpe(texts, values.vocab_size, values.seed, **settings)
    elif values.kind == "wordpiece":
        tokenizer = train_word_pieces(texts, values.vocab_size, values.seed, **settings)
    else:
        model = train_model(texts, values.vocab_size, values.seed, model=values.kind, **settings)
        tokenizer = SentencePieceTokenizer(model)
    out = Path(values.out).expanduser()
    with new_folder(out) as temporary:
        tokenizer.save(temporary)
    sample = f", a sample of {settings['max_characters']:,}" if count["characters"] > settings["max_characters"] else ""
    print(
        f"trained on {count['documents']:,} documents, {count['characters']:,} characters{sample}: {values.out} "
        f"({time.perf_counter() - started:.1f} s)",
        file=sys.stderr,
    )
    return load_tokenizer(out)


def _judged(values: Any, sources: Sequence[str]) -> dict[str, list[str]]:
    """The documents to judge by, by language; where there are more than _JUDGED_CHARACTERS, the first, and says so."""
    texts, sizes = {}, {}
    for source in sources:
        for language, text in _texts(values, [source]):
            if sizes.get(language, 0) >= _JUDGED_CHARACTERS:
                kept = f"the first {len(texts[language]):,} documents, {sizes[language]:,} characters"
                print(f"{language}: judged by {kept}; the rest of {source} is left out", file=sys.stderr)
                break
            texts.setdefault(language, []).append(text)
            sizes[language] = sizes.get(language, 0) + len(text)
    if not values.held_out:
        print("judged by the text it is trained on: --held_out=SOURCE gives another", file=sys.stderr)
    return texts


def _counted(texts: Iterable[tuple[str, str]], count: dict[str, int]) -> Iterator[str]:
    for _, text in texts:
        count["documents"] += 1
        count["characters"] += len(text)
        yield text


def _texts(values: Any, sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Language and text of each document."""
    from data.sources.read import read_documents

    for source in [_source(values, named) for named in sources]:
        for document in read_documents(source):
            yield source.language or _NO_LANGUAGE, document.text


def _source(values: Any, named: str) -> "SourceConfig":
    """`PATH`, or `LANGUAGE:PATH`; "s3://…" and "hf:…" are paths."""
    from data.config import SourceConfig

    found = re.fullmatch("(?!hf:)([a-z]{2,3}):(?!//)(.+)", named)
    language, path = (found[1], found[2]) if found else ("", named)
    return SourceConfig(path, language=language, **source_fields(values))


def _load(place: str) -> "Tokenizer":
    from data.tokenizers.tokenizer import ByteTokenizer, load_tokenizer

    return ByteTokenizer() if place == "byte" else load_tokenizer(place)


def _names(places: Sequence[str]) -> list[str]:
    """What tables call them: the last part of each path, where that tells them apart."""
    last = [Path(place).name for place in places]
    return last if len(set(last)) == len(last) else list(places)
