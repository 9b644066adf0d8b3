"""The affinity seed: the node on which an affinity group without members begins, agreed on by all schedulers.

Without it, two schedulers could place the first member on two nodes. For each such group there is one item in a
memcached server, called the group's seed::

    no seed --claim_or_get(node A)--> A: every scheduler that asks from now on is told A, and places its member there
    A --replace(node B): A cannot take a member, and no member is there--> B
    any node --the seed's time to live ends--> no seed

A member that an agent reports, or that is claimed, overrides the seed, which only bridges the time until that member is
seen. Two schedulers could still place members on A and on B at the same time, if one replaces A by B while the other
follows to A. So the scheduler that followed to A reads the seed again after its claim is written, and the scheduler
that moved the seed to B reads the claims on A again. At least one of the two then sees the other, and drops
its claim.
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
    """The node on which a group begins, with the ``cas`` id of the group's item; 0 if the item's id is unknown."""

    node: str
    cas: int


class AffinitySeed:
    """The seeds of all affinity groups of a cell. The item of a group lives on one server by a static map. If that
    server does not answer, the scheduler goes on without a seed, and observes the policy as far as its view shows.
    """

    def __init__(self, cell: str, servers: Sequence[ClaimStore]) -> None:
        self._cell = cell
        """The name of the cell, which is part of each item's key."""
        self._servers = servers
        """One connection to each server, in the order that maps groups to them."""

    def claim_or_get(self, group: str, node: str, ttl_s: float) -> SeedNode:
        """Begin a group on ``node``, unless another scheduler has begun it already. Returns the node that it begins on.

        Args:
            group: The group's name.
            node: The node that this scheduler chose for the first member.
            ttl_s: Seconds after which the seed is removed.
        """
        key, server = self._location(group)
        try:
            [written] = server.write([Write(Put.ADD, key, node.encode(), ttl_s=math.ceil(ttl_s))])
            if written.status is WriteStatus.CONFLICT:
                there = server.fetch([key]).get(key)
                return SeedNode(there.value.decode(), there.cas) if there is not None else SeedNode(node, 0)
            return SeedNode(node, written.cas)
        except StoreError:
            return SeedNode(node, 0)

    def replace(self, group: str, there: SeedNode, node: str, ttl_s: float) -> bool:
        """Begin a group on ``node`` instead of the node ``there``. Returns False if the seed changed since it was read,
        or if its server does not answer.
        """
        key, server = self._location(group)
        try:
            [written] = server.write([Write(Put.CAS, key, node.encode(), there.cas, math.ceil(ttl_s))])
        except StoreError:
            return False
        return written.status is WriteStatus.STORED

    def _location(self, group: str) -> tuple[str, ClaimStore]:
        """The key of a group's item, and its server."""
        return keys.anchor(self._cell, group), self._servers[partitioning.partition_of(group, len(self._servers))]
