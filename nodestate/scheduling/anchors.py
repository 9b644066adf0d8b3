"""Anchors: where an affinity group that has no members yet begins, so that two schedulers do not begin it on two nodes.

    no anchor --add--> the group begins there; who comes second follows --its time is over--> no anchor

Members that an agent reports, or that are claimed, count for more: an anchor only bridges the time until they are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nodestate import keys
from nodestate.errors import StoreError
from nodestate.ports import ClaimStore, Put, Status, Write


class Anchors:
    """One item for each group, on a server by a static map."""

    def __init__(self, cell: str, servers: Sequence[ClaimStore]) -> None:
        self._cell = cell
        self._servers = servers

    def agree(self, group: str, node: str, seconds: float) -> str:
        """The node that the group begins on: ``node``, or what another scheduler said before. A server that does not answer
        has no say: then the policy holds as far as this scheduler sees.
        """
        key = keys.anchor(self._cell, group)
        server = self._servers[keys.partition_of(group, len(self._servers))]
        try:
            [written] = server.write([Write(Put.ADD, key, node.encode(), ttl_s=math.ceil(seconds))])
            if written.status is Status.CONFLICT:
                there = server.fetch([key]).get(key)
                return there.value.decode() if there is not None else node
        except StoreError:
            pass
        return node
