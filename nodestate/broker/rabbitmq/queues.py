"""The queues of a cell at RabbitMQ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import amqp

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.frames import decoded_headers
from nodestate.broker.rabbitmq.messages import PERSISTENT, send_marker
from nodestate.broker.sessions import DeadQueueFault, FetchedMessage, QueueCounts
from nodestate.broker.topology import DEAD_KEY, Topology
from nodestate.errors import BrokerUnavailableError, ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.ports import QUEUE_BEGAN

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
        if not layout and self._is_complete(topology):
            return
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
        except amqp.AccessRefused as error:
            raise BrokerUnavailableError(
                self._connection.broker,
                f"queues or exchanges of cell {topology.cell!r} are missing, and user {self._connection.user!r} may "
                f"not declare them: start 'nodestate consume', which declares them ({error.reply_text})",
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

    def _is_complete(self, topology: Topology) -> bool:
        """True if all exchanges and the dead-letter queue exist. The control exchange is declared last."""
        exchanges = reversed(topology.exchanges)
        return all(self._exists(exchange) for exchange, _ in exchanges) and self.counts(topology.dead) is not None

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
