"""The route ``GET /v1/events``: server-sent events, resumed from the last event that a client received."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.decisions import DecisionEvent
from nodestate.serve.event_hub import TOPICS, ResetEvent, StreamClient, StreamEvent
from nodestate.serve.finding_events import TOPIC, FindingsEvent
from nodestate.serve.fleet_events import PartitionsEvent
from nodestate.serve.node_board import NodesEvent
from nodestate.serve.problems import problem
from nodestate.serve.responses import ApiResponse
from nodestate.serve.service import Service

KEEP_ALIVE_S: Final = 15.0
"""Seconds without an event after which a comment is sent, so that proxies keep the connection."""
MAX_STREAM_S: Final = 3_600.0
"""A stream ends after this many seconds, and the client resumes it. So clients return to a service that was restarted
behind the same name."""
GZIP_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
GZIP_LAST_BLOCK: Final = b"\x03\x00"
_TOPIC: Final = "(" + "|".join(TOPICS) + ")"


class EventsParameters(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/events``."""

    topics: Annotated[
        str,
        Meta(
            description="Topics to follow, separated by commas: nodes, partitions, findings, decisions.",
            pattern=f"^{_TOPIC}(,{_TOPIC}){{0,15}}$",
        ),
    ] = ",".join(TOPICS)


async def get_events(call: ApiCall[EventsParameters]) -> ApiResponse:
    """Answer with a stream of events."""
    service, hub = call.service, call.service.hub
    if len(hub.clients) >= service.max_streams:
        raise problem(
            "overloaded",
            f"the service has as many clients of events as it accepts, {service.max_streams} (--max-streams)",
        )
    client = StreamClient(frozenset(call.parameters.topics.strip().split(",")), call.abort, call.is_permitted)
    last_id = call.headers.get("last-event-id", "")
    sequence = hub.sequence_of(last_id) if last_id else None
    missed = hub.events_after(sequence) if sequence is not None else None
    hub.clients.add(client)  # counts from here on: making a picture takes a moment
    try:
        if missed is not None:
            first = list(missed)
        else:
            opening, sequence = await service.fleet_events.opening(client.topics)
            if TOPIC in client.topics:
                opening += service.finding_events.opening()
            reset = StreamEvent(0, "", "", "reset", ResetEvent("gone" if last_id else "start"))
            first = [reset, *opening, *(hub.events_after(sequence) or ())]
    except BaseException:
        hub.clients.discard(client)
        raise
    first = [event for event in first if client.follows(event.topic)]
    while not client.queue.empty():  # they are in ``first``
        client.queue.get_nowait()
    if client not in hub.clients:  # its stream was ended meanwhile
        client.end()
    gzip = "gzip" in call.headers.get("accept-encoding", "")
    return ApiResponse(asgi=EventStream(service, client, first, gzip=gzip))


class EventStream(Response):
    """The response that sends events until the client leaves, is dropped, or ``MAX_STREAM_S`` have passed."""

    def __init__(self, service: Service, client: StreamClient, first: Sequence[StreamEvent], *, gzip: bool) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
        super().__init__(None, 200, {**headers, **({"Content-Encoding": "gzip"} if gzip else {})}, "text/event-stream")
        del self.headers["content-length"]
        self._service = service
        self._client = client
        self._first = first
        self._gzip = gzip
        # Checksum and length of the text so far, which end a gzip stream.
        self._crc = self._size = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        del scope
        left = asyncio.ensure_future(_wait_until_left(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            with self._service.feeds.main.watched():
                await asyncio.wait([left, sending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._service.hub.clients.discard(self._client)
            for task in (left, sending):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        opening = (GZIP_HEAD if self._gzip else b"") + self._comment(b"retry: 1000\n\n")
        await _send_piece(send, opening + b"".join(map(self._piece, self._first)))
        self._first = ()
        queue, ends_at = self._client.queue, time.monotonic() + MAX_STREAM_S
        while time.monotonic() < ends_at:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):  # wait_for may lose a cancellation in Python 3.11
                    events = await queue.get()
            except TimeoutError:
                await _send_piece(send, self._comment(b":\n\n"))
                continue
            pieces: list[bytes] = []
            while events is not None:
                pieces += map(self._piece, events)
                if queue.empty():
                    break
                events = queue.get_nowait()
            if pieces:
                await _send_piece(send, b"".join(pieces))
            if events is None:
                break
        end = GZIP_LAST_BLOCK + struct.pack("<LL", self._crc, self._size & 0xFFFFFFFF) if self._gzip else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _piece(self, event: StreamEvent) -> bytes:
        """Return the bytes of an event in this stream."""
        self._note(event.text)
        return event.deflated if self._gzip else event.text

    def _comment(self, text: bytes) -> bytes:
        """Return the bytes of a text that is no event."""
        self._note(text)
        if not self._gzip:
            return text
        compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)

    def _note(self, text: bytes) -> None:
        self._crc = zlib.crc32(text, self._crc)
        self._size += len(text)


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/events",
        "Server-sent events: changed nodes, partitions, findings and decisions. Last-Event-ID resumes.",
        get_events,
        None,
        EventsParameters,
        media_types=("text/event-stream",),
        events={
            "reset": ResetEvent,
            "nodes": NodesEvent,
            "partitions": PartitionsEvent,
            "findings": FindingsEvent,
            "decisions": DecisionEvent,
        },
    ),
)
