"""The events that follow from views: changed nodes, and the state of the partitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.serve.event_hub import EventHub, ResetEvent, StreamEvent
from nodestate.serve.node_board import NodeBoard
from nodestate.serve.view_feed import PublishedView
from nodestate.serve.workers import Workers
from nodestate.view.documents import finite_or_none
from nodestate.view.view import View

PARTITIONS_EVERY_S: Final = 2.0
"""Seconds between two events about partitions of which only ages and offsets changed."""
PICTURE_AGE_S: Final = 5.0
"""A picture of all nodes is used again for this long; the events after it follow it."""


class PartitionsEvent(msgspec.Struct):
    """The state of all partitions, by number of the partition."""

    design: Annotated[str, Meta(description="The design that readers read.")]
    epoch: Annotated[list[str], Meta(description="Life of the store, a hexadecimal number; empty if never read.")]
    offset: Annotated[list[int], Meta(description="Number of the last commit within the epoch.")]
    age: Annotated[
        list[float | None],
        Meta(description="Seconds since the owner is known to have been caught up; null if it never was."),
    ]
    complete: Annotated[list[bool], Meta(description="True if the owner knows all nodes of the partition.")]
    incomplete: Annotated[list[int], Meta(description="Nodes of which a newer version is known to exist.")]
    lost: Annotated[list[str], Meta(description="Why the partition can't be read completely; empty if it can.")]


class Picture(NamedTuple):
    """All nodes as of an event."""

    event: StreamEvent
    sequence: int
    """Number of the last event whose changes it contains."""
    made_at: float
    """Monotonic time."""


class FleetEvents:
    """Publishes events about nodes and partitions in a hub. Belongs to the event loop."""

    def __init__(self, hub: EventHub, workers: Workers) -> None:
        self._hub = hub
        self._workers = workers
        self._board = NodeBoard()
        # The last picture that was made; None before the first one.
        self._picture: Picture | None = None
        # The picture that is being made; None if none is.
        self._making: asyncio.Future[Picture] | None = None
        # The last event about partitions, without ages and offsets, and when it was published.
        self._partitions: object = None
        self._partitions_at = 0.0
        # The view that events are of.
        self._view: View | None = None

    def on_news(self, before: PublishedView | None, now: PublishedView) -> None:
        """Publish the changes of a view."""
        self._hub.position = now.position
        self._view = now.view
        if before is not None and not self._board.is_sparse:
            changes = self._board.apply(now.changes.records, now.changes.vanished)
        else:
            renumbered = before is not None
            self._board = NodeBoard()
            changes = self._board.apply(now.view.nodes.records())
            if renumbered:
                self._hub.forget()
                self._picture = None
                self._hub.publish("", ResetEvent("renumbered"), name="reset")
            if changes is not None:
                changes = self._board.picture()
        if changes is not None:
            self._hub.publish("nodes", changes)

    def on_refresh(self, view: View) -> None:
        """Publish the state of the partitions, at once if it changed, otherwise for their ages."""
        event = partitions_event(view)
        essence = (event.design, event.epoch, event.complete, event.incomplete, event.lost)
        now = time.monotonic()
        if essence != self._partitions or now - self._partitions_at >= PARTITIONS_EVERY_S:
            self._partitions, self._partitions_at = essence, now
            self._hub.publish("partitions", event)

    async def opening(self, topics: frozenset[str]) -> tuple[list[StreamEvent], int]:
        """Return the events that a new client of these topics gets first, and the number of the last one.

        The client must then get all later events of the hub.
        """
        events, sequence = [], self._hub.sequence
        if "nodes" in topics:
            picture = await self._recent_picture()
            events.append(picture.event)
            sequence = picture.sequence
        if "partitions" in topics and self._view is not None:
            events.append(StreamEvent(0, "partitions", "", "partitions", partitions_event(self._view)))
        return events, sequence

    async def _recent_picture(self) -> Picture:
        """Return a picture that the kept events can bring up to date."""
        picture = self._picture
        is_recent = picture is not None and time.monotonic() - picture.made_at < PICTURE_AGE_S
        if picture is not None and is_recent and self._hub.events_after(picture.sequence) is not None:
            return picture
        if self._making is None or self._making.done():
            self._making = asyncio.ensure_future(self._make_picture())
        return await asyncio.shield(self._making)

    async def _make_picture(self) -> Picture:
        content, sequence, event_id = self._board.picture(), self._hub.sequence, self._hub.event_id()

        def make() -> StreamEvent:
            event = StreamEvent(0, "nodes", event_id, "nodes", content)
            assert event.deflated, "compressed here, in a thread"
            return event

        self._picture = Picture(await self._workers.run(make), sequence, time.monotonic())
        return self._picture


def partitions_event(view: View) -> PartitionsEvent:
    """Return the event about the partitions of a view."""
    states = view.partitions

    def by_partition(values: Iterable[float]) -> list[float | None]:
        return [None if age is None else round(age, 1) for age in map(finite_or_none, values)]

    return PartitionsEvent(
        view.design,
        [f"{state.table.epoch:x}" if state.table is not None else "" for state in states],
        [state.table.offset if state.table is not None else 0 for state in states],
        by_partition(view.partition_age(state.partition) for state in states),
        [state.complete for state in states],
        [len(state.table.incomplete) if state.table is not None else 0 for state in states],
        [state.lost for state in states],
    )
