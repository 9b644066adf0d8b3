"""The agents' clocks, as one scheduler measures them.

The deadline of an order is a time of the agent's clock, because the agent compares it with its own clock. If that clock
were 10 s ahead of the scheduler's, every order with a deadline 5 s from now would be refused as ``expired``. If it were
10 s behind, the agent would carry orders out after the claim. So each answer tells the time of the agent's clock, and
the scheduler adds the difference to the deadlines of later orders. The first order to an agent whose clock is ahead is
refused, and sent again at once.

An agent's clock may be set right later. A deadline by the clock before would then be too late by the old difference,
and the agent could carry an order out after its claim. So each answer also tells the origin of the agent's clock, and
each order repeats it. An agent whose clock was set meanwhile refuses the order, and its answer tells the new time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from msgspec import UNSET, UnsetType

from nodestate.model.orders import Answer, Order
from nodestate.text import count_text

KEPT_S: Final = 60.0
"""Seconds for which the time of an order's sending is kept, to compare it with its answer."""


class AgentClocks:
    """How far the clock of each agent is ahead of this scheduler's clock."""

    def __init__(self) -> None:
        self._ahead_s: dict[str, float] = {}  # by node, in seconds; nodes whose clock agrees are missing
        self._origins: dict[str, float] = {}  # by node: the origin of its clock, as it told it last
        self._sent_at: dict[str, float] = {}  # by order id: when the order was sent, the oldest first

    def ahead_s(self, node: str) -> float:
        """Return how many seconds a node's clock is ahead of this scheduler's; negative if it is behind.

        Returns 0 if the two agree, or if no answer of the node told its time. If the difference is known only within
        bounds, returns the lower one: deadlines are then too early, and never later than intended.
        """
        return self._ahead_s.get(node, 0.0)

    def origin(self, node: str) -> float | UnsetType:
        """Return the ``clock_origin`` that a node's agent told last; ``UNSET`` if it told none."""
        return self._origins.get(node, UNSET)

    def on_sent(self, orders: Iterable[Order], now: float) -> None:
        """Note that orders are being sent. ``now`` is in seconds since 1970."""
        for order in orders:
            if order.reply_to:
                self._sent_at[order.id] = now
        while self._sent_at:
            oldest = next(iter(self._sent_at))
            if self._sent_at[oldest] > now - KEPT_S:
                break
            del self._sent_at[oldest]

    def on_answers(self, answers: Iterable[Answer], now: float) -> None:
        """Compare the agents' clocks with this scheduler's. ``now`` is in seconds since 1970.

        The agent answered between the sending and now, so its clock is ahead by at least ``at - now``, and by at most
        ``at`` less the time of the sending. If 0 is within these bounds, the clocks count as equal.
        """
        for answer in answers:
            sent_at = self._sent_at.pop(answer.id, None)
            if sent_at is None or not answer.at:
                continue
            if answer.clock_origin is not UNSET:
                self._origins[answer.node] = answer.clock_origin
            if answer.at - now <= 0.0 <= answer.at - sent_at:
                self._ahead_s.pop(answer.node, None)
            else:
                self._ahead_s[answer.node] = answer.at - now

    def explain(self, nodes: Collection[str]) -> str:
        """Return a sentence for the failure of a boot that all of these nodes refused as ``expired``."""
        known = [self.ahead_s(node) for node in nodes if self.ahead_s(node)]
        by = f", by {min(known):.1f} to {max(known):.1f} s" if known else ""
        if len(nodes) == 1:
            [node] = nodes
            return (
                f"{node} refused it: expired; the clocks of {node} and of this scheduler differ{by}: "
                "set the time of both machines (NTP)"
            )
        return (
            f"all {count_text(len(nodes), 'node')} that were asked refused it: expired; their clocks are ahead of "
            f"this scheduler's own clock{by}, so that clock is probably wrong: set the time of this machine (NTP)"
        )
