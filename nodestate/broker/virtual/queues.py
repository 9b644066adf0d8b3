"""Queues of a virtual transport: the queues of a cell, and the queues of a single session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import kombu

from nodestate.broker.sessions import DeadQueueFault, FetchedMessage, OnNodeBody, QueueCounts, accepted_body
from nodestate.broker.topology import ACTIVATION_TYPE, DEAD_KEY, Topology
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.memory import MEMORY_LOCK
from nodestate.ports import QUEUE_BEGAN


class VirtualQueues:
    """A ``QueueAdmin`` over a virtual connection. It cannot tell whether a queue has consumers."""

    def __init__(self, connection: VirtualConnection) -> None:
        self._connection = connection
        """The connection that fetches messages and reads bindings."""
        self._channel: Any = connection.channel
        """The connection's channel for declarations."""
        self.began: set[int] = set()
        """See ``QueueAdmin``."""

    def declare(self, topology: Topology, *, layout: bool, mark_began: bool) -> None:
        """See ``QueueAdmin``. A queue that is not bound counts as missing: Redis keeps no empty queues."""
        channel = self._channel
        for exchange, kind in topology.exchanges:
            channel.exchange_declare(exchange, kind, durable=True)
        channel.queue_declare(topology.dead, durable=True)
        channel.queue_bind(topology.dead, topology.dead, DEAD_KEY)
        bound = {queue for _, _, queue in self._connection.bindings(topology.exchange)}
        if layout or not bound:
            for partition, name in topology.queues():
                channel.queue_declare(name, durable=True)
                channel.queue_bind(name, topology.exchange, layout_key(topology, partition))
                if name not in bound:
                    self.began.add(partition)
                    if mark_began:
                        self._connection.send("", name, QUEUE_BEGAN, ACTIVATION_TYPE)

    def redeclare(self, topology: Topology, partitions: Iterable[int]) -> None:
        """See ``QueueAdmin``. Binds queues that are not bound; messages of deleted queues are not missed here."""
        bound = {queue for _, _, queue in self._connection.bindings(topology.exchange)}
        for partition in partitions:
            if topology.queue(partition) not in bound:
                bind_again(self._channel, topology.queue(partition), topology.exchange, layout_key(topology, partition))

    def counts(self, queue: str) -> QueueCounts:
        """See ``QueueAdmin``. Never None, as Redis keeps no empty queues."""
        return QueueCounts(self._channel.queue_declare(queue).message_count, None)

    def missing_exchanges(self, topology: Topology) -> list[str]:
        """See ``QueueAdmin``. Always empty: an exchange is nothing but its bindings here."""
        del topology
        return []

    def dead_queue_faults(self, topology: Topology) -> frozenset[DeadQueueFault]:
        """See ``QueueAdmin``. Always empty, as queues of these transports have no properties."""
        del topology
        return frozenset()

    def layouts(self, topology: Topology) -> list[int]:
        """See ``QueueAdmin``. These transports know the bindings of an exchange, and no queue is unbound."""
        return sorted({layout_of(key) for key, _, _ in self._connection.bindings(topology.exchange)})

    def fetch(self, queue: str) -> FetchedMessage | None:
        """See ``QueueAdmin``."""
        return self._connection.fetch(queue)

    def delete(self, topology: Topology) -> bool:
        """See ``QueueAdmin``. Always True: the caller must know that the queues have no consumers."""
        for partition, name in topology.queues():
            delete_queue(self._channel, name, topology.exchange, layout_key(topology, partition))
        return True

    def set_aside(self, topology: Topology, partition: int, queue: str) -> int:
        """Do nothing, as the queue may have a consumer. Returns the number of messages in it."""
        del topology, partition
        return self.counts(queue).ready


class VirtualOwnQueue:
    """An ``OwnQueue`` or ``OrderQueue`` of a virtual transport. The connection deletes it when it closes.

    With Redis a binding stays until then: kombu removes it only together with its queue.
    """

    def __init__(
        self, connection: VirtualConnection, on_body: OnNodeBody, *, fanout: str = "", orders: str = ""
    ) -> None:
        self.name = f"nodestate.box.{kombu.uuid()}"
        """The queue's name."""
        self._connection = connection
        """Reads bindings."""
        self._channel: Any = connection.channel
        """The connection's channel for declarations."""
        self._unbound: set[str] = set()
        """Keys that were bound, and are no longer."""
        self._fanout = fanout
        """The fanout exchange that the queue is bound to; empty if to none."""
        self._orders = orders
        """The direct exchange that the queue is bound to; empty if to none."""
        self._bound: dict[str, None] = {}
        """All keys of the direct exchange that were ever bound."""
        self._channel.queue_declare(self.name, auto_delete=True, exclusive=True)
        if fanout:
            self._channel.queue_bind(self.name, fanout)
        connection.open_channel().basic_consume(
            self.name,
            no_ack=True,
            callback=lambda message: on_body(accepted_body(message.body or b"", self.name), ""),
            consumer_tag=self.name,
        )
        connection.on_close.append(self.delete)
        connection.pump(0)  # Redis subscribes with the first poll

    def bind(self, nodes: Iterable[str]) -> None:
        """See ``OrderQueue``."""
        for key in nodes:
            self._channel.queue_bind(self.name, self._orders, key)
            self._bound[key] = None
            self._unbound.discard(key)

    def unbind(self, nodes: Iterable[str]) -> None:
        """See ``OrderQueue``."""
        gone = set(nodes)
        self._unbound |= gone
        state = self._channel.state
        with MEMORY_LOCK:
            for key in gone:
                state.binding_delete(self.name, self._orders, key)
            # One pass for all keys: kombu's own queue_unbind makes a pass through the table for each.
            table = state.exchanges[self._orders]["table"]
            table[:] = [binding for binding in table if binding[2] != self.name or binding[0] not in gone]

    def bind_again(self) -> None:
        """See ``OwnQueue``. A fanout exchange keeps no bindings here: Redis subscribes to a channel instead."""
        if self._orders:
            table = {key for key, _, queue in self._connection.bindings(self._orders) if queue == self.name}
            for key in self._bound.keys() - table - self._unbound:
                bind_again(self._channel, self.name, self._orders, key)

    def delete(self) -> None:
        """Delete the queue and its bindings."""
        if self._bound:
            self.unbind(self._bound)
        for key in self._bound:
            # A hook of virtual channels, as in ``delete_queue``.
            self._channel._delete(self.name, self._orders, key, "", self.name)  # noqa: SLF001 - see above
        delete_queue(self._channel, self.name, self._fanout, "")


def layout_key(topology: Topology, partition: int) -> str:
    """The key with which a partition's queue is bound; ``takes_bucket`` and ``layout_of`` read it."""
    return f"{partition}/{topology.partitions}"


def layout_of(key: str) -> int:
    """The number of partitions of the layout whose queue is bound with this ``layout_key``."""
    return int(key.partition("/")[2])


def takes_bucket(key: str, bucket: int) -> bool:
    """True if a queue that is bound with this ``layout_key`` takes the events of a bucket."""
    partition, _, partitions = key.partition("/")
    return bucket % int(partitions) == int(partition)


def bind_again(channel: Any, queue: str, exchange: str, key: str) -> None:
    """Bind a queue whose binding was deleted behind kombu's back. kombu believes that it still exists."""
    channel.state.binding_delete(queue, exchange, key)
    channel.queue_bind(queue, exchange, key)


def delete_queue(channel: Any, queue: str, exchange: str, key: str) -> None:
    """Delete a queue and its binding to an exchange.

    kombu's ``queue_delete`` leaves the binding behind, so that the next broadcast would fill the queue again, and it
    does not delete a queue without a binding. So this calls ``queue_unbind`` and the transport's own ``_delete``.
    """
    if exchange:
        channel.queue_unbind(queue, exchange, key)
    channel._delete(queue, exchange, key, None, queue)  # noqa: SLF001 - a hook of virtual channels
