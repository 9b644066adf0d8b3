"""The event hub: the last events of the cell, and the clients that follow them.

Each event is encoded and compressed once for all clients, so a client costs one write for each event. A client whose
queue is full is dropped: it does not take events as fast as they happen, and connects again from its last event. The
stream of a client whose token was withdrawn ends.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import structlog
from msgspec import Meta

from nodestate.serve.encoding import JSON, encode

Topic = Literal["nodes", "partitions", "findings", "decisions"]
TOPICS: Final[tuple[str, ...]] = get_args(Topic)
RING_EVENTS_COUNT: Final = 2_000
RING_BYTES: Final = 8_000_000
"""Events that are kept for clients that connect again: at most this many, and this many bytes."""
QUEUE_ENTRIES_COUNT: Final = 200
"""Calls of ``EventHub.publish`` whose events may wait for one client; a client with more is dropped."""
TOKEN_CHECK_S: Final = 1.0
"""Seconds between two looks whether the tokens of the clients are still valid."""

_log: Final = structlog.get_logger("nodestate.serve.event_hub")


class ResetEvent(msgspec.Struct):
    """The client must forget all that it holds: the events with the whole content follow."""

    reason: Annotated[
        str,
        Meta(
            description="start: the client connected without an event id; gone: its last event is no longer kept, or "
            "the service was restarted; renumbered: nodes have new numbers."
        ),
    ]


class StreamEvent:
    """One event as clients receive it."""

    def __init__(self, sequence: int, topic: str, event_id: str, name: str, document: Any) -> None:
        self.sequence = sequence
        """Number of the event; 0 for events that only one client receives."""
        self.topic = topic
        """The topic; empty: clients of all topics receive it."""
        head = f"id: {event_id}\nevent: {name}\ndata: " if event_id else f"event: {name}\ndata: "
        self.text = head.encode() + encode(document, JSON) + b"\n\n"
        """The event in the format of server-sent events."""

    @cached_property
    def deflated(self) -> bytes:
        """The text as a part of a deflate stream that refers to nothing before it, so that all clients share it."""
        return deflated(self.text)


def deflated(text: bytes) -> bytes:
    """Return a text as a part of a deflate stream, which ends at the boundary of a byte."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)


class StreamClient:
    """A client that follows topics.

    Args:
        topics: the topics.
        drop: ends its connection at once.
        is_permitted: returns False once its token was withdrawn.
    """

    def __init__(
        self, topics: frozenset[str], drop: Callable[[], None], is_permitted: Callable[[], bool] = lambda: True
    ) -> None:
        self.topics = topics
        """The topics that it follows."""
        self.queue: asyncio.Queue[Sequence[StreamEvent] | None] = asyncio.Queue(QUEUE_ENTRIES_COUNT)
        """Events to send: all events of one call of ``EventHub.publish`` are one entry. None: the stream ends."""
        self.is_permitted = is_permitted
        """Returns False once its token was withdrawn."""
        self._drop = drop

    def follows(self, topic: str) -> bool:
        """True if the client receives the events of a topic; empty: the topic of all clients."""
        return not topic or topic in self.topics

    def put(self, events: Sequence[StreamEvent] | None) -> bool:
        """Queue events, or the end. Returns False if the client was dropped because its queue is full."""
        try:
            self.queue.put_nowait(events)
        except asyncio.QueueFull:
            self._drop()
            return False
        return True

    def end(self) -> None:
        """End the stream without the events that wait."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class EventHub:
    """The last events, and the clients. Belongs to the event loop."""

    def __init__(self) -> None:
        self.clients: set[StreamClient] = set()
        """The clients that are connected."""
        self.dropped = 0
        """Clients that were dropped because they did not take their events."""
        self.position = ""
        """Position of the view that the next events are of."""
        # Distinguishes the event ids of this service from the ids of a service before a restart.
        self._run = secrets.token_hex(4)
        # Number of the last event.
        self._sequence = 0
        # The last events, the oldest first, and their bytes.
        self._ring: deque[StreamEvent] = deque()
        self._ring_bytes = 0

    @property
    def sequence(self) -> int:
        """Number of the last event."""
        return self._sequence

    def event_id(self) -> str:
        """Return the id of the last event: the position of its view, the service, and its number."""
        return f"{self.position}~{self._run}-{self._sequence}"

    def publish(self, topic: str, *documents: Any, name: str = "") -> None:
        """Send events to all clients that follow a topic.

        The events are one entry in the queue of a client: a decision about 1,000 instances must not drop the clients
        that take their events.

        Args:
            topic: one of ``TOPICS``; empty: all clients.
            documents: the content of each event, a struct.
            name: name of the events; empty: that of the topic.
        """
        events = []
        for document in documents:
            self._sequence += 1
            events.append(StreamEvent(self._sequence, topic, self.event_id(), name or topic, document))
            self._ring_bytes += len(events[-1].text)
        self._ring += events
        while len(self._ring) > RING_EVENTS_COUNT or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._ring_bytes -= len(self._ring.popleft().text)
        for client in [client for client in self.clients if client.follows(topic)]:
            if not client.put(events):
                self.clients.discard(client)
                self.dropped += 1
                _log.info("client dropped: it does not take its events", queued=QUEUE_ENTRIES_COUNT)

    def events_after(self, sequence: int) -> Iterator[StreamEvent] | None:
        """Return the events after a number; None if some of them are no longer kept."""
        if sequence > self._sequence:
            return None
        if sequence < self._sequence and (not self._ring or self._ring[0].sequence > sequence + 1):
            return None
        return (event for event in list(self._ring) if event.sequence > sequence)

    def sequence_of(self, event_id: str) -> int | None:
        """Return the number in an event id; None if this service did not send it."""
        run, _, number = event_id.rpartition("~")[2].partition("-")
        return int(number) if run == self._run and number.isdecimal() and len(number) < 20 else None

    def forget(self) -> None:
        """Forget all events, so that no client can resume from one of them."""
        self._ring.clear()
        self._ring_bytes = 0
        self._run = secrets.token_hex(4)

    async def end_withdrawn_streams(self) -> None:
        """End the streams of clients whose token is withdrawn, until this task is cancelled."""
        while True:
            await asyncio.sleep(TOKEN_CHECK_S)
            for client in [client for client in self.clients if not client.is_permitted()]:
                self.clients.discard(client)
                client.end()

    def close(self) -> None:
        """End all streams."""
        for client in self.clients:
            client.put(None)
        self.clients.clear()
