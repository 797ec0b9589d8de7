"""bench/RESULTS.md and bench/results.png from bench/results.jsonl: python bench/report.py"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent


def main() -> None:
    lines = (HERE / "results.jsonl").read_text(encoding="utf-8").splitlines()
    newest = {(r["bench"], r["case"], r["machine"]): r for r in map(json.loads, lines)}  # the last measurement counts
    records = list(newest.values())
    (HERE / "RESULTS.md").write_text(markdown(records), encoding="utf-8")
    draw(records, HERE / "results.png")


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A section a benchmark and machine, a row a case."""
    parts = [
        "# Speed beside peers\n\nEach row was measured in one run in which the peers took turns (A B A B …); rates are "
        "medians. A ratio above 1 means that Tessera is faster. Made by `python bench/report.py` from "
        "`results.jsonl`.\n\n![ratios](results.png)\n"
    ]
    for bench, machine in dict.fromkeys((r["bench"], r["machine"]) for r in records):
        rows = [r for r in records if (r["bench"], r["machine"]) == (bench, machine)]
        peers = list(dict.fromkeys(peer for r in rows for peer in r["rates"] if peer != "tessera"))
        keys = ("python", "jax", "flax", "torch", "transformers")
        versions = ", ".join(f"{key} {rows[-1][key]}" for key in keys if key in rows[-1])
        header = ["case", "Tessera", *peers, "MFU"]
        parts.append(f"## {bench}: {machine}\n\n`python bench/{bench}.py`, {rows[-1]['date']}, {versions}\n")
        parts.append("| " + " | ".join(header) + " |\n|---" * 1 + "|---:" * (len(header) - 1) + "|")
        for r in rows:
            own = r["rates"]["tessera"]
            ratios = [f"{own / r['rates'][peer]:.2f}" if peer in r["rates"] else "-" for peer in peers]
            mfu = f"{r['mfu']:.1%}" if "mfu" in r else "-"
            parts.append(f"| {r['case']} | {own:,.0f} {r['unit']} | " + " | ".join([*ratios, mfu]) + " |")
        parts.append("")
    return "\n".join(parts)


def draw(records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Ratios as bars, a group a case."""
    peers = list(dict.fromkeys(peer for r in records for peer in r["rates"] if peer != "tessera"))
    figure = Figure(figsize=(1.5 + 1.2 * len(records), 4), layout="constrained")
    axes = figure.subplots()
    for number, peer in enumerate(peers):
        there = [(i, r["rates"]["tessera"] / r["rates"][peer]) for i, r in enumerate(records) if peer in r["rates"]]
        places = [i + 0.8 * (number + 0.5) / len(peers) - 0.4 for i, _ in there]
        axes.bar(places, [ratio for _, ratio in there], 0.8 / len(peers), label=f"over {peer}")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(records)), [f"{r['case']}\n{r['bench']}" for r in records], fontsize=8)
    axes.set(ylabel="Tessera's rate over the peer's")
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(out))


if __name__ == "__main__":
    main()
