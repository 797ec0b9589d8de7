"""The terminal output of a run: a header before step 1, regular log lines, a progress bar on a terminal."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model.parameters import Params, Weight, named_leaves


class Console:
    """Prints; on a terminal with a live progress bar below."""

    def __init__(self, terminal: Terminal | None = None, *, speaks: bool = True) -> None:
        """`speaks` is False for all processes of a run but the first."""
        self._out = terminal or Terminal(highlight=False, soft_wrap=True, quiet=not speaks)
        if not self._out.is_terminal:
            self._out.width = 160  # a log file has no edge
        self._bar: Progress | None = None

    def say(self, text: str = "") -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def start(self, done: int, total: int) -> None:
        """Shows the progress bar, on a terminal only."""
        if self._out.is_terminal:
            columns = [
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
            ]
            self._bar = Progress(*columns, console=self._out)
            self._bar.start()
            self._bar.add_task("", total=total, completed=done)

    def step(self, done: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=description)

    def stop(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError):  # as in `_print`
                bar.stop()

    def _print(self, what: str | Table, style: str | None = None) -> None:
        """Words are not worth a run: the terminal may be gone, or the disk full that they go to."""
        with contextlib.suppress(OSError):
            self._out.print(what, style=style, markup=False)


def log_line(record: Mapping[str, Any], total: int) -> str:
    """One line of the run's progress, from the record that goes to metrics.jsonl."""
    mfu = f"MFU {record['mfu']:.1%}" if "mfu" in record else "MFU -"
    experts = ""
    if "busiest" in record:
        experts = f"experts: busiest {record['busiest']:.0%}, dropped {record['dropped']:.1%}  "
    return (
        f"step {record['step']}/{total} {record['step'] / total:4.0%}  loss {record['loss']:.4f}  {experts}"
        f"lr {record['learning_rate']:.2e}  grad {record['grad_norm']:.2f}  "
        f"{record['tokens_per_second']:,.0f} tok/s  {mfu}  {1000 * record['step_seconds']:.0f} ms/step  "
        f"data {record['data_wait']:.0%}  mem {size(record['memory_bytes'])}  "
        f"elapsed {duration(record['elapsed'])}  ETA {duration(record['eta'])}"
    )


def parameter_rows(weights: Params, shardings: Params) -> list[list[str]]:
    """A row a weight: name, shape, count, mesh axes, bytes on one device; and a row of totals."""
    rows, count, held = [], 0, 0
    placed = named_leaves(shardings)
    for name, weight in named_leaves(weights).items():
        share = device_bytes(weight, placed[name])
        spec = ", ".join(_axis_name(axis, placed[name].mesh) for axis in placed[name].spec)
        shape = "×".join(map(str, weight.shape))
        rows.append([name, shape, f"{weight.size:,}", spec, size(share)])
        count, held = count + weight.size, held + share
    return [*rows, ["total", "", f"{count:,}", "", size(held)]]


def _axis_name(axes: str | tuple[str, ...] | None, mesh: jax.sharding.Mesh) -> str:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return "+".join(name for name in names if mesh.shape[name] > 1) or "·"


def device_bytes(weight: Weight, sharding: jax.sharding.NamedSharding) -> int:
    """Bytes that one device holds of a weight."""
    return math.prod(sharding.shard_shape(weight.shape)) * weight.dtype.itemsize


def memory_in_use() -> int:
    """Bytes in use on the fullest local device; on a CPU, the most that this process has used so far."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(s["bytes_in_use"] for s in stats if s)
    import resource
    import sys

    with contextlib.suppress(OSError, IndexError):  # Linux, where `ru_maxrss` of a child begins with its parent's
        return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people: 42s, 3m05s, 2h07m, 4d03h."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
