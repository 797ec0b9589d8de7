"""One picture that compares runs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from studies.runs import read_runs
from train.records import RunError


def plot_runs(runs: str | Path | Sequence[str | Path], out: str | Path) -> Path:
    """Draws training loss (thin: raw, thick: running median) and held-out scores over tokens, a colour a run.

    The score is bits per byte, or nats per token where no run has bits: masked tokens are no text. `runs` are those of
    `read_runs`; the picture is a PNG at `out`.
    """
    frame, out = read_runs(runs), Path(out)
    if not {"loss", "eval/loss"} & set(frame):
        raise RunError(f"no loss to draw in {runs}: train until the first record")
    score = "eval/bits_per_byte" if "eval/bits_per_byte" in frame else "eval/loss"
    for name in ("tokens", *({"loss", score} & set(frame))):
        if name not in frame or not pd.api.types.is_numeric_dtype(frame[name]):
            raise RunError(f"{name!r} is missing from metrics.jsonl of {runs}, or not always a number")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, held_out = figure.subplots(1, 2)
    for number, (run, rows) in enumerate(frame.groupby("run", sort=False)):
        colour, label = f"C{number % 10}", Path(str(run)).name
        trained = rows.dropna(subset=["loss"]) if "loss" in rows else rows.iloc[:0]
        if len(trained):
            smooth = trained["loss"].rolling(max(len(trained) // 25, 1), min_periods=1, center=True).median()
            loss.plot(trained["tokens"], trained["loss"], color=colour, alpha=0.25, linewidth=0.8)
            loss.plot(trained["tokens"], smooth, color=colour, label=label)
        scored = rows.dropna(subset=[score]) if score in rows else rows.iloc[:0]
        if len(scored):
            logged = rows.dropna(subset=["tokens"])[["step", "tokens"]]
            tokens = pd.merge_asof(scored[["step"]], logged, on="step")["tokens"]
            held_out.plot(tokens, scored[score], color=colour, marker="o", markersize=3, label=label)
    measure = "bits per byte" if score == "eval/bits_per_byte" else "nats per token"
    for axes, title, unit in ((loss, "training loss", "nats per token"), (held_out, "held-out text", measure)):
        axes.set(title=title, xlabel="tokens", ylabel=unit)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(out))
    return out
