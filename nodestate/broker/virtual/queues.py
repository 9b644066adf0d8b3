"""Queues of a virtual transport: the queues of a cell, and the queues of a single session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import kombu

from nodestate.broker.sessions import FetchedMessage, OnBody, QueueCounts
from nodestate.broker.topology import DEAD_KEY, Topology
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.memory import MEMORY_LOCK


class VirtualQueues:
    """A ``QueueAdmin`` over a virtual connection. It cannot tell whether a queue has consumers."""

    def __init__(self, connection: VirtualConnection) -> None:
        self._connection = connection
        """The connection that fetches messages and reads bindings."""
        self._channel: Any = connection.channel
        """The connection's channel for declarations."""

    def declare(self, topology: Topology, *, layout: bool) -> None:
        """See ``QueueAdmin``."""
        channel = self._channel
        for exchange, kind in (
            (topology.exchange, "direct"),
            (topology.dead, "direct"),
            (topology.control, "fanout"),
            (topology.orders, "direct"),
        ):
            channel.exchange_declare(exchange, kind, durable=True)
        channel.queue_declare(topology.dead, durable=True)
        channel.queue_bind(topology.dead, topology.dead, DEAD_KEY)
        if layout or not self._connection.bindings(topology.exchange):
            for partition, name in topology.queues():
                channel.queue_declare(name, durable=True)
                channel.queue_bind(name, topology.exchange, layout_key(topology, partition))

    def counts(self, queue: str) -> QueueCounts | None:
        """See ``QueueAdmin``. Never None, as Redis keeps no empty queues."""
        return QueueCounts(self._channel.queue_declare(queue).message_count, None)

    def fetch(self, queue: str) -> FetchedMessage | None:
        """See ``QueueAdmin``."""
        return self._connection.fetch(queue)

    def delete(self, topology: Topology) -> bool:
        """See ``QueueAdmin``. Always True: the caller must know that the queues have no consumers."""
        for partition, name in topology.queues():
            delete_queue(self._channel, name, topology.exchange, layout_key(topology, partition))
        return True

    def set_aside(self, topology: Topology, partition: int, queue: str) -> None:
        """Do nothing, as the queue may have a consumer."""


class VirtualOwnQueue:
    """An ``OwnQueue`` of a virtual transport. The connection deletes it when it closes.

    With Redis a binding stays until then: kombu removes it only together with its queue.
    """

    def __init__(self, connection: VirtualConnection, on_body: OnBody, exchange: str = "") -> None:
        self.name = f"nodestate.box.{kombu.uuid()}"
        """The queue's name."""
        self._channel: Any = connection.channel
        """The connection's channel for declarations."""
        self._exchange = exchange
        """The fanout exchange that the queue is bound to; empty if to none."""
        self._bound: dict[str, dict[str, None]] = {}
        """By direct exchange, all keys that were ever bound."""
        self._channel.queue_declare(self.name, auto_delete=True, exclusive=True)
        if exchange:
            self._channel.queue_bind(self.name, exchange)
        connection.open_channel().basic_consume(
            self.name, no_ack=True, callback=lambda message: on_body(message.body or b""), consumer_tag=self.name
        )
        connection.on_close.append(self.delete)
        connection.pump(0)  # Redis subscribes with the first poll

    def bind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``."""
        bound = self._bound.setdefault(exchange, {})
        for key in keys:
            self._channel.queue_bind(self.name, exchange, key)
            bound[key] = None

    def unbind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``."""
        gone = set(keys)
        state = self._channel.state
        with MEMORY_LOCK:
            for key in gone:
                state.binding_delete(self.name, exchange, key)
            # One pass for all keys: kombu's own queue_unbind makes a pass through the table for each.
            table = state.exchanges[exchange]["table"]
            table[:] = [binding for binding in table if binding[2] != self.name or binding[0] not in gone]

    def delete(self) -> None:
        """Delete the queue and its bindings."""
        for exchange, keys in self._bound.items():
            self.unbind(exchange, keys)
            for key in keys:
                # A hook of virtual channels, as in ``delete_queue``.
                self._channel._delete(self.name, exchange, key, "", self.name)  # noqa: SLF001 - see above
        delete_queue(self._channel, self.name, self._exchange, "")


def layout_key(topology: Topology, partition: int) -> str:
    """The key with which a partition's queue is bound; ``takes_bucket`` reads it."""
    return f"{partition}/{topology.partitions}"


def takes_bucket(key: str, bucket: int) -> bool:
    """True if a queue that is bound with this ``layout_key`` takes the events of a bucket."""
    partition, _, partitions = key.partition("/")
    return bucket % int(partitions) == int(partition)


def delete_queue(channel: Any, queue: str, exchange: str, key: str) -> None:
    """Delete a queue and its binding to an exchange.

    kombu's ``queue_delete`` leaves the binding behind, so that the next broadcast would fill the queue again, and it
    does not delete a queue without a binding. So this calls ``queue_unbind`` and the transport's own ``_delete``.
    """
    if exchange:
        channel.queue_unbind(queue, exchange, key)
    channel._delete(queue, exchange, key, None, queue)  # noqa: SLF001 - a hook of virtual channels
