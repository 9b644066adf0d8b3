"""The one session type behind which the transports stand, and the values that sessions return.

``rabbitmq/`` and ``virtual/`` each implement these protocols. ``connector.py`` chooses between the two, and alone
decides what happens when a connection is opened or lost. The other modules of this package see these protocols only::

    KombuSource    -> ConsumerSession         KombuLayouts, diagnostics -> QueueAdmin
    KombuSink      -> PublisherSession        KombuResyncSender, census -> CellSession itself
    KombuCourier   -> OrderSession

The life of a session: connected --close, drop--> gone. It cannot be connected again; its user opens another one. A
session is not safe for several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import structlog

from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError
from nodestate.masking import safe_text
from nodestate.model.limits import MAX_BODY_BYTES
from nodestate.model.orders import Order
from nodestate.ports import ACTIVATION, Clock, Delivery
from nodestate.text import error_text

OnDone = Callable[[bool], None]
"""Called once for each published event: True if the broker confirmed the event, False if it was lost or refused."""
OnBody = Callable[[bytes], None]
"""Called with the body of each message that arrives in a queue of the session's own."""
OnNodeBody = Callable[[bytes, str], None]
"""Called with the body of each message that arrives in a queue of the session's own, and with the node in its routing
key; empty if the key names no node. RabbitMQ limits the routing keys of an agent's user, and not the bodies, so a body
must name the same node.
"""
DeadQueueFault = Literal["classic", "unbounded"]
"""``classic``: the setting ``queue_type`` asks for another type. ``unbounded``: the queue was declared without a limit.
"""
REFUSED_BODY: Final = b"\xc1"
"""Stands for a body that was too large to keep. No decoder accepts it, as msgpack never uses this byte."""


LOGIN_REFUSED: Final = "ACCESS_REFUSED - Login was refused"
"""Part of RabbitMQ's answer to a wrong user or password."""


def unavailable(config: Config, error: BaseException) -> BrokerUnavailableError:
    """The exception to raise in place of a transport's own ``error``, without the passwords of the broker's URLs."""
    cause = safe_text(error_text(error), config.broker)
    if LOGIN_REFUSED in cause:
        cause = "check the user and the password in the setting broker, and the rights of the user for the virtual host"
        return BrokerUnavailableError(config.broker_safe, cause, refuses_login=True)
    return BrokerUnavailableError(config.broker_safe, cause)


def accepted_body(body: bytes, queue: str, cut_from: int = 0) -> bytes:
    """The body of a message in a queue of a session's own, or ``REFUSED_BODY`` if it was too large."""
    size = cut_from or len(body)
    if size <= MAX_BODY_BYTES:
        return body
    structlog.get_logger("nodestate.broker").warning(
        "a message is refused, because it is too large", queue=queue, size=size, limit=MAX_BODY_BYTES
    )
    return REFUSED_BODY


class ServerFacts(NamedTuple):
    """Facts about the server at the other end.

    ``fails_over``: a queue whose consumer dies goes to another by itself.
    """

    transport: str
    product: str
    version: str
    fails_over: bool


class FetchedMessage(NamedTuple):
    """A message that was fetched from a queue. ``tag`` is what acks it."""

    body: bytes
    tag: Any
    redelivered: bool
    headers: Mapping[str, Any]
    cut_from: int = 0
    """See ``Delivery``."""


class QueueCounts(NamedTuple):
    """Number of ready messages in a queue, and of its consumers (None if the transport cannot count them)."""

    ready: int
    consumers: int | None


class TransportSession(Protocol):
    """The base of all sessions: the errors of the transport, and two ways to end."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """Exception classes that the transport raises. After one of them the state of the connection is unknown."""

    def close(self) -> None:
        """Close the connection properly. Messages that were not acked go back to their queue, in order."""

    def drop(self) -> None:
        """Give up the connection without notifying the server, which may be gone."""


class OwnQueue(Protocol):
    """A queue that only this session reads, and that the broker deletes with the connection. Messages need no ack."""

    @property
    def name(self) -> str:
        """The queue's name, for the address of answers."""

    def bind_again(self) -> None:
        """Bind the queue again: an operator may have deleted an exchange, and a consumer may have declared it again.

        If the exchange is missing, a later call of the session raises one of its errors; the next session declares it.
        """


class OrderQueue(OwnQueue, Protocol):
    """The queue for an agent's orders."""

    def bind(self, nodes: Iterable[str]) -> None:
        """Route the orders for these nodes into the queue. Does not wait for the server's reply."""

    def unbind(self, nodes: Iterable[str]) -> None:
        """Stop routing the orders for these nodes into the queue. Does not wait for the server's reply."""


class QueueAdmin(Protocol):
    """Declares, inspects and deletes the queues of a cell."""

    @property
    def began(self) -> Collection[int]:
        """Partitions whose queue ``declare`` found missing, and declared."""

    def declare(self, topology: Topology, *, layout: bool, mark_began: bool) -> None:
        """Declare the cell's exchanges, and the queues of its layout if ``layout`` is True or the cell is new.

        Declares nothing if ``layout`` is False and nothing is missing, so a user without the permission to declare can
        connect. With ``mark_began``, puts the message ``QUEUE_BEGAN`` into each queue that was missing. Raises
        ``ConfigError`` if the broker has a queue or an exchange of that name with other properties, and
        ``BrokerUnavailableError`` if something is missing that the user may not declare.
        """

    def redeclare(self, topology: Topology, partitions: Iterable[int]) -> None:
        """Declare exchanges and dead-letter queue again, and bind the queues of ``partitions`` again, which exist.

        An operator may have deleted them. Raises an error of the transport if a queue is missing.
        """

    def counts(self, queue: str) -> QueueCounts | None:
        """Number of messages and consumers of a queue; None if the queue does not exist."""

    def missing_exchanges(self, topology: Topology) -> list[str]:
        """The exchanges of the cell that do not exist; empty if the transport cannot tell."""

    def dead_queue_faults(self, topology: Topology) -> frozenset[DeadQueueFault]:
        """The properties of the dead-letter queue, which exists, that a process of this version would not declare."""

    def layouts(self, topology: Topology) -> list[int]:
        """All layouts of the cell that have queues, also queues that are not bound."""

    def fetch(self, queue: str) -> FetchedMessage | None:
        """Fetch one message, or None if the queue is empty.

        A message that is not acked goes back when the session ends.
        """

    def delete(self, topology: Topology) -> bool:
        """Delete the queues of a layout with the messages that wait in them.

        Returns False if a queue has a consumer: that queue and those after it stay, and the session is of no use.
        """

    def set_aside(self, topology: Topology, partition: int, queue: str) -> int:
        """Unbind a partition's queue so that it gets no new events. Returns the number of events in it."""


class ConsumerSession(TransportSession, Protocol):
    """Receives and acks the messages of a member's partitions."""

    def start(self, first: Sequence[int], standby: Sequence[int], began: dict[int, float]) -> None:
        """Subscribe the ``first`` partitions now, and the ``standby`` partitions after ``standby_s`` seconds.

        Args:
            first: partitions.
            standby: partitions.
            began: by partition whose queue replaces one that was deleted, the monotonic time until which the first
                delivery must be preceded by ``QUEUE_BEGAN``. The session removes entries, and adds one when it learns
                that a queue was deleted.
        """

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages, in order within a partition; waits up to ``timeout_s`` for them."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack deliveries of this session."""

    def dead_letter(self, letters: Sequence[tuple[bytes, Mapping[str, object]]]) -> int:
        """Publish messages, each with headers, to the dead-letter queue, and wait until the broker has them.

        Returns how many of the first ones are in the queue. Raises ``DeadLetterError`` if not even the first one is.
        """

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Publish a marker message to a partition's queue, unconfirmed."""


class PublisherSession(TransportSession, Protocol):
    """Publishes an agent's events, and brings it resync requests and orders."""

    @property
    def unconfirmed(self) -> int:
        """Number of events that are published and not yet confirmed."""

    @property
    def alarm(self) -> str:
        """Text that says why the broker takes no messages at present; empty if it takes them."""

    def is_stale(self) -> bool:
        """Process the frames that have arrived. True if the connection broke while no publish was unconfirmed."""

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        """Publish one event. Blocks only while ``confirm_window`` events are unconfirmed.

        Raises ``BrokerUnavailableError`` if the broker takes no messages at present.
        """

    def control_queue(self, on_body: OnBody) -> OwnQueue:
        """Open the queue for resync requests."""

    def order_queue(self, on_order: OnNodeBody) -> OrderQueue:
        """Open the queue for orders and presences."""

    def announce(self, node: str, body: bytes) -> None:
        """Publish a presence of a node. It may get lost."""

    def answer(self, queue: str, node: str, body: bytes) -> None:
        """Publish a node's answer to the queue that an order or a census named. It may get lost."""

    def pump(self, timeout_s: float) -> bool:
        """Process one message that the broker sent; False if none came within ``timeout_s``."""


class OrderSession(TransportSession, Protocol):
    """Sends a scheduler's orders, and brings it the answers."""

    @property
    def reply_to(self) -> str:
        """Name of the queue for answers."""

    def is_stale(self) -> bool:
        """Process the frames that have arrived. True if the connection broke meanwhile."""

    def send(self, orders: Sequence[Order], bodies: Sequence[bytes], expires_s: float) -> None:
        """Send orders, each with its encoded body.

        Each is dropped after ``expires_s`` seconds if the transport can do so.
        """

    def pump(self, timeout_s: float) -> bool:
        """Process one message that the broker sent; False if none came within ``timeout_s``."""


class CellSession(TransportSession, Protocol):
    """One connection to a broker: simple calls of its own, and the sessions for the three jobs that have state."""

    @property
    def url(self) -> str:
        """The URL of the server, one of the setting ``broker``."""

    @property
    def facts(self) -> ServerFacts:
        """Product and version of the server."""

    @property
    def queues(self) -> QueueAdmin:
        """The cell's queues."""

    def send(self, exchange: str, key: str, body: bytes) -> None:
        """Publish a message that may get lost."""

    def send_checked(self, exchange: str, key: str, body: bytes) -> None:
        """Publish, and return after a round trip to the server: a dead connection raises here, not later.

        Raises ``BrokerUnavailableError`` if the broker accepts no messages at present.
        """

    def answer_queue(self, on_answer: OnNodeBody) -> OwnQueue:
        """Open a queue for answers."""

    def pump(self, timeout_s: float) -> bool:
        """Process one message that the broker sent; False if none came within ``timeout_s``."""

    def consumer(self, number: int, clock: Clock) -> ConsumerSession:
        """Use this connection for a consumer; its deliveries carry ``number`` as their session."""

    def publisher(self, heartbeat_s: float, clock: Clock, watch: ConfirmWatch) -> PublisherSession:
        """Use this connection for an agent's events; ``heartbeat_s`` is the heartbeat that it was opened with.

        The session tells ``watch`` of its events and of the broker's answers.
        """

    def orders(self, on_answer: OnNodeBody, on_unroutable: OnBody, clock: Clock) -> OrderSession:
        """Use this connection for a scheduler's orders.

        Within ``pump`` and ``send``, ``on_answer`` gets each answer, and ``on_unroutable`` the body of each
        order for a node that no agent listens for.
        """
