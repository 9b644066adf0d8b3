"""The seams: small Protocols, shaped by who uses them. Adapters stand in memcached.py, broker.py and testing.py."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from nodestate.model import NodeRecord
from nodestate.model.orders import Answer, Order

# -- store ----------------------------------------------------------------------------------------

MAX_TTL_S: Final = 30 * 24 * 3600  # memcached takes more than this for a date


class Item(msgspec.Struct, frozen=True, gc=False):
    """A stored value with its compare-and-swap id and the whole seconds it has left to live (None: for ever)."""

    value: bytes
    cas: int
    ttl_s: int | None


class Put(enum.Enum):
    """How a write treats what is there. There is no plain set: memcached deletes the old value when one fails."""

    ADD = "add"
    CAS = "cas"
    DELETE = "delete"


class Where(enum.Enum):
    """Where a design lives, by the setting that names it."""

    STORE = "store"
    STORE_B = "store_b"
    SQL = "sql"


class NodeRow(NamedTuple):
    """A node as a database keeps it: whose (``keys.prefix``), its slot, the commit that wrote it, and the record."""

    place: str
    epoch: int
    slot: int
    offset: int
    record: NodeRecord


class Write(NamedTuple):
    """One write: ``cas`` only for ``Put.CAS``; ``ttl_s`` 0 lives for ever, more than MAX_TTL_S for that long, and counts
    from the call, however long the write is under way. ``rows`` are stored in the same transaction if this is, and
    not at all otherwise: only a database takes them.
    """

    put: Put
    key: str
    value: bytes = b""
    cas: int = 0
    ttl_s: int = 0
    rows: tuple[NodeRow, ...] = ()


class Status(enum.Enum):
    """What became of a write. All four are expected; failures are exceptions or ``FULL``."""

    STORED = "stored"
    CONFLICT = "conflict"  # ADD: something is there. CAS: it changed
    MISSING = "missing"  # CAS, DELETE: nothing is there
    FULL = "full"  # the server had no memory for it; what was there stays


class Written(NamedTuple):
    """A write's outcome, with the new compare-and-swap id where it was stored (0, which no item ever has, where
    somebody wrote over it before the id could be asked).
    """

    status: Status
    cas: int = 0


class Store(Protocol):
    """One memcached server (or its double). Every call is one pipelined round trip, whatever its length.

    Raises ``StoreUnavailableError`` where the server does not answer (writes under way then have an
    unknown outcome) and ``ItemTooLargeError`` before anything is written. Not safe for several threads.
    """

    @property
    def name(self) -> str:
        """host:port, for people."""

    @property
    def max_value_bytes(self) -> int:
        """The largest value that fits an item of this server."""

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        """The items that are there; a key that is absent is not in the answer."""

    def write(self, writes: Sequence[Write]) -> list[Written]:
        """Carry out the writes in order; one outcome each."""

    def close(self) -> None:
        """Give back the connection. Using the store again reconnects."""


@runtime_checkable
class ClaimStore(Store, Protocol):
    """A store whose clock all who claim share: their own may differ, and its may not jump while it lives."""

    def server_time(self) -> float:
        """Seconds by the server's clock, at most a second behind it; comparable between clients while it is not restarted."""


# -- broker ---------------------------------------------------------------------------------------


ACTIVATION: Final = b"\xc1nodestate poke "
"""Body of an activation message, and the first bytes of a watermark message: the two marker messages that a consumer
sends through its partition's own queue. No event begins with 0xc1, a byte that msgpack never uses.
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message in a consumer's hands. ``session`` changes with each connection: older tags can't be acked."""

    partition: int
    body: bytes
    tag: object
    session: int
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Resync:
    """Asks agents for full reports: of the named ``nodes``, or of all nodes of ``partitions`` of a ``layout`` of so many, or
    (both empty) of all.

    Agents spread their answers over ``jitter_s`` seconds. ``census`` names a queue: agents then only say
    their version there, as a heartbeat, and publish no report.
    """

    nodes: tuple[str, ...] = ()
    partitions: tuple[int, ...] = ()
    layout: int = 1
    jitter_s: float = 0.0
    census: str = ""


class Source(Protocol):
    """Where a consumer takes messages from. Raises ``BrokerUnavailableError``; the next call reconnects."""

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages; returns when that many came or ``timeout_s`` passed. In order per partition."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these. Those of an older session are passed over: they come again."""

    def dead_letter(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Publish the message, reason in a header, to the dead-letter queue and wait for the confirm. Not an ack.

        Raises ``DeadLetterError`` where it can't be had now and the session goes on.
        """

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Put a message of the consumer's own into a partition's queue, behind all that is there; not confirmed.

        Adapters do this once for each queue at each session: so the active consumer learns that it is the one.
        """

    def close(self) -> None:
        """Close the connection; what was not acked comes again, here or elsewhere. The next ``receive`` reconnects."""


class Layouts(Protocol):
    """A consumer's way to the queues of a cell's layouts, each named by its number of partitions."""

    def open(self, partitions: int) -> Source:
        """Connect to this consumer's share of a layout."""

    def delete(self, partitions: int) -> bool:
        """Delete the queues of a layout with what waits there, which is of no use: it is in those of every other layout, too.
        False, and nothing is deleted, where somebody consumes from one, or where that can't be told. Raises ``BrokerUnavailableError``.
        """

    def set_aside(self, partitions: int, used: int) -> int:
        """Let no more events into the queues of a layout that nobody consumes from, once those of a layout that is ``used`` are there,
        and delete those that are empty. Returns how many messages wait in the others. Raises ``BrokerUnavailableError``.
        """


class ResyncSender(Protocol):
    """Broadcasts to all agents of the cell."""

    def request_resync(self, resync: Resync) -> None:
        """Send it; delivered to the agents that are connected now."""


class Sink(Protocol):
    """Where agents publish to. Never blocks for a confirm; raises ``BrokerUnavailableError`` when it can't send."""

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Send one event of a node of this bucket, into one queue of each layout that there is; ``on_done(True)`` when the
        broker confirmed that it is in all of them, ``on_done(False)`` when it was lost or refused.

        Blocks only while the window of unconfirmed publishes is full.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed. Raises ``UnconfirmedError``."""

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Resync requests that came since the last call; waits up to ``timeout_s`` for the first."""

    def close(self) -> None:
        """Close the connection."""


@runtime_checkable
class CensusTaker(Protocol):
    """A sink that can also answer a census. Those that can't leave their nodes out of it."""

    def answer_census(self, queue: str, body: bytes) -> None:
        """Say one node's version (a heartbeat's bytes) to the queue that a ``Resync`` named; may get lost."""


@runtime_checkable
class OrderTaker(Protocol):
    """A sink that also brings orders to its nodes. They wake ``Sink.resyncs``; those that wait at a connection that breaks
    are lost.
    """

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Take orders for these nodes too, from now on and after each reconnect."""

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """Leave orders for these nodes to others."""

    def orders(self) -> list[Order]:
        """Orders that came since the last call; what is not understood was answered, where it said to whom."""

    def answer(self, queue: str, answer: Answer) -> None:
        """Tell who gave an order what became of it; may get lost."""


class Courier(Protocol):
    """A scheduler's way to agents and back. Raises ``BrokerUnavailableError``; the next call reconnects, to another
    ``reply_to``.
    """

    @property
    def reply_to(self) -> str:
        """The queue that answers come back to."""

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send them to their nodes' agents, each to be dropped on the way when ``expires_s`` seconds are over."""

    def answers(self, timeout_s: float) -> list[Answer]:
        """Answers that came since the last call, ``no-agent`` for orders that nobody listens for among them; waits up to
        ``timeout_s`` for the first.
        """

    def close(self) -> None:
        """Close the connection; answers under way are lost."""


# -- time -----------------------------------------------------------------------------------------


class Clock(Protocol):
    """Time as an argument: tests own one."""

    def monotonic(self) -> float:
        """Seconds, for ages; never goes back."""

    def time(self) -> float:
        """Seconds since 1970, advisory."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)
