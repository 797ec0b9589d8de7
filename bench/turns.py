"""Peers take turns: each in a process of its own, A B A B …, so that whatever slows the machine slows them alike."""

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1
RESULTS = Path(__file__).parent / "results.jsonl"

Work = Callable[[], Any]  # one piece of work, done when it returns


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """What a figure is worth nothing without: processor, GPU, threads, versions."""
    versions = {name: metadata.version(name) for name in packages}
    return {"machine": f"{_gpu() or _processor()}, {THREADS} threads", "python": platform.python_version(), **versions}


def turns(
    peers: Mapping[str, tuple[Callable[..., Work], tuple[Any, ...]]], rounds: int, seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of one piece of work, the median over the rounds, and what the last piece returned, by peer.

    `peers` names a function that makes the work in its process, and its arguments. In each round each peer works for
    about `seconds`, twice at least. A peer that fails is left out, with its error on the terminal.
    """
    workers: dict[str, Connection] = {}
    for name, (make, arguments) in peers.items():
        if connection := _start(make, arguments):
            workers[name] = connection
        else:
            print(f"  {name} failed: left out", flush=True)
    times: dict[str, list[float]] = {name: [] for name in workers}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, connection in workers.items():
            connection.send(seconds)
            taken, results[name] = connection.recv()
            times[name].append(taken)
    for connection in workers.values():
        connection.send(None)
    return {name: statistics.median(values) for name, values in times.items()}, results


def keep(bench: str, case: str, about: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Appends a measurement to bench/results.jsonl, from which bench/report.py makes table and picture."""
    record = {"bench": bench, "case": case, "date": time.strftime("%Y-%m-%d"), **about, **values}
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _start(make: Callable[..., Work], arguments: tuple[Any, ...]) -> Connection | None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(make, arguments, there), daemon=True).start()
    there.close()  # so that a worker that dies ends the wait
    try:
        here.recv()  # compiled and warm
    except EOFError:
        return None
    return here


def _serve(make: Callable[..., Work], arguments: tuple[Any, ...], connection: Connection) -> None:
    work = make(*arguments)
    for _ in range(3):
        result = work()
    connection.send("ready")
    while (seconds := connection.recv()) is not None:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds or count < 2:
            result = work()
            count += 1
        connection.send(((time.perf_counter() - began) / count, result))


def _gpu() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
