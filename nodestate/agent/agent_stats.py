"""Counters of an agent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class AgentStats:
    """Counters of one agent, since it started."""

    reports: int = 0
    """Reports published."""
    changes: int = 0
    """Changes published."""
    heartbeats: int = 0
    """Heartbeats published."""
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
    bad: int = 0
    """Readings of sources that were refused because a state or patch was invalid."""
    broker_errors: int = 0
    """Failed calls of the broker."""
