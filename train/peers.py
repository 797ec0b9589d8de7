"""The other processes of a run: barriers, agreement between processes, and reports of which process is gone.

Everything goes through the key-value store of jax's coordinator (process 0), not through the devices, so it works while
these hang. jax has no public name for that store; Orbax takes it from the same place. With a single process everything
here returns at once.
"""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

DAY = 86400.0
GRACE = 300.0  # seconds that a process whose evaluation failed waits for the others to finish theirs
LAST_WORDS = 10.0  # seconds that process 0, which holds the store, waits until the others have read why it ends
START_AGAIN = 75  # exit code: the same command may succeed if started again


class Stopped(BaseException):
    """A request to end outside the loop of steps. Not an `Exception`, so that `except Exception` does not catch it."""


class Peers:
    """The processes of this run, this one included.

    Attributes:
        names: what to call each: index, host and pid. index: of this process. first: whether it is the one that writes.
    """

    def __init__(self, names: Sequence[str] = ("this process",), index: int = 0, heartbeat: float = 60.0) -> None:
        """`heartbeat`: seconds after which jax ends all processes where one is silent."""
        self.names, self.index, self.first, self.several = list(names), index, index == 0, len(names) > 1
        self._numbers, self._step, self._since, self._over = itertools.count(), -1, time.monotonic(), threading.Event()
        # jax ends all between half a heartbeat and a whole one after a process froze: be first with its name.
        self._patience, self._pause = 0.4 * heartbeat, min(max(heartbeat / 20, 0.5), 2.0)
        self._answered = self._since
        self._seen: dict[int, tuple[str, float]] = {}  # the last beat of each, and when it was new
        if self.several:
            from jax._src import distributed

            self._store: Any = distributed.global_state.client
            for work in (self._beat, self._report):
                threading.Thread(target=work, daemon=True).start()

    def gather(self, what: str, value: str = "", timeout: float = DAY) -> list[str]:
        """The value of every process, once all have reached this point of the program.

        Raises:
            TimeoutError: names the processes that did not arrive within `timeout` seconds.
        """
        if not self.several:
            return [value]
        number = next(self._numbers)
        place, before = f"tessera/place/{number}", f"tessera/place/{number - 1}/{self.index}"
        self._store.key_value_set(f"{place}/{self.index}", value)
        try:
            self._store.wait_at_barrier(place, round(1000 * timeout))
        except RuntimeError as error:
            missing = ", ".join(name for i, name in enumerate(self.names) if i not in self._values(place))
            raise TimeoutError(f"{what}: {missing} did not come within {timeout:g} s") from error
        if number:  # all that arrived here have read the values of the previous call
            self._store.key_value_delete(before)
        values = self._values(place)
        return [values[i] for i in range(len(self.names))]

    def same(self, what: str, value: str) -> None:
        """Raises ValueError, in all processes, if one has another value than process 0."""
        values = self.gather(what, value)
        for name, other in zip(self.names, values, strict=True):
            if other != values[0]:
                raise ValueError(f"{what} is {values[0]} in {self.names[0]}, and {other} in {name}: it must be one")

    @contextlib.contextmanager
    def first_alone(self, what: str) -> Iterator[None]:
        """A block that process 0 runs first and the others after it: they find its files, if they share a disk."""
        if not self.first:
            self.gather(what)
        yield
        if self.first:
            self.gather(what)

    def alike(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, such that an error in one process is an error in all: they all continue or all fail.

        If one fails while the others wait for it inside `call`, all processes end.
        """

        def together(*args: Any) -> Any:
            result, own = None, None
            try:
                result = call(*args)
            except Exception as error:
                if not self.several:
                    raise
                own = error
            try:
                problems = self.gather(what, _described(own) if own else "", GRACE if own else DAY)
            except TimeoutError:
                self.leave(1, f"{what} failed here, and the others wait for it: {_described(own)}")
            if own:
                raise own
            for name, problem in zip(self.names, problems, strict=True):
                if problem:
                    raise RuntimeError(f"{what} failed in {name}: {problem}")
            return result

        return together

    def reach(self, step: int) -> None:
        """Notes that `step` was dispatched, so that a process that holds up the others can be named."""
        self._step, self._since = step, time.monotonic()

    def leave(self, code: int, why: str) -> None:
        """Ends this process with `code` and tells the others why; they end with the same code. Alone: returns."""
        if not self.several:
            return
        self._over.set()
        try:
            self._store.key_value_set(f"tessera/failed/{self.index}", f"{code} {why}", allow_overwrite=True)
        finally:
            self._part(code)

    def lost(self, why: str) -> None:
        """As `leave`, for a computation that broke: first checks whether a peer is gone, and reports that instead."""
        if not self.several:
            return
        for _ in range(3):  # long enough to see who is silent; if a peer gave a reason, `_beat` ends this process
            time.sleep(self._pause + 0.1)
            self._look()
        silent = [f"{self.names[i]} for {age:.0f} s" for i, age in self._ages().items() if age > 2 * self._pause]
        if silent:
            print(f"tessera: no sign of life of {', '.join(silent)}", file=sys.stderr)
        self.leave(START_AGAIN if silent else 1, why)

    def finish(self) -> None:
        """Waits for the others at the end of the program and disconnects."""
        if self.several:
            import jax

            self.gather("the end")
            self._over.set()
            jax.distributed.shutdown()

    def _values(self, place: str) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): value for key, value in self._store.key_value_dir_get(place)}

    def _beat(self) -> None:
        """A thread: shows that this process lives, and ends it where another has failed."""
        for beat in itertools.count():
            with contextlib.suppress(RuntimeError):  # jax ends processes whose coordinator is gone
                self._store.key_value_set(f"tessera/beat/{self.index}", f"{beat} {self._step}", allow_overwrite=True)
                self._follow()
                # Many processes make this much to read, so only process 0 and processes that wait do it.
                if self.first or time.monotonic() - self._since > self._patience / 2:
                    self._look()
                self._answered = time.monotonic()
            if self._over.wait(self._pause):
                return

    def _follow(self) -> None:
        """Ends this process where another said that it failed."""
        for index, said in self._values("tessera/failed").items():
            if index != self.index and not self._over.is_set():
                code, _, why = said.partition(" ")
                print(f"tessera: {self.names[index]} has ended, so this one ends: {why}", file=sys.stderr)
                self._part(int(code))

    def _part(self, code: int) -> None:
        """Ends this process at once; process 0 last, because jax aborts the others when the store is gone."""
        deadline = time.monotonic() + LAST_WORDS
        try:
            if not self.first:
                self._store.key_value_set(f"tessera/left/{self.index}", "", allow_overwrite=True)
                return
            while len(self._values("tessera/left")) < len(self.names) - 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(0.5)  # the others need a moment to exit after they say that they leave
        finally:
            exit_now(code)

    def _look(self) -> None:
        for index, said in self._values("tessera/beat").items():
            if said != self._seen.get(index, ("", 0.0))[0]:
                self._seen[index] = (said, time.monotonic())

    def _ages(self) -> dict[int, float]:
        """Seconds since the last new beat of the other processes."""
        return {i: time.monotonic() - at for i, (_, at) in self._seen.items() if i != self.index}

    def _report(self) -> None:
        """A thread: reports whom this process waits for, at growing intervals; jax ends all if one stays silent."""
        told, silence = self._patience, self._patience
        while not self._over.wait(self._pause):
            unanswered = time.monotonic() - self._answered
            if unanswered > silence:
                print(f"tessera: {self.names[0]} gave no answer for {unanswered:.0f} s", file=sys.stderr, flush=True)
                silence *= 2
            waited, step = time.monotonic() - self._since, self._step
            told = told if waited > self._patience else self._patience
            if step >= 0 and waited > told and (behind := self._behind(step)):
                where = f"waiting for {waited:.0f} s at step {step}"
                print(f"tessera: {where}: {'; '.join(behind)}", file=sys.stderr, flush=True)
                told = 2 * waited

    def _behind(self, step: int) -> list[str]:
        """Who has not reached the step, or is silent: a process can freeze within it."""
        found = []
        for index, age in self._ages().items():
            at, silent = int(self._seen[index][0].split()[1]), age > 3 * self._pause
            if at < step or silent:
                place = f"last at step {at}" if at >= 0 else "before the first step"
                life = f"no sign of life for {age:.0f} s" if silent else "alive"
                found.append(f"{self.names[index]}: {place}, {life}")
        return found


_peers = Peers()


def begin(names: Sequence[str], index: int, heartbeat: float) -> None:
    """Makes this process one of several, once jax is connected."""
    global _peers
    _peers = Peers(names, index, heartbeat)


def peers() -> Peers:
    """The processes of this run; a single one unless `begin` was called."""
    return _peers


def _described(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def exit_now(code: int) -> None:
    """Exits at once: an orderly exit waits for threads that save, and for processes that may never arrive."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
