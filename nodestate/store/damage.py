"""Damaged values: stored bytes whose checksum, types or ranges are wrong, or that contradict other stored values.

A damaged value counts as a missing one, so the ways in which lost values are written again heal it. It is logged once,
with its key and the reason: a store that damages one value may damage others, and a value with a right checksum and a
wrong content was written by a faulty or hostile program.
"""

from __future__ import annotations

import threading
from typing import Final

LOGGED_COUNT: Final = 1_000
"""Number of damaged values that one process logs at most. The counter goes on."""


class DamageLog:
    """The damaged values that this process has read. Safe for several threads."""

    def __init__(self) -> None:
        self.count = 0
        """Number of times that a damaged value was read."""
        self._logged: dict[tuple[str, str], None] = {}
        """The keys and reasons that were logged, in the order in which they were read."""
        self._lock = threading.Lock()
        """Held while one of the above changes."""

    @property
    def reasons(self) -> dict[str, str]:
        """By key, why its value is damaged; the last reason, if it was read several times."""
        with self._lock:
            return dict(iter(self._logged))

    def report(self, key: str, reason: str) -> None:
        """Count a damaged value, and log it unless it was logged before with the same reason."""
        with self._lock:
            self.count += 1
            if (key, reason) in self._logged or len(self._logged) >= LOGGED_COUNT:
                return
            self._logged[key, reason] = None
        import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate`

        structlog.get_logger("nodestate.store").warning(
            "a stored value is damaged; it counts as missing", key=key, reason=reason
        )


DAMAGE: Final = DamageLog()
"""The damaged values that this process has read."""
