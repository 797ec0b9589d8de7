"""Tokens per second of cached generation: Tessera beside transformers, on the same weights, in one run.

    python bench/decode.py [--cases=small,gpt2] [--batches=1,8] [--rounds=5] [--tokens=64] [--uncached] [--keep]

Needs the extra `peers`. Both decode greedily from prompts of 32 tokens, each in a process of its own with the same
number of threads; they take turns (A B A B …), medians over the rounds are compared, and on a CPU, in f32, the tokens
must be the same. The ratio is Tessera's tokens per second over transformers'. On a GPU both compute in bf16, the
default case is GPT-2 XL, and Tessera's part of the bandwidth bound is shown: no token comes faster than the weights
are read. With --uncached, Tessera without a cache is measured as well: the whole text anew for each token.
"""

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import turns

CASES = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 8192},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257},
    "gpt2_xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "vocab_size": 50257},
}
PROMPT = 32
GPU = os.path.exists("/dev/nvidia0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="gpt2_xl" if GPU else "small,gpt2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--keep", action="store_true", help="append to bench/results.jsonl")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # for whoever shares the GPU
    about = turns.machine(("jax", "flax", "torch", "transformers"))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for case in options.cases.split(","):
        with tempfile.TemporaryDirectory() as folder:
            save(CASES[case], Path(folder))
            for batch in map(int, options.batches.split(",")):
                compare(case, folder, batch, options, about)


def save(shape: dict[str, int], folder: Path) -> None:
    """A GPT-2 of random weights that are spread enough for its tokens to differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(**shape, n_positions=1024, bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def compare(case: str, folder: str, batch: int, options: Any, about: dict[str, Any]) -> None:
    makers = {
        "tessera": tessera,
        "transformers": transformers_model,
        **({"uncached": uncached} if options.uncached else {}),
    }
    vocab = CASES[case]["vocab_size"]
    peers = {peer: (make, (folder, batch, vocab, options.tokens)) for peer, make in makers.items()}
    median, told = turns.turns(peers, options.rounds, 0.0)
    if not GPU:
        for peer, tokens in told.items():
            assert np.array_equal(tokens, told["transformers"]), f"{peer} generates other tokens than transformers"
    rates = {peer: batch * options.tokens / seconds for peer, seconds in median.items()}
    print(
        f"{case:<8} batch {batch}   " + "   ".join(f"{peer} {rate:,.1f} tok/s" for peer, rate in rates.items()), end=""
    )
    print(f"   ratio {rates['tessera'] / rates['transformers']:.2f}", flush=True)
    values: dict[str, Any] = {"unit": "tokens/s", "rates": rates}
    if bound := bandwidth_bound(case, batch, options.tokens, about["machine"]):
        values["of_bound"] = rates["tessera"] / bound
        print(f"{'':<8} {values['of_bound']:.0%} of the bandwidth bound", flush=True)
    if options.keep:
        turns.keep("decode", f"{case}, batch {batch}", about, values)


def bandwidth_bound(case: str, batch: int, tokens: int, machine: str) -> float | None:
    """Tokens a second if reading bf16 weights and cache were all the work, on a GPU whose bandwidth is published."""
    from train.chips import CHIPS

    speeds = [chip.hbm_bandwidth for chip in CHIPS.values() if machine.startswith(chip.kinds)]
    if not speeds:
        return None
    c = CASES[case]
    weights = 12 * c["n_layer"] * c["n_embd"] ** 2 + c["vocab_size"] * c["n_embd"]
    cached = 2 * c["n_layer"] * c["n_embd"] * (PROMPT + tokens / 2)  # of one row, on the way
    return batch * speeds[0] / (2 * (weights + batch * cached))


def prompts(batch: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, vocab, (batch, PROMPT))


def transformers_model(folder: str, batch: int, vocab: int, tokens: int) -> turns.Work:
    import torch
    import transformers

    torch.set_num_threads(turns.THREADS)
    device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).to(device).eval()
    ids = torch.tensor(prompts(batch, vocab), device=device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def generate() -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, PROMPT:].cpu().numpy()

    return generate


def tessera(folder: str, batch: int, vocab: int, tokens: int) -> turns.Work:
    """As `lm.generate` does it, with ids for text."""
    import jax

    from model.decoding import GREEDY, Decoder

    config, model, params, mesh = load(folder)
    decoder, rows = Decoder(model, config), prompts(batch, vocab).tolist()

    def generate() -> np.ndarray:
        options = {"sampling": GREEDY, "vocab_limit": config.vocab_size, "eos_ids": (), "max_tokens": tokens}
        with jax.set_mesh(mesh):
            chunks = decoder.stream(params, rows, seeds=[0] * batch, **options)
            return np.concatenate([chunk.tokens_BN for chunk in chunks], axis=1)

    return generate


def uncached(folder: str, batch: int, vocab: int, tokens: int) -> turns.Work:
    """The whole text, padded to its final length, through the network for each token."""
    import jax
    import jax.numpy as jnp

    from model.transformer import apply

    _, model, params, mesh = load(folder)

    @jax.jit
    def next_token(params: Any, ids_BT: jax.Array, place: jax.Array) -> jax.Array:
        hidden = apply(model, params, ids_BT).logits
        return jnp.argmax(jax.lax.dynamic_index_in_dim(hidden, place, axis=1, keepdims=False), axis=-1)

    def generate() -> np.ndarray:
        ids = np.zeros((batch, PROMPT + tokens), np.int32)
        ids[:, :PROMPT] = prompts(batch, vocab)
        with jax.set_mesh(mesh):
            for place in range(PROMPT, PROMPT + tokens):
                ids[:, place] = next_token(params, ids, jnp.int32(place - 1))
        return ids[:, PROMPT:]

    return generate


def load(folder: str) -> Any:
    from launch.memory import keep_memory

    if not GPU:
        keep_memory()
    from model import parameters
    from model.build import build
    from model.pretrained.weights import load_weights, read_config
    from model.sharding import ShardingRules
    from train.mesh import single_device_mesh

    dtype = "bfloat16" if GPU else "float32"
    config = dataclasses.replace(read_config(folder)[0], compute_dtype=dtype, param_dtype=dtype)
    mesh = single_device_mesh()
    model = build(config)
    weights = parameters.weights(model)
    params, _ = load_weights(folder, config, weights, parameters.shardings(weights, ShardingRules(), mesh))
    return config, model, params, mesh


if __name__ == "__main__":
    main()
