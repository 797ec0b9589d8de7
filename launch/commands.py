"""What each command does, once its flags are known."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError, missing_path


def train(values: Any, rest: Sequence[str]) -> int:
    from launch import train

    return train.run(values.config, fresh=values.fresh)


def generate(values: Any, rest: Sequence[str]) -> int:
    """Streams one sample as it comes; several are printed one after the other when all are done."""
    from launch.load import load

    if not values.run:
        raise ValueError('which run? tessera generate --run=runs/gpt_demo --prompt="def "')
    if values.num_samples < 1:
        raise ValueError(f"--num_samples is {values.num_samples}: it must be at least 1")
    prompts = [*values.prompt, *_read_prompts(values.prompts_file)]
    if not prompts:
        raise ValueError("no prompt: give --prompt=TEXT or --prompts_file=FILE")
    lm = load(values.run, step=values.step)
    rows = [(prompt, values.seed + sample) for prompt in prompts for sample in range(values.num_samples)]
    stream = lm.stream(
        [prompt for prompt, _ in rows],
        max_tokens=values.max_tokens,
        temperature=values.temperature,
        top_k=values.top_k,
        seeds=[seed for _, seed in rows],
    )
    if len(rows) == 1:
        print(rows[0][0], end="", flush=True)
        for pieces in stream:
            print(pieces[0], end="", flush=True)
        print()
        return 0
    texts = [""] * len(rows)
    for pieces in stream:
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if sys.stderr.isatty():
            print(f"\r{len(rows)} samples, {sum(map(len, texts)):,} characters", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for number, ((prompt, seed), text) in enumerate(zip(rows, texts, strict=True), 1):
        print(f"--- sample {number} of {len(rows)} (seed {seed})\n{prompt}{text}\n")
    return 0


def plot(values: Any, rest: Sequence[str]) -> int:
    from studies.plot import plot_runs

    if not rest:
        raise ValueError("which runs? tessera plot runs/a runs/b")
    print(plot_runs(list(rest), Path(values.out)))
    return 0


def doctor(values: Any, rest: Sequence[str]) -> int:
    from launch.doctor import examine

    return examine()


def _read_prompts(path: str | None) -> list[str]:
    if path is None:
        return []
    if not Path(path).expanduser().is_file():
        raise missing_path("prompts file", path)
    try:
        return [line for line in Path(path).expanduser().read_text(encoding="utf-8").split("\n") if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}: convert it first") from error
