"""A clock that a test owns: time passes only when the test says so, or when code sleeps on it."""

from __future__ import annotations


class ManualClock:
    """A clock that the test owns: time passes when told so, and when somebody sleeps.

    ``monotonic`` starts at 1,000 s, so that ages before the start are seen as what they are.
    """

    def __init__(self, *, time: float = 1_763_787_600.0) -> None:
        self._passed = 0.0
        self._time = time

    def monotonic(self) -> float:
        """Seconds; never goes back."""
        return 1_000.0 + self._passed

    def time(self) -> float:
        """Seconds since 1970."""
        return self._time + self._passed

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0, "time never goes back"
        self._passed += seconds

    def step_time(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP does."""
        self._time += seconds
