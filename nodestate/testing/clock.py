"""A clock that a test controls."""

from __future__ import annotations


class ManualClock:
    """A ``ports.Clock`` whose time passes only in ``advance``, and in ``sleep``, which returns at once.

    ``time`` is the wall clock at the start, in seconds since 1970. ``monotonic`` starts at 1,000 s, so that a moment
    before the start is still a positive number.

    Fault: ``step_time`` changes the wall clock alone::

        clock = ManualClock()
        clock.advance(2.5)
        assert clock.monotonic() == 1_002.5
        clock.step_time(-3600.0)   # the operator sets the clock back; monotonic time goes on
    """

    def __init__(self, *, time: float = 1_763_787_600.0) -> None:
        self._passed = 0.0
        """Seconds since the start."""
        self._time = time
        """The wall clock at the start, with all steps added."""

    def monotonic(self) -> float:
        """Monotonic seconds, from 1,000 at the start."""
        return 1_000.0 + self._passed

    def time(self) -> float:
        """Seconds since 1970."""
        return self._time + self._passed

    def sleep(self, seconds: float) -> None:
        """Advance the clock and return at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        assert seconds >= 0, "time never goes back"
        self._passed += seconds

    def step_time(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP does."""
        self._time += seconds
