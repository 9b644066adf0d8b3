"""When to try again, after the broker was lost."""

from __future__ import annotations

import random
from typing import Final

from nodestate.ports import Clock

FIRST_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 10.0
MAX_DOUBLINGS_COUNT: Final = 16
assert FIRST_PAUSE_S * 2**MAX_DOUBLINGS_COUNT > MAX_PAUSE_S


class Backoff:
    """Exponential pauses with jitter, so that a fleet does not come back all at once.

    ready --failed--> pausing (up to 0.2, 0.4, 0.8 … 10 s) --time--> ready     any --worked--> ready, from 0.2 s again

    ``longest_s`` is the longest pause, if it is less than 10 s: half of ``heartbeat_s``, so that an owner that began
    with nothing hears of every living node within its ``settle_s``, also when the broker has just come back.
    """

    def __init__(self, clock: Clock, rng: random.Random, longest_s: float = MAX_PAUSE_S) -> None:
        self._clock = clock
        self._rng = rng
        self._longest_s = min(longest_s, MAX_PAUSE_S)
        self._failures = 0
        self._ready_at = clock.monotonic()

    @property
    def ready(self) -> bool:
        """True if it is time to try."""
        return self._clock.monotonic() >= self._ready_at

    @property
    def wait_s(self) -> float:
        """Seconds until it is time to try; 0 if it is."""
        return max(0.0, self._ready_at - self._clock.monotonic())

    def failed(self) -> None:
        """A try failed: pause, longer than after the last."""
        pause_s = min(self._longest_s, FIRST_PAUSE_S * 2**self._failures)
        self._failures = min(self._failures + 1, MAX_DOUBLINGS_COUNT)
        self._ready_at = self._clock.monotonic() + self._rng.uniform(pause_s / 2, pause_s)

    def worked(self) -> None:
        """A try worked."""
        self._failures = 0
