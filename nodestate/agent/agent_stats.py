"""Counters of an agent."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class AgentStats:
    """Counters of one agent, since it started."""

    reports: int = 0
    """Reports published."""
    changes: int = 0
    """Changes published."""
    heartbeats: int = 0
    """Heartbeats published."""
    leaves: int = 0
    """Leaves published."""
    resyncs: int = 0
    """Resync requests for reports that concerned at least one of the agent's nodes."""
    censuses: int = 0
    """Census requests answered."""
    sent_again: int = 0
    """Reports and leaves published because an event was lost."""
    admitted: int = 0
    """Orders that built or changed an instance."""
    refused: int = 0
    """Orders refused."""
    ended: int = 0
    """Orders that ended an instance."""
    orders: dict[str, dict[str, int]] = field(default_factory=dict)
    """By kind of the order and by ``done`` or the reason of the refusal: the number of answered orders."""
    bad: int = 0
    """Readings of sources that were refused because a state or patch was invalid."""
    broker_errors: int = 0
    """Failed calls of the broker."""

    def count_order(self, kind: str, result: str) -> None:
        """Count an order that was carried out or refused.

        Args:
            kind: the kind of the order.
            result: ``done``, or the reason of the refusal.
        """
        by_result = self.orders.setdefault(kind, {})
        by_result[result] = by_result.get(result, 0) + 1
