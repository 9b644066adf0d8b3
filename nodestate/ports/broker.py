"""The broker: queues of events to consumers, and of resync requests, orders and answers between agents and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, Protocol

from msgspec import Meta

from nodestate.model import Seconds
from nodestate.model.fields import QueueName
from nodestate.model.orders import Answer, Order
from nodestate.model.presence import Presence

ACTIVATION: Final = b"\xc1nodestate poke "
"""Body of an activation message, and the first bytes of a watermark message: the two marker messages that a consumer
sends through its partition's own queue. No event begins with 0xc1, a byte that msgpack never uses.
"""

QUEUE_BEGAN: Final = ACTIVATION + b"queue began"
"""Body of the marker message that says that a partition's queue was declared where there was none: every message of a
queue that existed before is lost.
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message that a consumer received and has not acknowledged."""

    partition: int
    body: bytes
    tag: object
    """The broker's name for the delivery, valid within its session."""
    session: int
    """Number of the connection, from 1. Deliveries of an earlier session cannot be acknowledged. Messages that came
    through no queue have session 0.
    """
    redelivered: bool = False
    cut_from: int = 0
    """Size of the whole body if it was too large and ``body`` is only its beginning; 0 if ``body`` is whole."""
    node: str = ""
    """The node whose user published the message, as the broker checked; empty if it is not known."""
    routed: bool = False
    """True if the message came through an exchange. Markers go straight to a queue, so it is no marker."""


@dataclass(frozen=True, slots=True)
class Resync:
    """A request to agents for full reports.

    It concerns the named ``nodes``, or all nodes of ``partitions`` in a layout of ``layout`` partitions, or, if both
    are empty, all nodes.
    """

    nodes: tuple[str, ...] = ()
    partitions: tuple[int, ...] = ()
    layout: Annotated[int, Meta(ge=1)] = 1
    """Number of partitions of the layout that ``partitions`` refers to."""
    jitter_s: Seconds = 0.0
    """Agents spread their answers over this many seconds."""
    census: QueueName = ""
    """Name of a queue. Agents then send only their version there, as a heartbeat, and publish no report."""


class RefusedDelivery(NamedTuple):
    """A message that a consumer refused."""

    delivery: Delivery
    reason: str
    """A frozen word, see ``BadEventError``."""
    detail: str
    """The reason for people."""


class Source(Protocol):
    """A consumer's input of messages. Methods raise ``BrokerUnavailableError``; the next call reconnects."""

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Return up to ``limit`` messages, in order within each partition.

        Returns when ``limit`` messages arrived or ``timeout_s`` seconds passed. If a partition's queue was deleted, the
        first message of the queue that replaces it is ``QUEUE_BEGAN``.
        """

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries. Those of an earlier session are skipped: the broker delivers them again."""

    def dead_letter(self, refused: Sequence[RefusedDelivery]) -> int:
        """Publish messages to the dead-letter queue, with their reasons in headers, and wait for the confirms.

        This does not acknowledge the deliveries. Returns how many of the first ones are in the queue; the caller tries
        the others again. Raises ``DeadLetterError`` if the dead-letter queue cannot take the first message now and the
        session goes on.
        """

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Send a marker message to a partition's queue, behind all messages there; not confirmed.

        Adapters send an activation message once per queue and session: the consumer that receives it learns that it is
        the active consumer of the queue.
        """

    def close(self) -> None:
        """Close the connection; unacknowledged messages are delivered again, to this or another consumer.

        The next ``receive`` reconnects.
        """


class Layouts(Protocol):
    """A consumer's access to the queues of a cell's layouts. A layout is named by its number of partitions."""

    def open(self, partitions: int) -> Source:
        """Connect to this consumer's share of a layout."""

    def found(self) -> list[int] | None:
        """Return all layouts that have queues at the broker, also layouts that were set aside.

        Returns None while the search is under way. Call it again then, at a later step.

        Raises ``BrokerUnavailableError``.
        """

    def set_aside(self, partitions: int, used: int) -> int:
        """Unbind the queues of a layout that no consumer reads, and delete them if all are empty.

        Does this only once the queues of the layout of ``used`` partitions exist. Returns the number of messages in the
        remaining queues. Raises ``BrokerUnavailableError``.
        """


class ResyncSender(Protocol):
    """Broadcasts resync requests to all agents of the cell."""

    def request_resync(self, resync: Resync) -> None:
        """Send the request to all agents that are connected now."""


class Sink(Protocol):
    """An agent's output of events. Methods raise ``BrokerUnavailableError`` if the sink cannot send."""

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Send one event of a node of this bucket into one queue of each layout that exists.

        Calls ``on_done(True)`` when the broker confirmed that the event is in all of these queues, ``on_done(False)``
        if the event was lost or rejected. Blocks only while the window of unconfirmed publishes is full.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed. Raises ``UnconfirmedError`` after ``timeout_s`` seconds."""

    def close(self) -> None:
        """Close the connection."""


class OrderCounts(NamedTuple):
    """Orders and presences for one node whose signatures were missing or wrong, since the agent started."""

    unsigned: int = 0
    """Number of messages that were accepted without a valid signature."""
    refused: int = 0
    """Number of messages that were refused because of their signatures."""


class AgentInbox(Protocol):
    """An agent's input: resync requests to all agents and orders for its nodes, and the way to answer both.

    Methods raise ``BrokerUnavailableError``; the next call reconnects. Messages that wait at a connection that breaks
    are lost.
    """

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Return the resync requests since the last call.

        Waits up to ``timeout_s`` seconds for the first, and returns early if an order arrives.
        """

    def answer_census(self, queue: str, node: str, body: bytes) -> None:
        """Send one node's version (the bytes of a heartbeat) to the queue of a census. The message may get lost."""

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Receive orders for these nodes too, from now on and after each reconnect."""

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """Receive no more orders for these nodes."""

    def orders(self) -> list[Order]:
        """Return the orders since the last call.

        An order that cannot be decoded is answered with ``bad-order`` if it names a queue for answers.
        """

    def order_counts(self, node: str) -> OrderCounts:
        """Return how many orders and presences for a node had no valid signature."""

    def announce(self, presence: Presence) -> None:
        """Send a presence to all agents that listen for its node, also to this one. The message may get lost."""

    def presences(self) -> list[Presence]:
        """Return the presences that the last call of ``orders`` found."""

    def answer(self, queue: str, answer: Answer) -> None:
        """Send the outcome of an order to the queue of its scheduler. The message may get lost."""


class Courier(Protocol):
    """A scheduler's way to agents and back.

    Methods raise ``BrokerUnavailableError``; the next call reconnects, with another ``reply_to``.
    """

    @property
    def reply_to(self) -> str:
        """The queue that answers arrive in."""

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send orders to the agents of their nodes. The broker drops an order that waits for ``expires_s`` seconds."""

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return the answers since the last call, with ``no-agent`` for orders to nodes without a listening agent.

        Waits up to ``timeout_s`` seconds for the first.
        """

    def refused_answers(self) -> tuple[int, str]:
        """Return how many answers were refused so far, and why the last one was, for people."""

    def close(self) -> None:
        """Close the connection; answers on their way are lost."""
