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
    newest = {(*_setting(r), r["case"]): r for r in map(json.loads, lines)}  # the last measurement counts
    records = sorted(newest.values(), key=_setting)
    (HERE / "RESULTS.md").write_text(markdown(records), encoding="utf-8")
    draw(records, HERE / "results.png")


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A section a benchmark, machine and Python (which brings its own jax), a row a case."""
    parts = [
        "# Speed beside peers\n\nEach row was measured in one run in which the peers took turns (A B A B …); rates are "
        "medians. A ratio above 1 means that Tessera is faster. Made by `python bench/report.py` from "
        "`results.jsonl`.\n\n![ratios](results.png)\n"
    ]
    for bench, machine, python in dict.fromkeys(map(_setting, records)):
        rows = [r for r in records if _setting(r) == (bench, machine, python)]
        peers = list(dict.fromkeys(peer for r in rows for peer in r["rates"] if peer != "tessera"))
        keys = ("python", "jax", "flax", "orbax-checkpoint", "torch", "transformers")
        versions = ", ".join(f"{key} {rows[-1][key]}" for key in keys if key in rows[-1])
        header = ["case", "Tessera", *peers, "MFU"]
        parts.append(f"## {bench}: {machine}, Python {python}\n")
        parts.append(f"`python bench/{bench}.py`, {rows[-1]['date']}, {versions}\n")
        parts.append("| " + " | ".join(header) + " |\n|---" * 1 + "|---:" * (len(header) - 1) + "|")
        for r in rows:
            own = r["rates"]["tessera"]
            ratios = [f"{own / r['rates'][peer]:.2f}" if peer in r["rates"] else "-" for peer in peers]
            mfu = f"{r['mfu']:.1%}" if "mfu" in r else "-"
            rate = f"{own:,.0f}" if own >= 10 else f"{own:.2f}"
            parts.append(f"| {r['case']} | {rate} {r['unit']} | " + " | ".join([*ratios, mfu]) + " |")
        parts.append("")
    return "\n".join(parts)


def _setting(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["bench"], record["machine"], record["python"].rpartition(".")[0]


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
    names = [f"{r['case'].replace(', ', chr(10))}\n{r['bench']}\nPython {_setting(r)[2]}" for r in records]
    axes.set_xticks(range(len(records)), names, fontsize=8)
    axes.set(ylabel="Tessera's rate over the peer's")
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(out))


if __name__ == "__main__":
    main()
