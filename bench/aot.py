"""What a chip has to hold, compute and say in a step of configs/gpt_7b, beside the same model in plain Flax.

    python bench/aot.py [--topology=v5p:4x4x8] [--layers=32] [--rows=8] [--peers=splash,xla,flax]

Compiled for TPUs that are not here (extra `tpu`): bytes of one chip, no times. FLOPs are the matrix products of the
traced step, masked ones included. `splash` and `xla` are Tessera with these implementations of attention, `flax` is
bench/flax_llama.py. Weights, statistics and batch lie on `fsdp` over all chips. All 32 layers take minutes a peer.
"""

import argparse
import collections
import time
from typing import Any

import jax
from flax_llama import Llama, sharded_step

from configs import gpt_7b
from launch.experiment import read
from launch.plan.collectives import found_in
from launch.plan.flops import executed_flops
from launch.plan.hlo import parse
from launch.plan.plan import stand_in
from launch.plan.topology import Topology, find_topology
from launch.program import assemble
from train.mesh import MeshConfig, make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5p:4x4x8")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8, help="of a chip")
    parser.add_argument("--peers", default="splash,xla,flax")
    options = parser.parse_args()
    topology = find_topology(options.topology)
    config: Any = gpt_7b.get_config()
    config.model.num_layers = options.layers
    config.train.global_batch = options.rows * len(topology.devices)
    print(f"jax {jax.__version__}, {topology.name}, {options.layers} layers, {options.rows} rows a chip")
    for peer in options.peers.split(","):
        found = flax(config, topology) if peer == "flax" else tessera(config, topology, peer)
        print(f"{peer:<8}" + "   ".join(f"{what} {value:,.1f}" for what, value in found.items()), flush=True)


def tessera(config: Any, topology: Topology, attention: str) -> dict[str, float]:
    config = config.copy_and_resolve_references()
    config.model.attention_impl = attention
    experiment = read(config)
    program = assemble(experiment, stand_in(experiment), topology.devices)
    with jax.set_mesh(program.mesh):
        traced = jax.make_jaxpr(program.step_fn)(program.target, program.abstract_batch())
        compiled, seconds = program.compile()
    return told(compiled, traced, program.mesh, seconds)


def flax(config: Any, topology: Topology) -> dict[str, float]:
    c = config.model
    model = Llama(c.vocab_size, c.embed_dim, c.num_layers, c.num_heads, c.mlp_dim, c.compute_dtype)
    mesh = make_mesh(MeshConfig(1, -1, 1, 1, 1), topology.devices)
    with jax.set_mesh(mesh):
        step, arguments = sharded_step(model, config.train.global_batch, c.max_length, mesh)
        began = time.perf_counter()
        compiled = step.lower(*arguments).compile()
        seconds = time.perf_counter() - began
        return told(compiled, jax.make_jaxpr(step)(*arguments), mesh, seconds)


def told(compiled: Any, traced: Any, mesh: Any, seconds: float) -> dict[str, float]:
    memory, module = compiled.memory_analysis(), parse(compiled.as_text())
    sent: dict[str, float] = collections.defaultdict(float)
    for one in found_in(module, mesh):
        sent[one.kind] += one.bytes * one.times
    return {
        "arguments GB": memory.argument_size_in_bytes / 1e9,
        "temporaries GB": memory.temp_size_in_bytes / 1e9,
        "peak GB": memory.peak_memory_in_bytes / 1e9,
        "TFLOP": executed_flops(traced) / mesh.size / 1e12,
        **{f"{kind} GB": size / 1e9 for kind, size in sorted(sent.items())},
        "compile s": seconds,
    }


if __name__ == "__main__":
    main()
