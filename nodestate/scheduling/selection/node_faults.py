"""Node faults: nodes whose agent was gone or failed rank last for a while, so that boots do not ask them first.

Dead and broken nodes often look best, because they have no load. If a scheduler did not remember their refusals, each
boot would ask the same nodes first. So a fault lowers the node's rank, below all other nodes at first, and then less
and less::

    no fault --the agent was gone, failed or did not answer--> ranks last --each HALF_LIFE_S--> half the loss of rank
    --FORGET_S--> no fault

Only the rank is lowered: if no other node passes the filters, the node is asked again. Schedulers share their faults in
the claim records, which they write after a refusal in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from nodestate.ports import Clock

HALF_LIFE_S: Final = 30.0
"""Seconds after which half of a node's loss of rank is left."""
FORGET_S: Final = 8 * HALF_LIFE_S
"""Seconds after which a fault is forgotten."""
FIRST_LOSS: Final = 2.0
"""The loss of rank at the time of a fault, as a multiple of the range of all total weights. The node ranks below all
others as long as the loss is at least 1.
"""


class NodeFault(NamedTuple):
    """The last fault of one node."""

    reason: str
    """The reason of the refusal, such as ``no-agent``."""
    at: float
    """The time of the fault in monotonic seconds."""


class RecentFault(NamedTuple):
    """One entry of an explanation: a node that ranks lower because of a recent fault."""

    node: str
    """The node's name."""
    reason: str
    """The reason of its last refusal."""
    age_s: float
    """Seconds since that refusal."""


class NodeFaults:
    """The recent faults of nodes, as one scheduler knows them.

    Args:
        clock: The clock that measures the age of faults.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        """The clock that measures the age of faults."""
        self._faults: dict[str, NodeFault] = {}
        """The last fault of each node."""

    def observe(self, node: str, reason: str, age_s: float = 0.0) -> None:
        """Note a fault of a node, unless a later one is known.

        Args:
            node: The node's name.
            reason: The reason of its refusal.
            age_s: Seconds since the refusal.
        """
        fault = NodeFault(reason, self._clock.monotonic() - max(0.0, age_s))
        known = self._faults.get(node)
        if age_s < FORGET_S and (known is None or known.at < fault.at):
            self._faults[node] = fault

    def losses(self, rows: Mapping[str, int]) -> dict[int, float]:
        """Return the loss of rank of each row with a recent fault, as a multiple of the range of all total weights.

        Args:
            rows: The row of each node.
        """
        if not self._faults:
            return {}
        self._forget()
        now = self._clock.monotonic()
        return {
            rows[node]: FIRST_LOSS * 0.5 ** ((now - fault.at) / HALF_LIFE_S)
            for node, fault in self._faults.items()
            if node in rows
        }

    def recent(self) -> tuple[RecentFault, ...]:
        """Return the nodes whose rank is lowered, the latest fault first."""
        self._forget()
        now = self._clock.monotonic()
        found = [RecentFault(node, fault.reason, now - fault.at) for node, fault in self._faults.items()]
        return tuple(sorted(found, key=lambda fault: (fault.age_s, fault.node)))

    def _forget(self) -> None:
        """Forget the faults that are older than ``FORGET_S``."""
        least = self._clock.monotonic() - FORGET_S
        if any(fault.at <= least for fault in self._faults.values()):
            self._faults = {node: fault for node, fault in self._faults.items() if fault.at > least}
