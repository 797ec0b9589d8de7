"""Files and folders that other processes see whole or not at all, the lock of those who make them, and what is left."""

import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LEFTOVER_AGE = 14 * 24 * 3600  # seconds after which what a killed process left is removed: it may be continued


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling of `final` to fill; it takes that name when the block ends without an error.

    Where another process made `final` first, that one stays and ours is dropped: callers give names that are
    keyed by content. A killed process leaves its hidden `.NAME.*.tmp` folder behind, which nobody reads.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, final: Path) -> None:
    """Gives a whole folder its name, unless another process was first: then that one stays and ours is dropped."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes `content` to disk (fsync), then gives it its name: a reader never sees half of it."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(final: Path, report: Callable[[str], object]) -> Iterator[None]:
    """Held by one process at a time, of those that make `final`; the others wait, and `report` says for whom.

    The lock of a dead process falls by itself (flock on `.NAME.lock`). Whoever gets it looks first whether `final` is
    there by now. Where the file system does not keep locks between hosts, only those of one host wait for each other.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_path(final)
    with _acquired(path, final, report) as lock:
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            if final.exists():
                path.unlink(missing_ok=True)


def _lock_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def _acquired(path: Path, final: Path, report: Callable[[str], object]) -> IO[str]:
    while True:
        lock = open(path, "a+")  # noqa: SIM115 (the caller closes it)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                report(f"data: waiting for {lock.read().strip() or 'another process'}, which is making {final}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_file(lock, path):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()  # its last owner removed the file: a lock on it keeps nobody out


def _is_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes left in `parent` two weeks ago: `.*.tmp`, and `.NAME.building` with its lock.

    What a process still works on, or holds the lock of, is left alone, whatever its age: who may continue a build takes
    its lock first.
    """
    oldest = time.time() - LEFTOVER_AGE
    for entry in parent.glob(".*.tmp"):
        if _is_older(entry, oldest):
            _remove(entry)
    for entry in {path.with_suffix(".lock") for kind in ("building", "lock") for path in parent.glob(f".*.{kind}")}:
        work = entry.with_suffix(".building")
        if not _is_older(work if work.exists() else entry, oldest):
            continue
        with open(entry, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(work)
            _remove(entry)


def _is_older(path: Path, oldest: float) -> bool:
    try:
        return path.stat().st_mtime < oldest
    except FileNotFoundError:  # another process was quicker
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
