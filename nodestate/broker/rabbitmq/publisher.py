"""An agent's session at RabbitMQ."""

from __future__ import annotations

from typing import Final

import structlog

from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.delivery_tracking import Confirms
from nodestate.broker.rabbitmq.messages import confirming_channel, event_message, publish, send
from nodestate.broker.rabbitmq.own_queues import RabbitControlQueue, RabbitOrderQueue
from nodestate.broker.sessions import OnBody, OnDone, OnNodeBody
from nodestate.broker.topology import Topology
from nodestate.broker.users import has_rights_of_nodes_only, node_of
from nodestate.config import Config
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.ports import Clock
from nodestate.text import count_text

LOG_RETURNED_S: Final = 60.0
"""Seconds for which further events that come back are not logged."""


class RabbitPublisherSession:
    """A ``PublisherSession`` at RabbitMQ: publishes on a channel with confirms, with a bounded number unconfirmed."""

    def __init__(
        self, config: Config, connection: RabbitConnection, heartbeat_s: float, clock: Clock, watch: ConfirmWatch
    ) -> None:
        self.connection = connection
        """The connection that all goes over."""
        self._window = config.confirm_window
        """Largest number of unconfirmed events."""
        self._timeout_s = config.broker_timeout_s
        """Longest wait for a confirm while the window is full."""
        self._clock = clock
        """The clock for heartbeats."""
        self._confirms = Confirms()
        """Events that are not yet confirmed."""
        self._watch = watch
        """Is told of events and answers."""
        self._channel = confirming_channel(connection, self._on_settled, self._on_returned)
        """The channel for events."""
        self._message = event_message(connection.user if node_of(connection.user) else "")
        """The message that carries each event's body in turn."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges."""
        self._exchange = self._topology.exchange
        """The exchange for events."""
        self._keys = [str(bucket) for bucket in range(BUCKETS_COUNT)]
        """The routing key of each bucket."""
        self._beat_s = heartbeat_s / 2
        """Seconds between two heartbeats."""
        self._log_returned_at = clock.monotonic()
        """Monotonic time from which an event that comes back is logged again."""
        self._beat_at = clock.monotonic()
        """Monotonic time of the next heartbeat."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    @property
    def unconfirmed(self) -> int:
        """See ``PublisherSession``."""
        return len(self._confirms)

    def is_stale(self) -> bool:
        """See ``PublisherSession``. A connection that breaks while nothing is unconfirmed loses nothing.

        Called before each publish, not only when the window is full, so that lost events are known at once.
        """
        idle = not self._confirms
        try:
            self.connection.drain()
        except self.errors:
            if idle:
                return True
            raise
        return False

    @property
    def alarm(self) -> str:
        """See ``PublisherSession``."""
        return self.connection.alarm

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        """See ``PublisherSession``.

        A broker that is short of memory reads nothing from the connection. An event that is sent nevertheless would
        wait in the socket, and the publisher for its confirm, until a time-out that does not name the cause.
        """
        self.connection.check_not_blocked()
        while len(self._confirms) >= self._window:
            if not self.connection.pump(self._timeout_s):
                self.connection.check_not_blocked()
                publishes = count_text(len(self._confirms), "publish", "publishes")
                raise TimeoutError(f"{publishes} unconfirmed, and none for {self._timeout_s:g} s")
        publish(self._channel, self._exchange, self._keys[bucket], body, self._message)
        self._confirms.sent(on_done, body)
        self._watch.sent()

    def control_queue(self, on_body: OnBody) -> RabbitControlQueue:
        """See ``PublisherSession``."""
        return RabbitControlQueue(self.connection, self._topology, on_body)

    def order_queue(self, on_order: OnNodeBody) -> RabbitOrderQueue:
        """See ``PublisherSession``."""
        return RabbitOrderQueue(self.connection, self._topology, on_order)

    def announce(self, node: str, body: bytes) -> None:
        """See ``PublisherSession``."""
        send(self.connection, self._topology.node_orders, node, body)

    def answer(self, queue: str, node: str, body: bytes) -> None:
        """See ``PublisherSession``.

        A queue of an earlier version is bound to no exchange. A user with the rights of its nodes only may not publish
        to such a queue, and the broker would end the session, so the answer is not sent.
        """
        token = self._topology.answer_token(queue)
        if token:
            send(self.connection, self._topology.answers, f"{token}.{node}", body)
        elif has_rights_of_nodes_only(self.connection.user):
            structlog.get_logger("nodestate.broker").warning(
                "an answer is not sent: its queue is not one of the cell, or of a scheduler of an earlier version",
                queue=queue,
                node=node,
            )
        else:
            send(self.connection, "", queue, body)

    def pump(self, timeout_s: float) -> bool:
        """See ``PublisherSession``. Also keeps the connection's heartbeat."""
        came = self.connection.pump(timeout_s)
        now = self._clock.monotonic()
        if now >= self._beat_at:
            self.connection.beat()
            self._beat_at = now + self._beat_s
        return came

    def close(self) -> None:
        """Close the connection; unconfirmed events are reported as lost."""
        self.connection.close()
        self._confirms.lose()

    def _on_settled(self, tag: int, multiple: bool, ok: bool) -> None:
        self._confirms.settle(tag, multiple, ok)
        self._watch.answered(ok, len(self._confirms))

    def _on_returned(self, body: bytes) -> None:
        """Report one event as refused. The others go on, also to the other partitions."""
        self._confirms.returned(body)
        now = self._clock.monotonic()
        if now >= self._log_returned_at:
            self._log_returned_at = now + LOG_RETURNED_S
            structlog.get_logger("nodestate.broker").warning(
                "an event came back, because its partition has no queue; it is sent again: start 'nodestate consume', "
                "which declares missing queues",
                exchange=self._exchange,
            )

    def drop(self) -> None:
        """Give up the connection; unconfirmed events are reported as lost."""
        self.connection.drop()
        self._confirms.lose()
