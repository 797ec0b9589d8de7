"""What each command does, once its flags are known."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError, missing_path


def train(values: Any, rest: Sequence[str]) -> int:
    from launch import train

    again = [argument for argument in sys.argv[1:] if not argument.startswith("--fresh")]
    return train.run(values.config, fresh=values.fresh, again=shlex.join(["tessera", *again]))


def generate(values: Any, rest: Sequence[str]) -> int:
    """Streams: the first sample as it comes, the others after it with what they have by then."""
    from launch.load import load

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
    texts = [""] * len(rows)
    _print_begin(rows, 0)
    for pieces in stream:
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        print(pieces[0], end="", flush=True)
    for row in range(1, len(rows)):
        print()
        _print_begin(rows, row)
        print(texts[row], end="")
    print()
    return 0


def _print_begin(rows: Sequence[tuple[str, int]], row: int) -> None:
    prompt, seed = rows[row]
    if len(rows) > 1:
        print(f"{chr(10) if row else ''}--- sample {row + 1} of {len(rows)} (seed {seed})")
    print(prompt, end="", flush=True)


def plot(values: Any, rest: Sequence[str]) -> int:
    from studies.plot import plot_runs

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
