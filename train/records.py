"""The run folder: what a run writes so that it explains itself, and the lock that keeps it to one process."""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.atomic import write_file
from data.json_text import parse_json

if TYPE_CHECKING:
    from etils import epath

# A resumed run may differ in these: they change where, how often and how long, not what is computed from which data.
HARMLESS = ("run.", "checkpoint.", "checks.", "mesh.", "sharding.", "expect.")
# No batch depends on these; on the documents it does, which the fingerprint of the corpus compares.
HARMLESS_DATA = ("cache_dir", "prefetch", "workers", "skip_broken", "language", "licence", "max_epochs")
HARMLESS_TRAIN = (
    "steps",
    "log_every",
    "eval_every",
    "eval_sequences",
    "sample_every",
    "sample_prompts",
    "sample_tokens",
    "sample_temperature",
    "max_skipped",
    "stuck_after",
    "microbatches",
    "loss_chunks",
)
HARMLESS_MODEL = ("attention_impl", "remat", "remat_bytes", "remat_offload", "scan_unroll", "pipeline_microbatches")
HARMLESS_OPTIMIZER = ("offload",)
FLUSH = 30.0  # seconds between two looks that TensorBoard can take
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy", "tessera-lm")
RUN_NAME = re.compile("[A-Za-z0-9._-]+")  # shells, URLs and web pages take it as it is


class RunError(ValueError):
    """A run folder that cannot be used."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run keeps its files."""

    dir: str  # the run folder
    tensorboard: bool  # write TensorBoard events beside metrics.jsonl

    def __post_init__(self) -> None:
        check_run_name(self.dir)


def check_run_name(folder: str | Path) -> None:
    """Raises RunError for a run folder whose own name, not that of its parents, is none that is safe anywhere."""
    name = Path(folder).name
    if not RUN_NAME.fullmatch(name) or name == "..":
        raise RunError(
            f"a run cannot be called {name!r} ({str(folder)!r}): name its folder with letters A to Z, digits, '.', '_' "
            "and '-' only; it may lie anywhere"
        )


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Path]:
    """Makes the run folder and holds its lock; a lock whose owner is dead falls by itself.

    Raises:
        OSError: the folder cannot be written.
        RunError: another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 (held for the life of the run)
    except OSError as error:
        raise OSError(f"run folder {folder.absolute()} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise RunError(
                f"run folder {folder} is in use by {owner}: wait for it, stop it, or choose another --config.run.dir"
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield folder


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def environment() -> dict[str, Any]:
    """Versions, machine and command: what one needs to say where a figure comes from."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "host": socket.gethostname(),
        "packages": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def compare_configs(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences of two flat configs (dotted names) as lines: harmless ones, and those that make another run."""
    harmless, other = [], []
    for name in sorted(saved.keys() | now.keys()):
        before, after = _plain(saved.get(name)), _plain(now.get(name))
        if before != after:
            (harmless if _is_harmless(name) else other).append(f"{name}: {before!r} -> {after!r}")
    return harmless, other


class MetricsLog:
    """`metrics.jsonl`, append-only and the truth, and TensorBoard events beside it."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._path = folder / "metrics.jsonl"
        _drop_torn_line(self._path)
        self._path.touch()
        self._events = self._problem = None
        if tensorboard:
            try:
                self._events = Events(folder / "tensorboard")
            except OSError as error:  # events are not worth a run: `write` says so
                self._problem = error

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it must have a `step`. Raises OSError where it cannot be written: then none of it is."""
        append(self._path, (json.dumps(dict(record)) + "\n").encode())
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem
        if self._events is not None:
            self._events.write(record)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Events:
    """TensorBoard events, written by the caller: a thread that met a full disk would end, and its queue block."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        self._writer: Any = EventsWriter(str(folder / "events"))
        self._flushed = 0.0

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds the numbers of a record. After an error, nothing more is added: the file may end in half an event."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
        from tensorboardX.summary import scalar

        writer, self._writer = self._writer, None
        if writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH:
            writer.flush()
            self._flushed = time.monotonic()
        self._writer = writer

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


def append(path: Path, data: bytes) -> None:
    """Adds `data` at the end of a file, all of it or, where this raises OSError, nothing."""
    with open(path, "ab", buffering=0) as file:
        end, left = file.tell(), data
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, one a step, in order of steps. Where a resumed run did a step again, the last one counts.

    Raises:
        RunError: no metrics, or a line that is no record (the last one may be torn by a kill and is left out).
    """
    if not (folder / "metrics.jsonl").is_file():
        raise RunError(f"no metrics.jsonl in {folder}: it is not the folder of a run, or has not logged yet")
    by_step: dict[int, dict[str, Any]] = {}
    for record in read_lines(folder):
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run as they were written, one after the other; none where it has not logged. Raises RunError."""
    path = folder / "metrics.jsonl"
    records, lines = [], path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}:{number} is no JSON: {str(error)[:150]}") from error
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or not 0 <= step < 2**63:
            raise RunError(f"{path}:{number} is no record of a step, from 0 on: {line[:80]!r}")
        records.append(record)
    return records


def read_object(path: "Path | epath.Path", *parts: str) -> dict[str, Any]:
    """What a file of a run says: a JSON object, and `parts` of it that are objects too. Raises RunError for others."""
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {str(error)[:150]}") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in parts):
        raise RunError(f"{path} is not what a run of Tessera writes: it must hold {', '.join(parts) or 'an object'}")
    return found


def _drop_torn_line(path: Path) -> None:
    """A kill may leave half a record at the end: it was never written, so it goes."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)


def _is_harmless(name: str) -> bool:
    section, _, leaf = name.partition(".")
    return (
        name.startswith(HARMLESS)
        or (section == "train" and leaf in HARMLESS_TRAIN)
        or (section == "model" and leaf in HARMLESS_MODEL)
        or (section == "optimizer" and leaf in HARMLESS_OPTIMIZER)
        or (section == "data" and leaf.rpartition(".")[2] in HARMLESS_DATA)
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
