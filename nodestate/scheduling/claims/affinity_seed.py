"""AffinitySeed: where an affinity group that has no members yet begins, so that two schedulers do not begin it on two nodes.

    no anchor --agree--> on A: who comes second follows to A
    on A, which can't take it, and nobody is there --move--> on B        its time is over --> no anchor

Members that an agent reports, or that are claimed, count for more: an anchor only bridges the time until they are seen. Who
followed to A looks again after its claim is written, and who moved to B looks once more at A: so of two that do both at
the same time at least one sees the other, and steps back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nodestate.errors import StoreError
from nodestate.model import partitioning
from nodestate.ports import ClaimStore, Put, Write, WriteStatus
from nodestate.store import keys


class SeedNode(NamedTuple):
    """Where a group begins; ``cas`` of the item that says so."""

    node: str
    cas: int


class AffinitySeed:
    """One item for each group, on a server by a static map. A server that does not answer has no say: then the policy
    holds as far as this scheduler sees.
    """

    def __init__(self, cell: str, servers: Sequence[ClaimStore]) -> None:
        self._cell = cell
        self._servers = servers

    def claim_or_get(self, group: str, node: str, seconds: float) -> SeedNode:
        """The node that the group begins on: ``node``, or what another scheduler said before."""
        key, server = self._place(group)
        try:
            [written] = server.write([Write(Put.ADD, key, node.encode(), ttl_s=math.ceil(seconds))])
            if written.status is WriteStatus.CONFLICT:
                there = server.fetch([key]).get(key)
                return SeedNode(there.value.decode(), there.cas) if there is not None else SeedNode(node, 0)
            return SeedNode(node, written.cas)
        except StoreError:
            return SeedNode(node, 0)

    def replace(self, group: str, there: SeedNode, node: str, seconds: float) -> bool:
        """Begin the group on ``node`` instead; False where somebody else said something meanwhile."""
        key, server = self._place(group)
        try:
            [written] = server.write([Write(Put.CAS, key, node.encode(), there.cas, math.ceil(seconds))])
        except StoreError:
            return False
        return written.status is WriteStatus.STORED

    def _place(self, group: str) -> tuple[str, ClaimStore]:
        return keys.anchor(self._cell, group), self._servers[partitioning.partition_of(group, len(self._servers))]
