"""What checksums cost a save and a restore of a training state, and how long a save stops the training.

    python bench/checkpoint.py [--parameters=124] [--rounds=5] [--folder=/tmp] [--keep]

The state is one of `--parameters` millions of parameters with the two moments of AdamW, in float32. In each round a
save with checksums and one without, and a restore with verification and one without, take turns; then comes the plain
copy of the state to the host. Medians over the rounds. Targets: checksums add less than 5 % to a save and to a restore.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bench.turns import keep, machine
from train import checkpoint
from train.checkpoint import CheckpointConfig, Checkpoints
from train.restore import TOKENIZER
from train.state import State

CONFIG = CheckpointConfig(every_steps=1, every_minutes=0.0, keep_last=2, keep_best=0, keep_every_steps=0)
PLAIN = " without checksums"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=124, help="millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; a temporary folder without")
    parser.add_argument("--keep", action="store_true", help="append to bench/results.jsonl")
    options = parser.parse_args()
    state = state_of(options.parameters * 10**6)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        took = measure(Path(folder), state, options.rounds)
    seconds = {name: statistics.median(times) for name, times in took.items()}
    for name, value in seconds.items():
        print(f"{name:<48} {value:7.3f} s  {size / value / 1e9:6.2f} GB/s")
    for what, more in (("save", ""), ("save", ", until training goes on"), ("restore", "")):
        print(f"{what}{more}: checksums add {seconds[what + more] / seconds[what + PLAIN + more] - 1:+.1%}")
    if options.keep:
        rates = {name: size / value / 1e9 for name, value in seconds.items()}
        for what in ("save", "restore"):
            record = {"unit": "GB/s", "rates": {"tessera": rates[what], "without checksums": rates[what + PLAIN]}}
            keep("checkpoint", f"{what}, {options.parameters}M and AdamW", machine(["jax", "orbax-checkpoint"]), record)


def state_of(parameters: int) -> State:
    """Twelve blocks' worth of leaves, random, so that nothing compresses."""
    shape = (12, parameters // 12 // 1024 // 8, 1024)
    made = jax.jit(lambda key: jax.random.normal(key, shape))
    leaves = iter(made(key) for key in jax.random.split(jax.random.key(0), 24))
    params, first, second = ({f"w{number}": next(leaves) for number in range(8)} for _ in range(3))
    return jax.block_until_ready(State(jnp.int32(0), params, {"mu": first, "nu": second}))


def measure(folder: Path, state: State, rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, of each round but the first, which compiles."""
    took: dict[str, list[float]] = defaultdict(list)
    checkpoints, description = Checkpoints(folder, CONFIG, warn=lambda _: None), checkpoint.description

    def timed(name: str, work: Callable[[], Any]) -> None:
        began = time.perf_counter()
        work()
        took[name].append(time.perf_counter() - began)

    def save(step: int, kind: str) -> None:
        timed(f"save{kind}, until training goes on", lambda: checkpoints.save(step, state))
        checkpoints.wait()

    for number in range(rounds + 1):
        for step, kind in enumerate(("", PLAIN), start=2 * number):
            checkpoint.description = (lambda *_: {TOKENIZER: ""}) if kind else description
            timed(f"save{kind}", lambda: save(step, kind))  # noqa: B023
        for step, kind in enumerate(("", PLAIN), start=2 * number):  # without checksums there is nothing to verify
            timed(f"restore{kind}", lambda: jax.block_until_ready(checkpoints.restore(step, state)))  # noqa: B023
        timed("copy to the host", lambda: [x.copy() for x in jax.device_get(jax.tree.leaves(state))])
    checkpoint.description = description
    checkpoints.close()
    return {name: times[1:] for name, times in took.items()}


if __name__ == "__main__":
    main()
