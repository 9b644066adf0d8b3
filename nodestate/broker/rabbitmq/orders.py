"""A scheduler's session at RabbitMQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.frames import InboundMessage
from nodestate.broker.rabbitmq.messages import order_message, publish, publish_again, returning_channel
from nodestate.broker.rabbitmq.own_queues import RabbitAnswerQueue
from nodestate.broker.sessions import OnBody, OnNodeBody
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.model.orders import Order
from nodestate.ports import Clock
from nodestate.text import count_text

READ_EVERY_COUNT: Final = 100
"""Orders that are sent between two looks for input: a broker that cannot send its answers accepts no more orders."""


class RabbitOrderSession:
    """An ``OrderSession`` at RabbitMQ. RabbitMQ returns orders that no queue takes, and drops overdue ones.

    Orders are published without confirms: the sender learns that an order was lost from its deadline, which it must
    watch in any case as the agent or the answer may be lost as well.
    """

    def __init__(
        self, config: Config, connection: RabbitConnection, on_answer: OnNodeBody, on_unroutable: OnBody, clock: Clock
    ) -> None:
        self.connection = connection
        """The connection that all goes over."""
        self._config = config
        """The cell's settings."""
        self._clock = clock
        """The clock for deadlines and pauses."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges."""
        self._answers = RabbitAnswerQueue(connection, self._topology, on_answer)
        """The queue that answers come back to."""
        self._channel = returning_channel(connection, self._send_to_former_agent)
        """The channel for orders."""
        self._former_channel = returning_channel(connection, lambda message: on_unroutable(message.body))
        """The channel for orders to agents of earlier versions."""
        self._heard_at = clock.monotonic()
        """Monotonic time at which the broker was last known to answer."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    @property
    def reply_to(self) -> str:
        """See ``OrderSession``."""
        return self._answers.name

    def is_stale(self) -> bool:
        """See ``OrderSession``."""
        try:
            self.connection.drain()
            self._ask_if_silent()
        except self.errors:
            return True
        return False

    def send(self, orders: Sequence[Order], bodies: Sequence[bytes], expires_s: float) -> None:
        """See ``OrderSession``. Raises ``BrokerUnavailableError`` if the broker accepts no messages at present."""
        message = order_message(expires_s)
        deadline = self._clock.monotonic() + self._config.broker_timeout_s
        for number, (order, body) in enumerate(zip(orders, bodies, strict=True)):
            if number % READ_EVERY_COUNT == 0:
                self.connection.drain()
                self.connection.check_not_blocked()
                if self._clock.monotonic() > deadline:
                    sent = f"{number} of {count_text(len(orders), 'order')}"
                    raise TimeoutError(f"{sent} sent in {self._config.broker_timeout_s:g} s")
            publish(self._channel, self._topology.node_orders, order.node, body, message)

    def pump(self, timeout_s: float) -> bool:
        """See ``OrderSession``. Raises an error if the connection leads nowhere."""
        came = self.connection.pump(timeout_s)
        if came:
            self._heard_at = self._clock.monotonic()
        else:
            self._ask_if_silent()
        return came

    def _send_to_former_agent(self, message: InboundMessage) -> None:
        """Send an order that came back to the exchange to which agents of earlier versions are bound."""
        publish_again(self._former_channel, self._topology.orders, message)

    def _ask_if_silent(self) -> None:
        """Ask the broker a question if it was silent for ``broker_timeout_s``. Raises an error if no answer comes.

        A load balancer may forget an idle connection, and swallow everything that is sent on it. An operator may have
        deleted the exchange for answers: the question binds the queue again. A broker that is short of memory answers
        no question, but said so before.
        """
        silent_s = self._clock.monotonic() - self._heard_at
        if self.connection.blocked or silent_s <= self._config.broker_timeout_s:
            return
        self._answers.bind_again()
        self._heard_at = self._clock.monotonic()

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()
