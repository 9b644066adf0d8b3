"""A log of failures that persist: one entry when a failure begins or changes, one when it ends."""

from __future__ import annotations

from typing import Any


class TransitionLog:
    """Logs when an operation starts to fail, fails for another reason, or works again.

    Without it, an outage of a minute would write the same line at every retry.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        """The structlog logger that entries go to."""
        self._reasons: dict[str, str] = {}
        """The reason last reported for each operation that is failing now."""

    def failing(self, operation: str, reason: str) -> None:
        """Record that ``operation`` failed. Logs an error unless some operation is failing for the same reason already:
        a server that is down fails all its partitions, and one entry is enough.
        """
        if reason not in self._reasons.values():
            self._log.error("operation is failing", operation=operation, reason=reason)
        self._reasons[operation] = reason

    def recovered(self, operation: str) -> None:
        """Record that ``operation`` worked. Logs it if the operation was failing before."""
        if self._reasons.pop(operation, None) is not None:
            self._log.info("operation works again", operation=operation)
