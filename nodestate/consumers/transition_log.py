"""Troubles that last, each told once."""

from __future__ import annotations

from typing import Any


class TransitionLog:
    """What ails one consumer. A trouble is logged when it begins or changes, and when it is over."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._told: dict[str, str] = {}

    def failing(self, what: str, why: str) -> None:
        """What ails several partitions alike is logged for the first of them."""
        if why not in self._told.values():
            self._log.error("trouble", what=what, why=why)
        self._told[what] = why

    def recovered(self, what: str) -> None:
        """Nothing ails this, or not any more."""
        if self._told.pop(what, None) is not None:
            self._log.info("trouble is over", what=what)
