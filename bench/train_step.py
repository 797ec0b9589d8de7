"""Tokens per second of a training step: Tessera beside PyTorch, plain Flax and transformers, in one run.

    python bench/train_step.py [--cases=char,char_large,vocab32k] [--peers=tessera,torch,compile,flax]
                               [--rounds=7] [--seconds=3] [--keep]

Needs the extra `peers`. All train with AdamW, clipping and no dropout, each in a process of its own with the same
number of threads; they take turns, and medians over the rounds are compared. A ratio is Tessera's tokens per second
over the peer's. On a CPU they compute in f32. Where there is a GPU, the default cases are GPT-2 and T5 in bf16 with f32
weights: Tessera with cuDNN attention, PyTorch under autocast with its fused attention; they share the GPU's memory.
"""

import argparse
import os
from typing import Any

import numpy as np
import turns

CASES: dict[str, dict[str, int]] = {
    "char": {"layers": 4, "heads": 4, "width": 128, "length": 64, "batch": 12, "vocab": 65},
    "char_large": {"layers": 6, "heads": 6, "width": 384, "length": 256, "batch": 16, "vocab": 65},
    "vocab32k": {"layers": 4, "heads": 4, "width": 256, "length": 256, "batch": 8, "vocab": 32_768},
    "gpt2_124m": {"layers": 12, "heads": 12, "width": 768, "length": 1024, "batch": 16, "vocab": 50_304},
    "gpt2_355m": {"layers": 24, "heads": 16, "width": 1024, "length": 1024, "batch": 8, "vocab": 50_304},
    "gpt2_1558m": {"layers": 48, "heads": 25, "width": 1600, "length": 1024, "batch": 4, "vocab": 50_304},
    "t5_base": {"batch": 16, "length": 512, "vocab": 32_128},
}
T5_TARGET = 114  # tokens of a target whose source has 512 (Raffel et al. 2020, section 3.1.4)
ON_CPU, ON_GPU = "char,char_large,vocab32k", "gpt2_124m,gpt2_355m,gpt2_1558m,t5_base"


def main() -> None:
    gpu = os.path.exists("/dev/nvidia0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=ON_GPU if gpu else ON_CPU)
    parser.add_argument("--peers", default="tessera,torch,compile,flax")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--keep", action="store_true", help="append to bench/results.jsonl")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # for whoever shares the GPU
    about = turns.machine(("jax", "flax", "torch", "transformers"))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for case in options.cases.split(","):
        compare(case, options, about, "bfloat16" if gpu else "float32")


def compare(case: str, options: Any, about: dict[str, Any], dtype: str) -> None:
    shape = CASES[case]
    encoder_decoder = "layers" not in shape
    make = {"tessera": tessera_step, "torch": torch_step, "compile": compiled_torch_step, "flax": flax_step}
    if encoder_decoder:
        make = {"tessera": tessera_t5_step, "transformers": transformers_t5_step}
    asked = list(make) if encoder_decoder else options.peers.split(",")
    median, _ = turns.turns({peer: (make[peer], (shape, dtype)) for peer in asked}, options.rounds, options.seconds)
    tokens = shape["batch"] * (shape["length"] + (T5_TARGET if encoder_decoder else 0))
    rates = {peer: tokens / seconds for peer, seconds in median.items()}
    ratios = {peer: rates["tessera"] / rate for peer, rate in rates.items() if peer != "tessera"}
    print(f"{case:<11} tessera {rates['tessera']:,.0f} tok/s ({1e3 * median['tessera']:.1f} ms)", end="")
    print("".join(f"   {peer} {rates[peer]:,.0f}, ratio {ratio:.2f}" for peer, ratio in ratios.items()), flush=True)
    if mfu := model_flops_utilisation(case, rates["tessera"], about["machine"]):
        print(f"{'':<11} MFU {mfu:.1%}", flush=True)
    if options.keep:
        values = {"unit": "tokens/s", "dtype": dtype, "rates": rates, **({"mfu": mfu} if mfu else {})}
        turns.keep("train_step", case, about, values)


def model_flops_utilisation(case: str, tokens_per_second: float, machine: str) -> float | None:
    """Of a decoder on a GPU whose peak is published."""
    from model.config import flops_per_sequence
    from train.chips import CHIPS

    peaks = [chip.peak_flops for chip in CHIPS.values() if machine.startswith(chip.kinds)]
    if not peaks or "layers" not in CASES[case]:
        return None
    length = CASES[case]["length"]
    return flops_per_sequence(gpt_config(CASES[case], "bfloat16"), length) / length * tokens_per_second / peaks[0]


def random_ids(shape: dict[str, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, shape["vocab"], (shape["batch"], shape["length"] + 1), dtype=np.int32)


def torch_step(shape: dict[str, int], dtype: str, compiled: bool = False) -> turns.Work:
    import torch
    import torch_gpt

    torch.set_num_threads(turns.THREADS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {key: value for key, value in shape.items() if key != "batch"}
    step = torch_gpt.torch_step(**sizes, device=device, dtype=dtype, compiled=compiled)
    ids = torch.tensor(random_ids(shape), dtype=torch.long, device=device)
    return lambda: float(step(ids[:, :-1], ids[:, 1:]))


def compiled_torch_step(shape: dict[str, int], dtype: str) -> turns.Work:
    return torch_step(shape, dtype, compiled=True)


def flax_step(shape: dict[str, int], dtype: str) -> turns.Work:
    _ready()
    import flax_gpt
    import jax.numpy as jnp

    step = flax_gpt.flax_step(**{key: value for key, value in shape.items() if key != "batch"}, dtype=dtype)
    ids = jnp.asarray(random_ids(shape))
    return lambda: float(step(ids[:, :-1], ids[:, 1:]))


def gpt_config(shape: dict[str, int], dtype: str) -> Any:
    from model.config import ModelConfig

    sizes = {"num_layers": shape["layers"], "num_heads": shape["heads"], "embed_dim": shape["width"]}
    return ModelConfig(**sizes, max_length=shape["length"], vocab_size=shape["vocab"], compute_dtype=dtype)


def tessera_step(shape: dict[str, int], dtype: str) -> turns.Work:
    """The step that `tessera train` runs, compiled the same way."""
    config = _experiment(shape, dtype)
    config.model.update(num_layers=shape["layers"], num_heads=shape["heads"], embed_dim=shape["width"])
    # Layers unrolled: faster on a CPU. On a GPU the loop costs nothing, and the program compiles in seconds.
    config.model.update(scan_unroll=0 if dtype == "float32" else 1)
    return _tessera(config)


def tessera_t5_step(shape: dict[str, int], dtype: str) -> turns.Work:
    from configs import t5_base

    config = _experiment(shape, dtype)
    config.model.update({**t5_base.get_config().model, "vocab_size": shape["vocab"], "max_length": shape["length"]})
    config.model.update(compute_dtype=dtype)
    config.objective.name = "span_corruption"
    return _tessera(config)


def transformers_t5_step(shape: dict[str, int], dtype: str) -> turns.Work:
    import torch
    import transformers

    torch.set_num_threads(turns.THREADS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "dropout_rate": 0.0}
    config = transformers.T5Config(
        vocab_size=shape["vocab"], **sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    model = transformers.T5ForConditionalGeneration(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.tensor(random_ids(shape), dtype=torch.long, device=device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids[:, :-1], labels=ids[:, :T5_TARGET]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def _experiment(shape: dict[str, int], dtype: str) -> Any:
    _ready()
    from configs import defaults

    config = defaults.get_config()
    config.model.update(max_length=shape["length"], vocab_size=shape["vocab"], compute_dtype=dtype)
    config.train.global_batch = shape["batch"]
    return config


def _tessera(config: Any) -> turns.Work:
    import jax

    from data.tokenizers.tokenizer import CharTokenizer
    from launch import experiment
    from launch.program import assemble
    from train.mesh import place_batch

    program = assemble(experiment.read(config), CharTokenizer("".join(map(chr, range(65)))))
    rng, rows = np.random.default_rng(0), config.train.global_batch
    arrays = {
        name: rng.integers(0, config.model.vocab_size, (rows, *shape), kind)
        if name in ("inputs", "targets", "source")
        else np.ones((rows, *shape), kind)
        for name, (shape, kind) in program.features.items()
    }
    with jax.set_mesh(program.mesh):
        state, batch = program.init(0), place_batch(arrays, program.batch_sharding)
        compiled, _ = program.compile()

    def step() -> float:
        nonlocal state
        with jax.set_mesh(program.mesh):
            state, metrics = compiled(state, batch)
            return float(metrics["loss"])

    return step


def _ready() -> None:
    from launch.memory import accelerated, keep_memory

    if not accelerated():
        keep_memory()


if __name__ == "__main__":
    main()
