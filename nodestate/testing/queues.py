"""The queues of the broker double."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a source knows its queues, and a queue its consumers
    from nodestate.testing.source import MemorySource


@dataclass(slots=True, eq=False)
class MemoryMessage:
    """One message in a queue. A message that is not ``durable`` is lost when the broker stops."""

    body: bytes
    redelivered: bool = False
    durable: bool = True
    node: str = ""
    """See ``Delivery``."""
    routed: bool = False
    """See ``Delivery``."""


@dataclass(slots=True, eq=False)
class MemoryQueue:
    """One partition's queue.

    ``messages``: the messages that wait, the next one first. ``consumers``: the sources that subscribed, in the order
    in which they came; the first one is active, the others take over in turn.
    """

    messages: deque[MemoryMessage] = field(default_factory=deque)
    consumers: list[MemorySource] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MemoryDeadLetter:
    """A message that a consumer gave up, and why."""

    partition: int
    body: bytes
    reason: str
    detail: str
