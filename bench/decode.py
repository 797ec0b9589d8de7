"""Tokens per second of cached generation: Tessera beside transformers, on the same weights, on this CPU, in one run.

    python bench/decode.py [--shapes=small,gpt2] [--batches=1,8] [--rounds=5] [--tokens=64] [--uncached]

Needs the extra `peers`. Both decode greedily in f32 from prompts of 32 tokens, each in a process of its own with the
same number of threads; they take turns (A B A B …), medians over the rounds are compared, and the tokens must be the
same. The ratio is Tessera's tokens per second over transformers'. With --uncached, Tessera without a cache is measured
as well: the whole text anew for each token.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 8192},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257},
}
PROMPT = 32
THREADS = multiprocessing.cpu_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--uncached", action="store_true")
    options = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("jax", "flax", "torch", "transformers")}
    print(f"{platform.platform()}, {THREADS} threads, python {platform.python_version()}, {json.dumps(versions)}")
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            save(SHAPES[name], Path(folder))
            for batch in map(int, options.batches.split(",")):
                compare(name, folder, batch, options)


def save(shape: dict[str, int], folder: Path) -> None:
    """A GPT-2 of random weights that are spread enough for its tokens to differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(**shape, n_positions=1024, bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def compare(name: str, folder: str, batch: int, options: Any) -> None:
    peers = ["tessera", "transformers", *(["uncached"] if options.uncached else [])]
    workers = {peer: start(peer, folder, batch, options.tokens) for peer in peers}
    times: dict[str, list[float]] = {peer: [] for peer in peers}
    told: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for peer, connection in workers.items():
            connection.send(True)
            seconds, told[peer] = connection.recv()
            times[peer].append(seconds)
    for connection in workers.values():
        connection.send(None)
    for peer in peers:
        assert np.array_equal(told[peer], told["transformers"]), f"{peer} generates other tokens than transformers"
    median = {peer: statistics.median(values) for peer, values in times.items()}
    count = batch * options.tokens
    rates = "   ".join(f"{peer} {count / t:,.1f} tok/s" for peer, t in median.items())
    more = f"   cached / uncached {median['uncached'] / median['tessera']:.1f}" if options.uncached else ""
    ratio = median["transformers"] / median["tessera"]
    print(f"{name:<6} batch {batch}   {rates}   ratio {ratio:.2f}{more}", flush=True)


def start(peer: str, folder: str, batch: int, tokens: int) -> Connection:
    """A process that generates when it is told to, and answers with seconds and tokens."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=work, args=(peer, folder, batch, tokens, there), daemon=True).start()
    there.close()  # so that a worker that dies ends the wait
    here.recv()  # compiled and warm
    return here


def work(peer: str, folder: str, batch: int, tokens: int, connection: Connection) -> None:
    make = {"tessera": tessera, "transformers": transformers_model, "uncached": uncached}[peer]
    vocab = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    prompts = np.random.default_rng(0).integers(1, vocab, (batch, PROMPT))
    generate = make(folder, tokens)
    generate(prompts)
    connection.send("ready")
    while connection.recv():
        began = time.perf_counter()
        found = generate(prompts)
        connection.send((time.perf_counter() - began, found))


def transformers_model(folder: str, tokens: int) -> Any:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def generate(prompts: np.ndarray) -> np.ndarray:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, PROMPT:].numpy()

    return generate


def tessera(folder: str, tokens: int) -> Any:
    """As `lm.generate` does it, with ids for text."""
    import jax

    from model.decoding import GREEDY, Decoder

    config, model, params, mesh = load(folder)
    decoder = Decoder(model, config)

    def generate(prompts: np.ndarray) -> np.ndarray:
        options = {"sampling": GREEDY, "vocab_limit": config.vocab_size, "eos_ids": (), "max_tokens": tokens}
        with jax.set_mesh(mesh):
            chunks = decoder.stream(params, prompts.tolist(), seeds=[0] * len(prompts), **options)
            return np.concatenate([chunk.tokens_BN for chunk in chunks], axis=1)

    return generate


def uncached(folder: str, tokens: int) -> Any:
    """The whole text, padded to its final length, through the network for each token."""
    import jax
    import jax.numpy as jnp

    from model.transformer import apply

    _, model, params, mesh = load(folder)

    @jax.jit
    def next_token(params: Any, ids_BT: jax.Array, place: jax.Array) -> jax.Array:
        hidden = apply(model, params, ids_BT).logits
        return jnp.argmax(jax.lax.dynamic_index_in_dim(hidden, place, axis=1, keepdims=False), axis=-1)

    def generate(prompts: np.ndarray) -> np.ndarray:
        ids = np.zeros((len(prompts), PROMPT + tokens), np.int32)
        ids[:, :PROMPT] = prompts
        with jax.set_mesh(mesh):
            for place in range(PROMPT, PROMPT + tokens):
                ids[:, place] = next_token(params, ids, jnp.int32(place - 1))
        return ids[:, PROMPT:]

    return generate


def load(folder: str) -> Any:
    from launch.memory import keep_memory

    keep_memory()
    from model import parameters
    from model.build import build
    from model.pretrained.weights import load_weights, read_config
    from model.sharding import ShardingRules
    from train.mesh import single_device_mesh

    config, mesh = read_config(folder)[0], single_device_mesh()
    model = build(config)
    weights = parameters.weights(model)
    params, _ = load_weights(folder, config, weights, parameters.shardings(weights, ShardingRules(), mesh))
    return config, model, params, mesh


if __name__ == "__main__":
    main()
