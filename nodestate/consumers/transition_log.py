"""A log of failures that persist: one entry when a failure begins or its reason changes, and one when it ends."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

KEPT_REASONS_COUNT: Final = 8
"""Most reasons of one operation that are known. Reasons take turns if each try uses another server."""


class TransitionLog:
    """Logs when an operation begins to fail, fails for another reason, or works again.

    Repeated failures are not logged: an outage of a minute would otherwise write the same entries at every try.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        """The structlog logger that entries go to."""
        self._reasons: dict[str, deque[str]] = {}
        """By operation that is failing now, the newest different reasons since it began to fail."""

    def failing(self, operation: str, reason: str) -> None:
        """Record that ``operation`` failed.

        Logs an error, unless this or another operation is failing for the same reason already. If a server is down, all
        its partitions fail, and one entry is enough.
        """
        if not any(reason in known for known in self._reasons.values()):
            self._log.error("operation is failing", operation=operation, reason=reason)
        own = self._reasons.setdefault(operation, deque(maxlen=KEPT_REASONS_COUNT))
        if reason not in own:
            own.append(reason)

    def recovered(self, operation: str) -> None:
        """Record that ``operation`` worked. Logs this if the operation was failing before."""
        if self._reasons.pop(operation, None) is not None:
            self._log.info("operation works again", operation=operation)
