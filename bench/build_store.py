"""Tokens per second of building token stores, beside the bare tokenizer on the same texts, on this machine, in one run.

    python bench/build_store.py [--megabytes=60] [--rounds=5] [--tokenizers=sentencepiece,byte_bpe]

The text is the source of the standard library, over and over, in a .jsonl file. A is `data.corpus.prepare` with its
survey and tokenizer in the cache: it reads the file, hashes it, splits it, tokenises it, writes the stores and
verifies them. B is `encode_batch` on the same texts, in memory, in batches of the same size, with the same threads.
They take turns (A B A B …); medians over the rounds are compared. The ratio is A's time over B's.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from configs import defaults
from data.config import DataConfig, SourceConfig
from data.corpus import prepare
from data.sources.read import read_documents
from data.store import build
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizers", default="sentencepiece,byte_bpe")
    options = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("tokenizers", "sentencepiece", "numpy")}
    print(f"{platform.platform()}, {os.cpu_count()} cores, python {platform.python_version()}, {json.dumps(versions)}")
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder) / "text.jsonl", options.megabytes * 1e6)
        for name in options.tokenizers.split(","):
            compare(name, Path(folder), texts, options.rounds)


def write_texts(file: Path, num_bytes: float) -> list[str]:
    """Writes documents of the standard library until there are so many bytes; no two of them are equal."""
    library, texts, size = [d.text for d in read_documents(SourceConfig("python-stdlib"))], [], 0
    with open(file, "w", encoding="utf-8") as out:
        while size < num_bytes:
            texts.append(f"# {len(texts)}\n{library[len(texts) % len(library)]}")
            size += len(texts[-1].encode())
            out.write(json.dumps({"text": texts[-1]}) + "\n")
    return texts


def compare(name: str, folder: Path, texts: list[str], rounds: int) -> None:
    changes = {"path": str(folder / "text.jsonl"), "cache_dir": str(folder / name)}
    changes["tokenizer"] = saved(name, folder, texts)
    config = DataConfig(**dict(defaults.get_config()["data"]) | changes)  # pyright: ignore[reportArgumentType, reportCallIssue]
    quiet = lambda _: None  # noqa: E731
    corpus = prepare(config, quiet)  # survey and tokenizer
    tokens = corpus.train.num_tokens + corpus.held_out.num_tokens
    times: dict[str, list[float]] = {"build": [], "encode": []}
    for _ in range(rounds):
        shutil.rmtree(folder / name / "stores")
        began = time.perf_counter()
        prepare(config, quiet)
        times["build"].append(time.perf_counter() - began)
        times["encode"].append(bare(corpus.tokenizer, texts))
    median = {what: statistics.median(values) for what, values in times.items()}
    rates = "   ".join(f"{what} {tokens / t:,.0f} tok/s ({t:.2f} s)" for what, t in median.items())
    print(f"{name:<13} {rates}   ratio {median['build'] / median['encode']:.2f}", flush=True)


def saved(name: str, folder: Path, texts: list[str]) -> str:
    """What data.tokenizer is to be: sentencepiece trains in the cache, the byte-level BPE is trained here."""
    if name == "sentencepiece":
        return name
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    backend.train_from_iterator(texts[:600], trainer)
    HuggingFaceTokenizer.of(backend, {"eos": 0}, b"", name).save(folder / f"{name}.tokenizer")
    return str(folder / f"{name}.tokenizer")


def bare(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Seconds to encode all texts, in batches as the build makes them."""
    seconds = 0.0
    for batch in batches(texts):
        began = time.perf_counter()
        tokenizer.encode_batch(batch)
        seconds += time.perf_counter() - began
    return seconds


def batches(texts: list[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= build.BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    main()
