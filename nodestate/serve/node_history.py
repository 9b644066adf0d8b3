"""The last events of each node that the service has seen in its views."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.model import NodeRecord

EVENTS_PER_NODE_COUNT: Final = 16
"""Events that are kept of one node."""
NODES_COUNT: Final = 10_000
"""Nodes whose events are kept: those whose state changed last."""


class NodeEvent(msgspec.Struct, gc=False):
    """A version of a node that appeared in a view of the service."""

    at: Annotated[float, Meta(description="When the service saw it, in seconds since 1970 by the service's clock.")]
    incarnation: Annotated[int, Meta(description="Which life of the agent.")]
    generation: Annotated[int, Meta(description="Number of the event within that life.")]
    reported_at: Annotated[float, Meta(description="When the agent sent it, in seconds since 1970 by its own clock.")]
    status: Annotated[str, Meta(description="up, draining, maintenance or down.")]
    incomplete: Annotated[bool, Meta(description="True if a newer version was known to exist.")]
    gone: Annotated[bool, Meta(description="True if the node left with this event.")]


class NodeHistory:
    """The last events of each node. Belongs to the event loop."""

    def __init__(self) -> None:
        # By node, its last events; the node that changed last is at the end.
        self._events: OrderedDict[str, deque[NodeEvent]] = OrderedDict()

    def add(self, records: Sequence[NodeRecord], at: float) -> None:
        """Add the records that changed in a view, seen at ``at`` in seconds since 1970."""
        for record in records:
            events = self._events.get(record.name)
            if events is None:
                events = self._events[record.name] = deque(maxlen=EVENTS_PER_NODE_COUNT)
            else:
                self._events.move_to_end(record.name)
            events.append(
                NodeEvent(
                    at,
                    record.incarnation,
                    record.generation,
                    record.reported_at,
                    record.status,
                    record.incomplete,
                    record.gone,
                )
            )
        while len(self._events) > NODES_COUNT:
            self._events.popitem(last=False)

    def of(self, name: str) -> list[NodeEvent]:
        """Return the kept events of a node, the oldest first."""
        return list(self._events.get(name, ()))
