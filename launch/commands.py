"""What each command does, once its flags are known."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError, missing_path

# Flags of `tessera generate` that say how a token is drawn: the fields of `model.sampling.Sampling`.
PENALTIES = ("repetition_penalty", "no_repeat_ngram", "min_tokens")
DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SAMPLING = (*DRAWS, *PENALTIES)
BEAMS = ("num_beams", "length_penalty")
ROWS = ("max_tokens", "num_samples", "seed", "stop")


def train(values: Any, rest: Sequence[str]) -> int:
    from launch.processes import CHILD, together

    given = shlex.split(os.environ.get(CHILD, "")) or values.command_line
    again = [argument for argument in given if not argument.startswith(("--fresh", "-fresh"))]

    def run() -> int:
        from launch import train  # after the processes have met: it wakes up jax
        from train.profile import parse

        return train.run(
            values.config,
            fresh=values.fresh,
            again=shlex.join(["tessera", *again]),
            profile=parse(values.profile),
            resume=values.resume,
            stop_after=values.stop_after,
        )

    return together(run, values.processes, values.devices, values.start_timeout, values.heartbeat_timeout)


def generate(values: Any, rest: Sequence[str]) -> int:
    """Streams: the first sample as it comes, the others after it with what they have by then."""
    from evaluation.encoder import Encoder
    from evaluation.sequence_to_sequence import SequenceToSequence
    from launch.load import load

    prompts = [*values.prompt, *_read_prompts(values.prompts_file)]
    if not prompts:
        raise ValueError("no prompt: give --prompt=TEXT or --prompts_file=FILE")
    lm = load(values.run, step=values.step)
    kind = "an encoder" if isinstance(lm, Encoder) else "beam search" if values.num_beams else ""
    unread = {"an encoder": (*SAMPLING, *BEAMS, *ROWS), "beam search": (*DRAWS, "stop", "seed")}.get(kind, BEAMS[1:])
    if given := [f"--{name}" for name in unread if values[name].present]:
        raise ValueError(f"{', '.join(given)} would change nothing: {kind or 'a draw without --num_beams'} ignores it")
    if isinstance(lm, Encoder):
        print("\n\n".join(lm.complete(prompts, max_tokens=0, temperature=0.0, seed=0)))
        return 0
    samples = values.num_samples
    rows = [(prompt, values.seed + sample) for prompt in prompts for sample in range(samples)]
    answers = isinstance(lm, SequenceToSequence)
    if values.num_beams:
        beams = {name: getattr(values, name) for name in ("num_beams", "length_penalty", *PENALTIES)}
        found = lm.generate(prompts, max_tokens=values.max_tokens, num_samples=samples, details=True, **beams)
        for row, best in enumerate([[one] if samples == 1 else one for one in found]):
            for place, continuation in enumerate(best):
                _print_begin(rows, row * samples + place, prompts[row], f"score {continuation.score:.4f}", answers)
                print(continuation.text)
        return 0
    options = {name: getattr(values, name) for name in SAMPLING}
    stream = lm.stream(
        prompts,
        max_tokens=values.max_tokens,
        num_samples=samples,
        seeds=[seed for _, seed in rows],
        stop=values.stop,
        **options,
    )
    texts = [""] * len(rows)
    _print_begin(rows, 0, prompts[0], f"seed {values.seed}", answers)
    for pieces in stream:
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        print(pieces[0], end="", flush=True)
    for row in range(1, len(rows)):
        print()
        _print_begin(rows, row, rows[row][0], f"seed {rows[row][1]}", answers)
        print(texts[row], end="")
    print()
    return 0


def _print_begin(rows: Sequence[Any], row: int, prompt: str, note: str, answers: bool) -> None:
    """What stands before a sample: its number, and the prompt that it continues (or, an answer, follows)."""
    if len(rows) > 1:
        print(f"{chr(10) if row else ''}--- sample {row + 1} of {len(rows)} ({note})")
    print(prompt, end="\n-> " if answers else "", flush=True)


def history(values: Any, rest: Sequence[str]) -> int:
    from launch import history

    print(history.run(values.config, values.minutes, values.out))
    return 0


def import_model(values: Any, rest: Sequence[str]) -> int:
    from launch.published import import_run

    source, run = rest
    published = import_run(source, run, param_dtype=values.param_dtype)
    c = published.config
    sizes = f"{c.num_layers} layers, width {c.embed_dim}, vocabulary {c.vocab_size}"
    print(f"{source}: {published.model_type}, {c.architecture} with head {c.head}, {sizes}\n{published.report.table()}")
    print(f"run        {run}\nnext:\n  tessera generate --run={run} --prompt=…\n  tessera export {run} --to=FOLDER")
    return 0


def export_model(values: Any, rest: Sequence[str]) -> int:
    from launch.published import export_run

    for lack in export_run(rest[0], values.to, step=values.step):
        print(f"{values.to} has {lack}", file=sys.stderr)
    print(f"{values.to}: config.json, weights and what transformers needs to read them")
    return 0


def plot(values: Any, rest: Sequence[str]) -> int:
    from studies.plot import plot_runs

    print(plot_runs(list(rest), Path(values.out)))
    return 0


def plan(values: Any, rest: Sequence[str]) -> int:
    """0 where the step fits or nobody can say, 1 where it does not."""
    mesh = None if values.mesh is None else _sizes(values.mesh)
    if not values.search and values["search_compiles"].present:
        raise ValueError("--search_compiles would change nothing without --search")
    if values.search and (mesh is not None or values.tokens):
        raise ValueError("--search chooses the mesh and counts no tokens: leave --mesh and --tokens out")
    from launch.plan.command import run

    return run(
        values.config,
        values.topology,
        mesh=mesh,
        slices=values.slices,
        tokens=values.tokens,
        compiles=values.search_compiles if values.search else None,
        json_file=values.json,
        html_file=values.html,
    )


def _sizes(text: str) -> dict[str, int]:
    """`fsdp=32,tensor=4` as sizes by axis."""
    if not re.fullmatch(r"\w+=-?\d+(,\w+=-?\d+)*", text):
        raise ValueError(f"--mesh={text}: write axes and sizes such as fsdp=32,tensor=4")
    return {axis: int(size) for axis, size in (pair.split("=") for pair in text.split(","))}


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
