"""Ends a process that lives but gets no further: shows where each thread stands, then asks to be started again."""

import faulthandler
import os
import signal
import sys
import threading
import time

from train.goodput import Clock
from train.peers import START_AGAIN, peers

BACKSTOP = 60.0  # seconds, at most, until the kernel ends a process whose Python does nothing any more
OTHERS = 5.0  # seconds in which the other processes, which wait for the one that is stuck, show their threads too


class Watchdog:
    """Within this context something must happen all `seconds`: a phase of `clock` that ends, or its `tick`.

    Else a thread writes the stack of every thread to standard error and ends the process with 75; the other processes
    of the run are told why. Where even that thread stands still, as when C code hangs and keeps the interpreter's
    lock, an alarm clock of the kernel does the same by SIGALRM, unless the program uses that signal itself. Compiling
    is not watched, however long it takes.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        """`seconds`: 0 watches nothing."""
        self._seconds, self._clock, self._over = seconds, clock, threading.Event()
        self._alarm = False

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._alarm = signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
            if self._alarm:  # written in C, needs no lock; after it the signal ends the process
                faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            self._over.set()
            self._thread.join()
            if self._alarm:
                signal.setitimer(signal.ITIMER_REAL, 0)
                faulthandler.unregister(signal.SIGALRM)

    def _watch(self) -> None:
        """The thread. It winds up the alarm clock again and again, so this rings when the thread does not."""
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if self._alarm:
                signal.setitimer(signal.ITIMER_REAL, self._seconds + min(BACKSTOP, self._seconds))
            if (idle := self._clock.idle()) > self._seconds:
                if self._alarm:  # what follows may hang as well
                    signal.setitimer(signal.ITIMER_REAL, BACKSTOP)
                self._end(idle)

    def _end(self, idle: float) -> None:
        why = f"no step, evaluation batch or save for {idle:.0f} s (train.stuck_after is {self._seconds:g})"
        print(f"tessera: {why}: this is what each thread does\n", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2, all_threads=True)
        if peers().several:
            time.sleep(OTHERS)
            peers().leave(START_AGAIN, why)
        os._exit(START_AGAIN)
