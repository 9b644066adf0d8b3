"""The nodes that a resync request concerns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from nodestate.ports import Resync


class _BucketNode(Protocol):
    """A node whose bucket is known."""

    bucket: int
    """The node's bucket."""


def concerns(resync: Resync, node: str, bucket: int) -> bool:
    """True if a resync request concerns the node. ``bucket`` is the node's bucket."""
    if resync.nodes or resync.partitions:
        return node in resync.nodes or bucket % resync.layout in resync.partitions
    return True


def concerned_nodes(resync: Resync, nodes: Mapping[str, _BucketNode]) -> Sequence[str]:
    """Return the nodes that a request concerns, sorted: with one seed, each answers at one moment."""
    if resync.nodes and not resync.partitions:
        return sorted(name for name in set(resync.nodes) if name in nodes)
    return sorted(name for name, one in nodes.items() if concerns(resync, name, one.bucket))
