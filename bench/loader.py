"""Tokens per second that the loader serves from a store, in one thread of this CPU, for each objective and packing.

    python bench/loader.py [--lengths=128,1024] [--seconds=2] [--tokens=4000000]

The store is made here: documents of random ids whose lengths are log-normal, about 300 tokens in the middle. Counted
are the slots of the decoder's inputs that are filled, and of an encoder's source, over the time of whole batches.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.loader import BatchLoader
from data.objectives.causal import CausalLM
from data.objectives.denoising import SpanCorruption
from data.objectives.examples import Objective
from data.objectives.masking import MaskedLM
from data.rows import StoreRows, store_rows
from data.store.store import TokenStore, open_store
from data.store.writer import StoreWriter
from data.tokenizers.tokenizer import ByteTokenizer

VOCAB = 32_000
BATCH_TOKENS = 32_768  # slots of a batch


class Ids(ByteTokenizer):
    """Ids that are text as they are."""

    vocab_size = VOCAB
    eos_id = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,1024")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "store", options.tokens)
        print("| objective | packing | length | million tokens/s | filled |\n|---|---|---|---|---|")
        for length in map(int, options.lengths.split(",")):
            for name, objective, packings in objectives(length):
                for packing in packings:
                    rows = store_rows(store, objective, packing)
                    speed, filled = measure(rows, max(BATCH_TOKENS // length, 1), options.seconds)
                    print(f"| {name} | {packing} | {length} | {speed / 1e6:.1f} | {filled:.1%} |", flush=True)


def objectives(length: int) -> Iterator[tuple[str, Objective, tuple[str, ...]]]:
    every = ("chunk", "isolate", "first_fit", "best_fit")
    yield "causal_lm", CausalLM(length), every
    yield "masked_lm", MaskedLM(length, 0, 2, np.arange(VOCAB) >= 5, 3, 4), ("chunk", "best_fit")
    sentinels = tuple(range(VOCAB - 1, VOCAB - 101, -1))
    yield "span_corruption", SpanCorruption(length, 0, 1, sentinels, 0), ("chunk", "best_fit")


def write(folder: Path, num_tokens: int) -> TokenStore:
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(5.7, 1.0, num_tokens // 400).astype(int), 1)
    documents = [rng.integers(5, VOCAB - 200, length, dtype=np.int32) for length in lengths]
    writer = StoreWriter(folder, Ids(), "train", has_scores=False)
    writer.append(documents, list(map(str, range(len(documents)))), 0)
    writer.finish(source_fingerprint="random", provenance={})
    return open_store(folder)


def measure(rows: StoreRows, batch: int, seconds: float) -> tuple[float, float]:
    """Filled slots per second, the median over batches, and the part of all slots that they are."""
    loader = BatchLoader(rows, global_batch=batch, seed=0)
    loader.batch(0)
    times, filled, began = [], [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        made = loader.batch(len(times))
        times.append(time.perf_counter() - start)
        filled.append(_filled(made))
    slots = sum(made[name].size for name in ("inputs", "source") if name in made)
    return statistics.mean(filled) / statistics.median(times), statistics.mean(filled) / slots


def _filled(batch: dict[str, np.ndarray]) -> int:
    """Slots that are no padding; those of a decoder without segments are those with a weight."""
    sides = [batch.get("segments", batch["weights"]), *[batch[n] for n in ("source_segments",) if n in batch]]
    return sum(int(np.count_nonzero(side)) for side in sides)


if __name__ == "__main__":
    main()
