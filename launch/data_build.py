"""`tessera data build`: the tokenizer and the token stores of a config, made ahead of training."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.columns import aligned

if TYPE_CHECKING:
    from data.corpus import Corpus

USAGE = (
    "read, split and tokenise the data of a config, once; training reuses it",
    "tessera data build --config=configs/gpt_demo.py [--verify] [--config.data.KEY=VALUE …]",
)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "verify", False, "read every byte of the stores again, also where none changed", flag_values=values
    )


def run(values: Any, rest: Sequence[str]) -> int:
    if rest:
        raise flags.Error(f"tessera data build takes no {rest[0]!r}: {USAGE[1]}")
    from data.config import DataConfig
    from data.corpus import prepare
    from data.store.store import verify_store
    from launch.experiment import section

    corpus = prepare(section(DataConfig, "data", values.config.data), lambda line: print(line, file=sys.stderr))
    if values.verify:
        for splits in corpus.parts.values():
            for store in (splits.train, splits.held_out):
                verify_store(store)
    print(table(corpus))
    if values.verify:
        print("verified: every byte of the stores is what was written")
    return 0


def table(corpus: "Corpus") -> str:
    """One line a store, numbers to the right, and one about the tokenizer."""
    rows = [("part", "split", "documents", "tokens", "MB", "bytes/token", "folder")]
    for name, splits in corpus.parts.items():
        for split, store in (("train", splits.train), ("held_out", splits.held_out)):
            counts = (f"{store.num_documents:,}", f"{store.num_tokens:,}", f"{store.num_bytes / 1e6:,.1f}")
            rows.append((name or "-", split, *counts, f"{store.num_bytes / store.num_tokens:.2f}", str(store.folder)))
    lines = [aligned(rows, right=(2, 3, 4, 5))]
    tokenizer = corpus.tokenizer
    lines.append(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint}")
    return "\n".join(lines)
