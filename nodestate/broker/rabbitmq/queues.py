"""Queues at RabbitMQ: the queues of a cell, and the queues of a single connection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import amqp
from amqp import spec

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.frames import decoded_headers
from nodestate.broker.rabbitmq.messages import PERSISTENT, send_marker
from nodestate.broker.sessions import DeadQueueFault, FetchedMessage, OnBody, QueueCounts, accepted_body
from nodestate.broker.topology import DEAD_KEY, Topology
from nodestate.errors import ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.ports import QUEUE_BEGAN

CONTROL_QUEUE_MAX_LENGTH: Final = 1_000
"""Resync requests that wait for an agent that does not read; the broker drops older ones."""
OWN_QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024
"""Orders or answers that wait for a process that does not read; the broker drops older ones."""
DECLARATION_POLL_S: Final = 0.05
"""Pause between two looks whether another process has declared the whole cell."""
DECLARATION_POLLS_COUNT: Final = 20
"""Number of these looks. Afterwards the control exchange counts as deleted."""
MARKER_WAIT_S: Final = 1.0
"""Longest wait for the first message of a queue that is not empty."""


class RabbitQueues:
    """A ``QueueAdmin`` over an AMQP connection."""

    def __init__(self, connection: RabbitConnection) -> None:
        self._connection = connection
        """The connection that all goes over."""
        self._channel: Any = connection.control
        """The connection's channel for declarations."""
        self.began: set[int] = set()
        """See ``QueueAdmin``."""

    def declare(self, topology: Topology, *, layout: bool, mark_began: bool) -> None:
        """See ``QueueAdmin``. The cell is new if neither its control exchange nor its exchange for events exists.

        The control exchange is declared last. If only the exchange for events exists, another process is declaring the
        cell now, so this one waits for it; an operator may also have deleted the control exchange.
        """
        channel = self._channel
        try:
            new = not layout and not self._exists(topology.control) and not self._exists(topology.exchange)
            if not layout and not new:
                self._wait_for(topology.control)
            self.declare_shared(topology)
            if layout or new:
                for partition, name in topology.queues():
                    if self.counts(name) is None:
                        self.began.add(partition)
                    channel.queue_declare(
                        name, durable=True, auto_delete=False, arguments=topology.queue_arguments, nowait=True
                    )
                    self._bind(topology, partition)
            if mark_began:
                for partition in self.began:
                    send_marker(channel, topology.queue(partition), QUEUE_BEGAN, PERSISTENT)
            # Its answer is waited for: an error of an earlier declaration shows here.
            self._declare_control(topology, nowait=False)
        except amqp.PreconditionFailed as error:
            raise ConfigError(
                f"cell {topology.cell!r} has queues of another kind at the broker: {error.reply_text}. "
                f"Set queue_type (now {topology.queue_type}) back, or drain and delete the queues"
            ) from error

    def redeclare(self, topology: Topology, partitions: Iterable[int]) -> None:
        """See ``QueueAdmin``. Errors of the bindings show later, as errors of the session."""
        self.declare_shared(topology)
        self._declare_control(topology, nowait=True)
        for partition in partitions:
            self._bind(topology, partition)

    def declare_shared(self, topology: Topology) -> None:
        """Declare the exchanges but the control exchange, and the dead-letter queue. They exist when this returns.

        A dead-letter queue of another type or bound is left as it is: it may hold letters.
        """
        for exchange, kind in topology.exchanges:
            if exchange != topology.control:
                self._channel.exchange_declare(exchange, kind, durable=True, auto_delete=False, nowait=True)
        if self.counts(topology.dead) is None:
            arguments = topology.dead_queue_arguments
            # A process of another version may have declared it meanwhile, with other arguments.
            with suppress(amqp.PreconditionFailed):
                self._channel.queue_declare(topology.dead, durable=True, auto_delete=False, arguments=arguments)
        self._channel.queue_bind(topology.dead, topology.dead, DEAD_KEY)

    def counts(self, queue: str) -> QueueCounts | None:
        """See ``QueueAdmin``."""
        try:
            answer = self._channel.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return None
        return QueueCounts(answer.message_count, answer.consumer_count)

    def missing_exchanges(self, topology: Topology) -> list[str]:
        """See ``QueueAdmin``."""
        return [exchange for exchange, _ in topology.exchanges if not self._exists(exchange)]

    def dead_queue_faults(self, topology: Topology) -> frozenset[DeadQueueFault]:
        """See ``QueueAdmin``. AMQP does not tell a queue's arguments, but refuses to declare it with other ones.

        The broker names one argument that differs, so the arguments are tried in parts.
        """
        faults: set[DeadQueueFault] = set()
        every = topology.dead_queue_arguments
        for arguments in (every, *({name: value} for name, value in every.items() if len(every) > 1)):
            try:
                self._channel.queue_declare(topology.dead, durable=True, auto_delete=False, arguments=arguments)
            except amqp.PreconditionFailed as error:
                if "x-max-length-bytes" in error.reply_text and "current is none" in error.reply_text:
                    faults.add("unbounded")
                if "x-queue-type" in error.reply_text and topology.queue_type != "classic":
                    faults.add("classic")
            else:
                break
        return frozenset(faults)

    def layouts(self, topology: Topology) -> list[int]:
        """See ``QueueAdmin``. AMQP lists no queues, so this asks for the first queue of every possible layout.

        Takes a fifth of a second. RabbitMQ logs an error for each queue that does not exist.
        """
        return [
            partitions
            for partitions in range(1, BUCKETS_COUNT + 1)
            if self.counts(dataclasses.replace(topology, partitions=partitions).queue(0)) is not None
        ]

    def fetch(self, queue: str) -> FetchedMessage | None:
        """See ``QueueAdmin``."""
        message = self._channel.basic_get(queue)
        if message is None:
            return None
        delivery = message.delivery_info
        return FetchedMessage(
            message.body or b"", delivery["delivery_tag"], delivery["redelivered"], decoded_headers(message)
        )

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

    def set_aside(self, topology: Topology, partition: int, queue: str) -> int:
        """See ``QueueAdmin``."""
        for bucket in topology.buckets(partition):
            self._channel.queue_unbind(queue, topology.exchange, str(bucket))
        counts = self.counts(queue)
        # Counted once: the count of a quorum queue lags behind messages that are put back.
        return counts.ready - self._remove_first_marker(queue) if counts is not None and counts.ready else 0

    def _remove_first_marker(self, queue: str) -> int:
        """Remove the message ``QUEUE_BEGAN`` if it is the queue's first. Another message goes back to its place.

        Uses a consumer: a quorum queue with a single active consumer gives messages in no other way. Returns the number
        of messages that were removed.
        """
        messages: list[Any] = []
        channel = self._connection.channel()
        channel.basic_qos(0, 1, False)
        channel.basic_consume(queue, callback=messages.append)
        while not messages and self._connection.pump(MARKER_WAIT_S):
            pass
        removed = bool(messages) and messages[0].body == QUEUE_BEGAN
        if removed:
            channel.basic_ack(messages[0].delivery_info["delivery_tag"])
        channel.close()
        return int(removed)

    def _exists(self, exchange: str) -> bool:
        try:
            self._channel.exchange_declare(exchange, "direct", passive=True)
        except amqp.NotFound:
            return False
        return True

    def _declare_control(self, topology: Topology, *, nowait: bool) -> None:
        self._channel.exchange_declare(topology.control, "fanout", durable=True, auto_delete=False, nowait=nowait)

    def _wait_for(self, exchange: str) -> None:
        for _ in range(DECLARATION_POLLS_COUNT):
            if self._exists(exchange):
                return
            self._connection.pump(DECLARATION_POLL_S)

    def _bind(self, topology: Topology, partition: int) -> None:
        for bucket in topology.buckets(partition):
            self._channel.queue_bind(topology.queue(partition), topology.exchange, str(bucket), nowait=True)


class RabbitOwnQueue:
    """An ``OwnQueue`` at RabbitMQ: exclusive to the connection, deleted with it."""

    def __init__(self, connection: RabbitConnection, on_body: OnBody, exchange: str = "") -> None:
        self._connection = connection
        """The connection that the queue belongs to."""
        self._fanout = exchange
        """The fanout exchange that the queue is bound to; empty if to none."""
        self._bound: dict[str, dict[str, None]] = {}
        """By direct exchange, the keys that are bound."""
        self._binder: Any = None
        """A channel for bindings alone, opened at the first: the broker processes a channel's frames in their order."""
        channel = connection.channel()
        arguments = (
            {"x-max-length": CONTROL_QUEUE_MAX_LENGTH} if exchange else {"x-max-length-bytes": OWN_QUEUE_MAX_BYTES}
        )
        self.name: str = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=arguments).queue
        """The name that the broker gave the queue."""
        if exchange:
            channel.queue_bind(self.name, exchange)

        def take(message: Any) -> None:
            on_body(accepted_body(message.body or b"", self.name, message.cut_from))

        channel.basic_consume(self.name, callback=take, no_ack=True)

    def bind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``. There may be ten thousand keys, so none is waited for."""
        channel, bound = self._binding_channel(), self._bound.setdefault(exchange, {})
        for key in keys:
            channel.queue_bind(self.name, exchange, key, nowait=True)
            bound[key] = None

    def bind_again(self) -> None:
        """See ``OwnQueue``. Does nothing while the broker is blocked: it would read none of the frames."""
        if self._connection.blocked:
            return
        channel = self._binding_channel()
        if self._fanout:
            channel.exchange_declare(self._fanout, "fanout", durable=True, auto_delete=False, nowait=True)
            channel.queue_bind(self.name, self._fanout, nowait=True)
        for exchange, keys in self._bound.items():
            channel.exchange_declare(exchange, "direct", durable=True, auto_delete=False, nowait=True)
            for key in keys:
                channel.queue_bind(self.name, exchange, key, nowait=True)

    def unbind(self, exchange: str, keys: Iterable[str]) -> None:
        """See ``OwnQueue``. AMQP has no unbinding without a reply: py-amqp discards replies that no call waits for."""
        channel = self._binding_channel()
        for key in keys:
            self._bound.get(exchange, {}).pop(key, None)
            channel.send_method(spec.Queue.Unbind, "BsssF", (0, self.name, exchange, key, {}))

    def _binding_channel(self) -> Any:
        if self._binder is None:
            self._binder = self._connection.channel()
        return self._binder
