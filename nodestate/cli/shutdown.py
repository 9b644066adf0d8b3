"""How a command that runs until it is stopped ends: by Ctrl-C, by SIGTERM or after a number of seconds.

The loop of such a command asks between two steps whether to stop. So this is also the place where a service manager is
told that the loop runs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nodestate.cli.service_manager import ServiceManager

POLL_S: Final = 0.05


class StopRequest:
    """Request to stop that a loop checks between two steps, so that a step is always finished.

    running --SIGINT, SIGTERM, seconds are over--> stop requested

    It is a plain flag, and ``wait`` sleeps in short intervals. A ``threading.Event`` has a lock: the signal handler
    would wait for ever if it interrupted code that holds the lock.
    """

    def __init__(self, seconds: float | None, manager: ServiceManager) -> None:
        # True after the first signal.
        self.requested = False
        # Whether the loop has begun its first step.
        self._has_begun = False
        # Monotonic time at which the last step ended; None before the first one has.
        self._stepped_at: float | None = None
        # Learns that the loop runs.
        self._manager = manager
        # Time on the monotonic clock at which the loop ends by itself; None: never.
        self._until = None if seconds is None else time.monotonic() + seconds

    def __call__(self) -> bool:
        """Return True if the loop must end. Called before the first step and after each one."""
        if self._has_begun:
            self._stepped_at = time.monotonic()
            self._manager.step_done()
        self._has_begun = True
        return self.requested or (self._until is not None and time.monotonic() >= self._until)

    def step_age(self) -> float | None:
        """Return the seconds since the loop finished a step; None before the end of the first one."""
        return None if self._stepped_at is None else time.monotonic() - self._stepped_at

    def wait(self, seconds: float) -> bool:
        """Wait ``seconds``, or less if the loop must end before. Returns True if it must end."""
        until = time.monotonic() + seconds
        while not self() and (remaining := until - time.monotonic()) > 0:
            time.sleep(min(POLL_S, remaining))
        return self()


@contextmanager
def stop_on_signals(seconds: float | None = None) -> Iterator[StopRequest]:
    """Give a ``StopRequest`` that the first SIGINT or SIGTERM sets. A second signal raises KeyboardInterrupt at once.

    Args:
        seconds: The request is set after this many seconds as well; None: by signals only.
    """
    manager = ServiceManager()
    stop = StopRequest(seconds, manager)

    def request_stop(_number: int, _frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, request_stop)
        except ValueError:  # Python allows signal handlers in the main thread only
            break
    try:
        yield stop
    finally:
        manager.stopping()
        for number, action in before.items():
            signal.signal(number, action)
