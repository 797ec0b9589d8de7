"""Seventy years of language models in one picture: bits per byte of n-grams, recurrent networks and a Transformer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_history(rows: Sequence[Mapping[str, Any]], out: str | Path) -> Path:
    """One bar a model, a PNG at `out`. Each row has `name`, `bits_per_byte`, and `seconds` of training."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    names, bits = [row["name"] for row in rows], [row["bits_per_byte"] for row in rows]
    colours = ["C0" if row["seconds_asked"] is None else "C1" for row in rows]
    bars = axes.bar(names, bits, color=colours)
    axes.bar_label(bars, [f"{value:.2f}" for value in bits], padding=2)
    asked = [row["seconds_asked"] for row in rows if row["seconds_asked"] is not None]
    time = f"{asked[0] / 60:g} minutes of training each" if asked else "trained"
    axes.set(ylabel="bits per byte of held-out text", title=f"n-grams, counted (blue); networks, {time} (orange)")
    axes.set_ylim(0, max(bits) * 1.12)
    axes.grid(axis="y", alpha=0.3)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(out))
    return out


def history_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as Markdown."""
    lines = ["| model | weights | training | tokens read | bits per byte |", "|---|---|---|---|---|"]
    for row in rows:
        read = f"{row['tokens'] / 1e6:.2f} M"
        size, time = f"{row['weights'] / 1e3:,.0f} k", f"{row['seconds']:.0f} s"
        lines.append(f"| {row['name']} | {size} | {time} | {read} | {row['bits_per_byte']:.3f} |")
    return "\n".join(lines)
