"""Pauses between tries: how long to wait after a failure before trying again."""

from __future__ import annotations

import random
from typing import Final

from nodestate.ports.clock import Clock

FIRST_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 10.0
assert FIRST_PAUSE_S < MAX_PAUSE_S


def next_pause_s(last_s: float, first_s: float, longest_s: float) -> float:
    """The pause after one more failure, in seconds.

    Args:
        last_s: the pause after the failure before; 0 if there was none.
        first_s: the pause after the first failure.
        longest_s: the pause doubles up to this.
    """
    return min(2 * last_s, longest_s) if last_s else first_s


class DoublingPause:
    """A pause that doubles with each failure, from ``first_s`` up to ``longest_s`` seconds."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        assert first_s > 0, "a pause of 0 s would not grow"
        # The pause after the first failure, in seconds.
        self._first_s = first_s
        # The longest pause, in seconds.
        self._longest_s = longest_s
        # The pause after the last failure, in seconds; 0 after a success.
        self._last_s = 0.0

    def lengthen(self) -> float:
        """Record a failure. Returns the seconds to pause before the next try."""
        self._last_s = next_pause_s(self._last_s, self._first_s, self._longest_s)
        return self._last_s

    def reset(self) -> None:
        """Record a success: the next failure is followed by the first pause again."""
        self._last_s = 0.0


class Backoff:
    """Exponential pauses with jitter, so that the agents of a fleet do not all reconnect at the same moment::

        ready --failed--> pausing (up to 0.2, 0.4, 0.8 … 10 s) --time--> ready
        any --worked--> ready, from 0.2 s again

    Args:
        clock: measures the pauses.
        rng: chooses each pause between half of its length and its length.
        longest_s: the longest pause in seconds, if less than 10. Agents give half of ``heartbeat_s``: an owner that
            starts without stored nodes then hears from every living node within its ``settle_s``, even if the broker
            has just come back.
    """

    def __init__(self, clock: Clock, rng: random.Random, longest_s: float = MAX_PAUSE_S) -> None:
        # Measures the pauses.
        self._clock = clock
        # Chooses the jitter.
        self._rng = rng
        longest_s = min(longest_s, MAX_PAUSE_S)
        # Length of the pauses before jitter.
        self._pause = DoublingPause(min(FIRST_PAUSE_S, longest_s), longest_s)
        # Monotonic time of the next try.
        self._ready_at = clock.monotonic()
        # Text of the last failure; empty after a success.
        self.cause = ""

    @property
    def ready(self) -> bool:
        """True if it is time to try."""
        return self._clock.monotonic() >= self._ready_at

    @property
    def wait_s(self) -> float:
        """Seconds until it is time to try; 0 if it is."""
        return max(0.0, self._ready_at - self._clock.monotonic())

    def failed(self, cause: str) -> None:
        """Record a failed try, and its cause: the next pause is longer than the last."""
        self.cause = cause
        pause_s = self._pause.lengthen()
        self._ready_at = self._clock.monotonic() + self._rng.uniform(pause_s / 2, pause_s)

    def worked(self) -> None:
        """Record a successful try: the next failure is followed by the first pause again."""
        self.cause = ""
        self._pause.reset()
