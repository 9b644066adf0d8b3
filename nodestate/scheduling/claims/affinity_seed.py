"""The affinity seed: the node for the first member of an affinity group, on which all schedulers agree.

Without a seed, two schedulers could place the first two members of a group on different nodes. So each group
without members gets one item in a memcached server, which is called the group's seed and names a node::

    no seed --claim_or_get(node A)--> A: every scheduler that asks from now on gets A, and places its member there
    A --replace(node B): A cannot take a member, and no member is there--> B
    any node --the seed's time to live ends--> no seed

The seed is needed only until schedulers see a member of the group, either claimed or reported by an agent. From then on
they follow that member and ignore the seed.

One race remains: a first scheduler gets A and claims there, while a second scheduler replaces A by B. So the first
scheduler reads the seed again after its claim is written, and the second one reads the claims on A again after it has
replaced the seed. At least one of the two then sees the other's change, and chooses again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from nodestate.errors import StoreError
from nodestate.model import NODE_NAME_PATTERN, partitioning
from nodestate.ports import ClaimStore, Put, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.damage import DAMAGE

_NODE_NAME: Final = re.compile(NODE_NAME_PATTERN.encode()).fullmatch


class SeedNode(NamedTuple):
    """The node for the first member of a group."""

    node: str
    """The node's name."""
    cas: int
    """The ``cas`` id of the group's item in memcached; 0 if it is unknown, so that ``replace`` fails."""


class AffinitySeed:
    """The seeds of all affinity groups of a cell: for each group, an item that names the node of its first member.

    A static map assigns each group to one server, which stores the group's seed. With two copies of claim records, the
    next server stores it while that one does not answer. If no server answers, the scheduler goes on without a seed. It
    then places a member with the others only if its view or the claims that it has read show them already.

    Args:
        cell: The cell's name.
        servers: One connection to each memcached server, in the same order for all schedulers of the cell.
        copies: The number of copies of claim records, 1 or 2.
    """

    def __init__(self, cell: str, servers: Sequence[ClaimStore], copies: int = 1) -> None:
        self._cell = cell
        """The name of the cell, which is part of each item's key."""
        self._servers = servers
        """One connection to each server; a hash of the group's name is the index of its server."""
        self._copies = copies
        """The number of servers that are asked in turn until one answers."""

    def claim_or_get(self, group: str, node: str, ttl_s: float) -> SeedNode:
        """Write ``node`` as the seed of a group, unless the group has a seed already.

        Args:
            group: The group's name.
            node: The node that this scheduler chose for the first member.
            ttl_s: Seconds after which the seed is removed.

        Returns the group's seed: ``node``, or the node that another scheduler wrote before. A seed that is no name of a
        node is replaced. If the server does not answer, the result is ``node`` as well, although nothing may be stored.
        """
        key, server = self._location(group)
        try:
            [written] = server.write([Write(Put.ADD, key, node.encode(), ttl_s=math.ceil(ttl_s))])
            if written.status is WriteStatus.CONFLICT:
                there = server.fetch([key]).get(key)
                if there is None:
                    return SeedNode(node, 0)
                if _NODE_NAME(there.value):
                    return SeedNode(there.value.decode(), there.cas)
                DAMAGE.report(key, f"no name of a node: {there.value[:24]!r}")
                [written] = server.write([Write(Put.CAS, key, node.encode(), there.cas, math.ceil(ttl_s))])
            return SeedNode(node, written.cas)
        except StoreError:
            return SeedNode(node, 0)

    def replace(self, group: str, there: SeedNode, node: str, ttl_s: float) -> bool:
        """Replace a group's seed, because its node cannot take the member.

        Args:
            group: The group's name.
            there: The seed that ``claim_or_get`` returned.
            node: The node that is to become the seed.
            ttl_s: Seconds after which the new seed is removed.

        Returns True if ``node`` is the seed now. Returns False if another scheduler changed the seed after it was read,
        or if the server did not answer. The caller must not place the member by this seed then, and chooses again.
        """
        key, server = self._location(group)
        try:
            [written] = server.write([Write(Put.CAS, key, node.encode(), there.cas, math.ceil(ttl_s))])
        except StoreError:
            return False
        return written.status is WriteStatus.STORED

    def _location(self, group: str) -> tuple[str, ClaimStore]:
        """Return the key of a group's item, and the server that stores the item."""
        home, count = partitioning.partition_of(group, len(self._servers)), len(self._servers)
        for copy in range(self._copies - 1):
            with suppress(StoreError):
                self._servers[home + copy].server_time()
                return keys.anchor(self._cell, group), self._servers[home + copy]
        return keys.anchor(self._cell, group), self._servers[(home + self._copies - 1) % count]
