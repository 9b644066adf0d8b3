"""Ending what runs until it is told to: Ctrl-C, SIGTERM, or a number of seconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

POLL_S: Final = 0.05


class StopRequest:
    """True once it is time to end. A loop asks it between steps, so that a step is always finished.

    A plain flag and short sleeps: a lock that a signal's action takes may be held by the very code it interrupts.
    """

    def __init__(self, seconds: float | None) -> None:
        self.asked = False
        self._until = None if seconds is None else time.monotonic() + seconds

    def __call__(self) -> bool:
        """True when it is time to end."""
        return self.asked or (self._until is not None and time.monotonic() >= self._until)

    def wait(self, seconds: float) -> bool:
        """Wait, but not beyond the end; True when it is time to end."""
        until = time.monotonic() + seconds
        while not self() and (remaining := until - time.monotonic()) > 0:
            time.sleep(min(POLL_S, remaining))
        return self()


@contextmanager
def stop_on_signals(seconds: float | None = None) -> Iterator[StopRequest]:
    """A ``StopRequest`` that the first SIGINT or SIGTERM sets. The second acts at once: whoever sends it has no patience."""
    stop = StopRequest(seconds)

    def ask(_number: int, _frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, ask)
        except ValueError:  # not in the main thread: signals are somebody else's
            break
    try:
        yield stop
    finally:
        for number, action in before.items():
            signal.signal(number, action)
