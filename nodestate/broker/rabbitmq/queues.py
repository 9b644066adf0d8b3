"""Queues at RabbitMQ: the queues of a cell, and the queues of a single connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import amqp
from amqp import spec

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.sessions import FetchedMessage, OnBody, QueueCounts
from nodestate.broker.topology import DEAD_KEY, Topology
from nodestate.errors import ConfigError

CONTROL_QUEUE_MAX_LENGTH: Final = 1_000
"""Resync requests that wait for an agent that does not read; the broker drops older ones."""


class RabbitQueues:
    """A ``QueueAdmin`` over an AMQP connection."""

    def __init__(self, connection: RabbitConnection) -> None:
        self._channel: Any = connection.control
        """The connection's channel for declarations."""

    def declare(self, topology: Topology, *, layout: bool) -> None:
        """See ``QueueAdmin``.

        The control exchange is declared last, so it exists only if a whole layout was declared.
        """
        channel = self._channel
        try:
            if not layout:
                try:
                    channel.exchange_declare(topology.control, "fanout", passive=True)
                except amqp.NotFound:
                    layout = True
            if layout:
                for exchange in (topology.exchange, topology.dead, topology.orders):
                    channel.exchange_declare(exchange, "direct", durable=True, auto_delete=False, nowait=True)
                channel.queue_declare(topology.dead, durable=True, auto_delete=False, nowait=True)
                channel.queue_bind(topology.dead, topology.dead, DEAD_KEY, nowait=True)
                for partition, name in topology.queues():
                    channel.queue_declare(
                        name, durable=True, auto_delete=False, arguments=topology.queue_arguments, nowait=True
                    )
                    for bucket in topology.buckets(partition):
                        channel.queue_bind(name, topology.exchange, str(bucket), nowait=True)
            # The only declaration whose answer is waited for: an error of an earlier one shows here.
            channel.exchange_declare(topology.control, "fanout", durable=True, auto_delete=False)
        except amqp.PreconditionFailed as error:
            raise ConfigError(
                f"cell {topology.cell!r} has queues of another kind at the broker: {error.reply_text}. "
                f"Set queue_type (now {topology.queue_type}) back, or drain and delete the queues"
            ) from error

    def counts(self, queue: str) -> QueueCounts | None:
        """See ``QueueAdmin``."""
        try:
            answer = self._channel.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return None
        return QueueCounts(answer.message_count, answer.consumer_count)

    def fetch(self, queue: str) -> FetchedMessage | None:
        """See ``QueueAdmin``."""
        message = self._channel.basic_get(queue)
        if message is None:
            return None
        delivery = message.delivery_info
        headers = message.headers or {}
        return FetchedMessage(message.body or b"", delivery["delivery_tag"], delivery["redelivered"], headers)

    def delete(self, topology: Topology) -> bool:
        """See ``QueueAdmin``.

        RabbitMQ accepts no conditions for quorum queues: there the caller's own check must do.
        """
        try:
            for _, name in topology.queues():
                self._channel.queue_delete(name, if_unused=topology.queue_type == "classic")
        except amqp.PreconditionFailed:
            return False
        return True

    def set_aside(self, topology: Topology, partition: int, queue: str) -> None:
        """See ``QueueAdmin``."""
        for bucket in topology.buckets(partition):
            self._channel.queue_unbind(queue, topology.exchange, str(bucket))
        if self.counts(queue) == QueueCounts(0, 0):
            classic = topology.queue_type == "classic"  # as in ``delete``
            self._channel.queue_delete(queue, if_unused=classic, if_empty=classic)


class RabbitOwnQueue:
    """An ``OwnQueue`` at RabbitMQ: exclusive to the connection, deleted with it."""

    def __init__(self, connection: RabbitConnection, on_body: OnBody, exchange: str = "") -> None:
        self._connection = connection
        """The connection that the queue belongs to."""
        self._binder: Any = None
        """A channel for bindings alone, opened at the first: the broker processes a channel's frames in their order."""
        channel = connection.channel()
        arguments = {"x-max-length": CONTROL_QUEUE_MAX_LENGTH} if exchange else None
        self.name: str = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=arguments).queue
        """The name that the broker gave the queue."""
        if exchange:
            channel.queue_bind(self.name, exchange)
        channel.basic_consume(self.name, callback=lambda message: on_body(message.body or b""), no_ack=True)

    def bind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``. There may be ten thousand keys, so none is waited for."""
        channel = self._binding_channel()
        for key in keys:
            channel.queue_bind(self.name, exchange, key, nowait=True)

    def unbind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``. AMQP has no unbinding without a reply: py-amqp discards replies that no call waits for."""
        channel = self._binding_channel()
        for key in keys:
            channel.send_method(spec.Queue.Unbind, "BsssF", (0, self.name, exchange, key, {}))

    def _binding_channel(self) -> Any:
        if self._binder is None:
            self._binder = self._connection.channel()
        return self._binder
