"""Before jax connects the processes of a run: each says hello, and who does not is named.

jax's own rendezvous ends a process from C++ when a peer is missing, and does not say which. So process 0 first listens
on the port that its coordinator will have, hears a line of JSON from each other process, and answers all of them with
the roster, or with what is wrong.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HELLO = {"index": int, "host": str, "pid": int, "count": int}
RETRY = 0.2  # seconds between two attempts to reach process 0
LONGEST = 2**20  # bytes of a line: a roster of some thousands


@dataclasses.dataclass(frozen=True)
class Present:
    """A process that said hello."""

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} (host {self.host}, pid {self.pid})"


def roll_call(coordinator: str, index: int, count: int, *, timeout: float, hosts: Sequence[str] = ()) -> list[Present]:
    """All processes in order, once every one of them is there.

    Args:
        coordinator: host:port of process 0.
        timeout: seconds to wait for the last one.
        hosts: of each process where they are known, to name the missing.

    Raises:
        TimeoutError: processes that did not come, by name.
        OSError: the port is taken, or process 0 went away.
        ValueError: two processes with one index, or with different counts.
    """
    own = Present(index, socket.gethostname(), os.getpid())
    if index:
        return _answered(coordinator, own, count, timeout)
    return _called(coordinator, own, count, timeout, hosts)


def address(coordinator: str) -> tuple[str, int]:
    """Host and port. Raises ValueError where there is no port."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {coordinator!r} is not HOST:PORT, such as 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def _called(coordinator: str, own: Present, count: int, timeout: float, hosts: Sequence[str]) -> list[Present]:
    """Process 0: waits for the others and answers them."""
    here, callers, problem = {0: own}, [], None
    deadline, listener = time.monotonic() + timeout, _listener(coordinator, count)
    try:
        while len(here) < count and problem is None:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                problem = TimeoutError(_missing(coordinator, here, count, timeout, hosts))
                break
            hello = _received(caller, 5.0)
            if hello is None or [type(hello.get(key)) for key in HELLO] != list(HELLO.values()):  # somebody else
                caller.close()
                continue
            callers.append(caller)
            other = Present(hello["index"], hello["host"], hello["pid"])
            if hello["count"] != count:
                problem = ValueError(
                    f"{other} is one of {hello['count']} processes, {own} of {count}: give all one number"
                )
            elif not 0 < other.index < count or other.index in here:
                taken = here.get(other.index, own)
                problem = ValueError(f"{other} and {taken} of {count}: each needs an index of its own, from 0 on")
            here[other.index] = other
        listener.close()  # before the answer: the next who knocks at this port wants jax
        found = [here[index] for index in sorted(here)]
        answer = {"roster": [dataclasses.asdict(one) for one in found]}
        if problem is not None:
            answer = {"problem": str(problem), "missing": isinstance(problem, TimeoutError)}
        for caller in callers:
            _send(caller, answer)
        for caller in callers:  # they hang up first, so that the port is free at once
            _received(caller, 2.0)
        if problem is not None:
            raise problem
        return found
    finally:
        for opened in (listener, *callers):
            opened.close()


def _answered(coordinator: str, own: Present, count: int, timeout: float) -> list[Present]:
    """Any other process: says hello until process 0 is there, and waits for its answer."""
    answer, why, deadline = None, "", time.monotonic() + timeout
    while answer is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(address(coordinator), timeout=10.0) as connection:
                _send(connection, {**dataclasses.asdict(own), "count": count})
                # Process 0 may have come later than this one: it waits as long again.
                answer = _received(connection, timeout + 10.0)
            why = "it hung up"
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(RETRY)
    if answer is None:
        raise TimeoutError(
            f"process 0 is missing: {own} got no answer at {coordinator} for {timeout:g} s ({why}). Is process 0 "
            "started, and may this host reach that port?"
        )
    if "problem" in answer:
        raise (TimeoutError if answer["missing"] else ValueError)(answer["problem"])
    return [Present(**one) for one in answer["roster"]]


def _listener(coordinator: str, count: int) -> socket.socket:
    host, port = address(coordinator)
    try:
        if host in LOOPBACK:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=count, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise OSError(
            f"process 0 cannot listen at {coordinator}: {error.strerror or error}. Choose a free port in "
            "TESSERA_COORDINATOR"
        ) from error


def _missing(coordinator: str, here: dict[int, Present], count: int, timeout: float, hosts: Sequence[str]) -> str:
    gone = [f"{index} (host {hosts[index]})" if hosts else str(index) for index in range(count) if index not in here]
    some = gone if len(gone) <= 16 else [*gone[:16], f"and {len(gone) - 16} more"]
    there = ", ".join(str(here[index]) for index in sorted(here)[:16])
    return (
        f"{len(gone)} of {count} processes did not come to {coordinator} within {timeout:g} s; missing: "
        f"{', '.join(some)}; there: {there}. Look at their logs, or wait longer with --start_timeout=SECONDS"
    )


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who hung up is missed at the next meeting
        connection.sendall(json.dumps(message).encode() + b"\n")


def _received(connection: socket.socket, timeout: float) -> dict[str, Any] | None:
    """The message of the next line; None where the other side hangs up, keeps silent or says something else."""
    connection.settimeout(timeout)
    try:
        with connection.makefile("rb") as lines:
            message = json.loads(lines.readline(LONGEST))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
