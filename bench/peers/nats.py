"""NATS, with a key-value bucket of JetStream.

The bucket is read through a consumer that first delivers the last value of every key and then every later value in the
sequence of the stream. It is a durable pull consumer, so a refresh is one request. nats-py supports asyncio only; so
writer and reader each have an event loop, which runs only during a call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Final

import nats
import nats.errors
from nats.aio.msg import Msg
from nats.js import api

from bench.peers.interfaces import Opener, Row, Server, packed, unpacked

__all__ = ["Nats"]

BUCKET: Final = "nodes"
STREAM: Final = f"KV_{BUCKET}"
SUBJECT: Final = f"$KV.{BUCKET}."
BATCH_COUNT: Final = 20_000
"""Messages requested at once; they wait in the memory of this process until they are processed."""
WINDOW_COUNT: Final = 1_000
"""Messages published before the writer waits for their confirmations."""
TIMEOUT_S: Final = 30.0
NO_MORE: Final = frozenset({"404", "408"})
"""Statuses of an empty batch and of a batch with fewer messages than requested."""


class _NatsReader:
    """A reader that holds all nodes; the consumer on the server knows its position."""

    def __init__(self, url: str) -> None:
        self._rows: dict[str, Row] = {}
        self._came = 0
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._loop.run_until_complete(self._open(url))

    async def _open(self, url: str) -> None:
        self._nats = await nats.connect(url, allow_reconnect=False)
        self._inbox = self._nats.new_inbox()
        await self._nats.subscribe(self._inbox, cb=self._take)
        consumer = await self._nats.jetstream().add_consumer(
            STREAM,
            filter_subject=f"{SUBJECT}>",
            deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=10 * TIMEOUT_S,
            mem_storage=True,
        )
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer.name}"
        self._wanted = json.dumps({"batch": BATCH_COUNT, "no_wait": True}).encode()

    async def _take(self, message: Msg) -> None:
        """Process a value, or the status that ends a batch; no status follows a full batch."""
        if message.subject == self._inbox:
            self._ended.set_result((message.headers or {}).get("Status", ""))
            return
        name = message.subject[len(SUBJECT) :]
        self._rows[name] = unpacked(name, message.data)
        self._came += 1
        if self._came == BATCH_COUNT:
            self._ended.set_result("")

    async def _pull(self) -> None:
        self._came = BATCH_COUNT
        while self._came == BATCH_COUNT:
            self._came = 0
            self._ended = self._loop.create_future()
            await self._nats.publish(self._next, self._wanted, self._inbox)
            status = await asyncio.wait_for(self._ended, TIMEOUT_S)
            if self._came < BATCH_COUNT and status not in NO_MORE:
                raise nats.errors.Error(f"NATS ended a batch with the unexpected status {status!r}")

    def cold(self) -> None:
        """Read the last value of each key."""
        self._loop.run_until_complete(self._pull())

    def refresh(self) -> None:
        """Read the values that follow."""
        self._loop.run_until_complete(self._pull())

    def names(self) -> Iterable[str]:
        """Return the names of all nodes read."""
        return self._rows

    def node(self, name: str) -> Row:
        """Return a node as it was read last. Raises KeyError if there is no such node."""
        return self._rows[name]

    def close(self) -> None:
        self._loop.run_until_complete(self._nats.close())
        self._loop.close()


class Nats:
    """The NATS peer: JetStream through nats-py."""

    def __init__(self, server: Server) -> None:
        self.clients: Mapping[str, str] = {"nats-py": version("nats-py")}
        self.openers: Mapping[str, Opener] = {"nats consumer": partial(_NatsReader, server.url)}
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open(server.url))

    async def _open(self, url: str) -> None:
        self._nats = await nats.connect(url, allow_reconnect=False)
        self._stream = self._nats.jetstream()
        await self._stream.create_key_value(api.KeyValueConfig(BUCKET, history=1, storage=api.StorageType.FILE))

    def write(self, rows: Sequence[Row]) -> None:
        """Publish the nodes in windows, and wait for all confirmations of each window."""
        self._loop.run_until_complete(self._write(rows))

    async def _write(self, rows: Sequence[Row]) -> None:
        for at in range(0, len(rows), WINDOW_COUNT):
            taken = [
                await self._stream.publish_async(SUBJECT + row.name, packed(row))
                for row in rows[at : at + WINDOW_COUNT]
            ]
            await asyncio.wait_for(asyncio.gather(*taken), TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(self._nats.close())
        self._loop.close()
