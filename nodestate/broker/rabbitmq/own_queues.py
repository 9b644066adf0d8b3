"""Queues of a single connection at RabbitMQ: exclusive to it, and deleted with it. Their messages need no ack."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final

from amqp import spec

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.frames import routing_key
from nodestate.broker.sessions import OnBody, OnNodeBody, accepted_body
from nodestate.broker.topology import Topology
from nodestate.broker.users import has_rights_of_nodes_only

CONTROL_QUEUE_MAX_LENGTH: Final = 1_000
"""Resync requests that wait for an agent that does not read; the broker drops older ones."""
OWN_QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024
"""Orders or answers that wait for a process that does not read; the broker drops older ones."""


class RabbitControlQueue:
    """The ``OwnQueue`` for an agent's resync requests."""

    def __init__(self, connection: RabbitConnection, topology: Topology, on_body: OnBody) -> None:
        self._connection = connection
        """The connection that the queue belongs to."""
        self._exchange = topology.control
        """The control exchange."""
        self._channel: Any = connection.channel()
        """The channel that consumes the queue."""
        self.name = _declare(self._channel, {"x-max-length": CONTROL_QUEUE_MAX_LENGTH})
        """The name that the broker gave the queue."""
        self._channel.queue_bind(self.name, self._exchange)
        _consume(self._channel, self.name, lambda body, _: on_body(body))

    def bind_again(self) -> None:
        """See ``OwnQueue``. Does nothing while the broker is blocked: it would read none of the frames."""
        if not self._connection.blocked:
            self._channel.queue_bind(self.name, self._exchange, nowait=True)


class RabbitOrderQueue:
    """An ``OrderQueue`` at RabbitMQ.

    Unless the user has the rights of its nodes only, the queue is also bound to the exchange of earlier versions. A
    message comes once, even if both exchanges route it.
    """

    def __init__(self, connection: RabbitConnection, topology: Topology, on_order: OnNodeBody) -> None:
        self._connection = connection
        """The connection that the queue belongs to."""
        former = () if has_rights_of_nodes_only(connection.user) else (topology.orders,)
        self._exchanges = (topology.node_orders, *former)
        """The exchanges that the queue is bound to."""
        self._nodes: dict[str, None] = {}
        """Nodes whose orders the queue gets."""
        channel = connection.channel()
        self.name = _declare(channel, {"x-max-length-bytes": OWN_QUEUE_MAX_BYTES})
        """The name that the broker gave the queue."""
        _consume(channel, self.name, lambda body, message: on_order(body, routing_key(message)))
        self._binder: Any = connection.channel()
        """A channel for bindings alone: the broker processes a channel's frames in their order."""

    def bind(self, nodes: Iterable[str]) -> None:
        """See ``OrderQueue``. There may be ten thousand nodes, so no reply is waited for."""
        for node in nodes:
            self._nodes[node] = None
            for exchange in self._exchanges:
                self._binder.queue_bind(self.name, exchange, node, nowait=True)

    def unbind(self, nodes: Iterable[str]) -> None:
        """See ``OrderQueue``. AMQP has no unbinding without a reply: py-amqp discards replies that no call awaits."""
        for node in nodes:
            self._nodes.pop(node, None)
            for exchange in self._exchanges:
                self._binder.send_method(spec.Queue.Unbind, "BsssF", (0, self.name, exchange, node, {}))

    def bind_again(self) -> None:
        """See ``OwnQueue``. Does nothing while the broker is blocked, as above."""
        if not self._connection.blocked:
            self.bind(list(self._nodes))


class RabbitAnswerQueue:
    """The ``OwnQueue`` for the answers to one connection.

    Agents publish to the exchange for answers. Agents of earlier versions publish to the queue by its name; no node
    stands in their routing key.
    """

    def __init__(self, connection: RabbitConnection, topology: Topology, on_answer: OnNodeBody) -> None:
        token = uuid.uuid4().hex
        self.name = topology.answer_queue(token)
        """The name of the queue."""
        self._channel: Any = connection.channel()
        """The channel that consumes the queue."""
        self._exchange, self._key = topology.answers, f"{token}.#"
        """The exchange and the key that the queue is bound to."""
        _declare(self._channel, {"x-max-length-bytes": OWN_QUEUE_MAX_BYTES}, self.name)
        self.bind_again()
        prefix = f"{token}."

        def take(body: bytes, message: Any) -> None:
            key = routing_key(message)
            on_answer(body, key[len(prefix) :] if key.startswith(prefix) else "")

        _consume(self._channel, self.name, take)

    def bind_again(self) -> None:
        """See ``OwnQueue``. Waits for the server's reply, so it also shows whether the connection works."""
        self._channel.queue_bind(self.name, self._exchange, self._key)


def _declare(channel: Any, arguments: dict[str, int], name: str = "") -> str:
    declared: str = channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=arguments).queue
    return declared


def _consume(channel: Any, queue: str, on_message: Callable[[bytes, Any], None]) -> None:
    def take(message: Any) -> None:
        on_message(accepted_body(message.body or b"", queue, message.cut_from), message)

    channel.basic_consume(queue, callback=take, no_ack=True)
