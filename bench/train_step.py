"""Tokens per second of a training step: Tessera beside a plain PyTorch GPT of the same shape, on this CPU, in one run.

    python bench/train_step.py [--shapes=char,char_large,vocab32k] [--rounds=7] [--seconds=3]

Needs the extra `peers`. Both train in f32 with AdamW, clipping and no dropout, each in a process of its own with the
same number of threads; they take turns (A B A B …), each turn runs about `--seconds`, and medians over the rounds are
compared. The ratio is Tessera's tokens per second over PyTorch's.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

SHAPES = {
    "char": {"layers": 4, "heads": 4, "width": 128, "length": 64, "batch": 12, "vocab": 65},
    "char_large": {"layers": 6, "heads": 6, "width": 384, "length": 256, "batch": 16, "vocab": 65},
    "vocab32k": {"layers": 4, "heads": 4, "width": 256, "length": 256, "batch": 8, "vocab": 32_768},
}
THREADS = multiprocessing.cpu_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("jax", "flax", "torch")}
    print(f"{platform.platform()}, {THREADS} threads, python {platform.python_version()}, {json.dumps(versions)}")
    for name in options.shapes.split(","):
        compare(name, SHAPES[name], options.rounds, options.seconds)


def compare(name: str, shape: dict[str, int], rounds: int, seconds: float) -> None:
    workers = {peer: start(peer, shape) for peer in ("tessera", "torch")}
    times: dict[str, list[float]] = {peer: [] for peer in workers}
    for _ in range(rounds):
        for peer, connection in workers.items():
            connection.send(seconds)
            times[peer].append(connection.recv())
    for connection in workers.values():
        connection.send(None)
    tokens = shape["batch"] * shape["length"]
    median = {peer: statistics.median(values) for peer, values in times.items()}
    rates = "   ".join(f"{peer} {tokens / t:,.0f} tok/s ({1e3 * t:.1f} ms)" for peer, t in median.items())
    print(f"{name:<11} {rates}   ratio {median['torch'] / median['tessera']:.2f}", flush=True)


def start(peer: str, shape: dict[str, int]) -> Connection:
    """A process that runs steps of one peer for as long as it is told, and answers with seconds per step."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=work, args=(peer, shape, there), daemon=True).start()
    there.close()  # so that a worker that dies ends the wait
    here.recv()  # compiled and warm
    return here


def work(peer: str, shape: dict[str, int], connection: Connection) -> None:
    step = {"tessera": tessera_step, "torch": torch_step}[peer](shape)
    step()
    step()
    connection.send("ready")
    while (seconds := connection.recv()) is not None:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds or count < 2:
            step()
            count += 1
        connection.send((time.perf_counter() - began) / count)


def random_ids(shape: dict[str, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, shape["vocab"], (shape["batch"], shape["length"] + 1), dtype=np.int32)


def torch_step(shape: dict[str, int]) -> Any:
    import torch
    import torch_gpt

    torch.set_num_threads(THREADS)
    step = torch_gpt.torch_step(**{key: value for key, value in shape.items() if key != "batch"}, dropout=0.0)
    ids = torch.tensor(random_ids(shape), dtype=torch.long)
    return lambda: float(step(ids[:, :-1], ids[:, 1:]))


def tessera_step(shape: dict[str, int]) -> Any:
    """The step that `tessera train` runs, compiled the same way."""
    from launch.memory import keep_memory

    keep_memory()
    import jax

    from configs import defaults
    from data.tokenizers.tokenizer import CharTokenizer
    from launch import experiment
    from launch.program import assemble
    from train.mesh import place_batch

    config = defaults.get_config()
    config.model.update(num_layers=shape["layers"], num_heads=shape["heads"], embed_dim=shape["width"])
    config.model.update(max_length=shape["length"], vocab_size=shape["vocab"], scan_unroll=0)
    config.train.global_batch = shape["batch"]
    program = assemble(experiment.read(config), CharTokenizer("".join(map(chr, range(65)))))
    ids = random_ids(shape)
    arrays = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones((shape["batch"], shape["length"]), "f4")}
    with jax.set_mesh(program.mesh):
        state, batch = program.init(0), place_batch(arrays, program.batch_sharding)
        train_step, _ = program.compile()

    def step() -> None:
        nonlocal state
        with jax.set_mesh(program.mesh):
            state, metrics = train_step(state, batch)
            float(metrics["loss"])

    return step


if __name__ == "__main__":
    main()
