"""Seconds of compiling in a first and a second start of the same training, with an empty compilation cache before.

    python bench/start.py [--config=configs/gpt_demo.py] [--rounds=3]

Each start is a process of its own that trains two steps in a new run folder; of a round, the first start fills the
cache and the second one reads it. Medians over the rounds; the seconds are those of `time/compile` in metrics.jsonl
(tracing in Python and XLA, all programs), and those from the command to the end of the process. The target is a second
start that compiles in less than 0.3 of the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT = ("train.steps=2", "optimizer.warmup_steps=1", "train.eval_sequences=16", "train.sample_tokens=4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/gpt_demo.py")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start(options.config, Path(folder, "warm"), Path(folder, "none"))  # makes the data, fills the file cache
        rounds = []
        for number in range(options.rounds):
            cache = Path(folder, f"cache{number}")
            rounds.append([start(options.config, Path(folder, f"{number}{turn}"), cache) for turn in "ab"])
            print(f"round {number + 1}: first {rounds[-1][0]}, second {rounds[-1][1]} (compiling, in all)", flush=True)
    for place, what in enumerate(("compiling", "in all")):
        first, second = (statistics.median(pair[turn][place] for pair in rounds) for turn in (0, 1))
        print(f"{what:<10} first {first:5.1f} s, second {second:5.1f} s, ratio {second / first:.2f}")


def start(config: str, run: Path, cache: Path) -> tuple[float, float]:
    """Seconds of compiling, and of the whole command."""
    overrides = [f"--config.{leaf}" for leaf in (*SHORT, f"run.dir={run}")]
    command = [sys.executable, "-m", "tessera", "train", f"--config={config}", *overrides]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    took = time.perf_counter() - began
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    compiling = [record["time/compile"] for record in records if "time/compile" in record]
    return round(compiling[-1], 2), round(took, 2)


if __name__ == "__main__":
    main()
