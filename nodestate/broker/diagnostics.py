"""Facts about a broker, its queues and its dead letters, for ``nodestate doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodestate.broker.connector import one_off_session
from nodestate.broker.sessions import DeadQueueFault, FetchedMessage
from nodestate.broker.topology import MAX_DETAIL_CHARS, Topology
from nodestate.config import Config
from nodestate.text import kind_text

MAX_REASON_CHARS: Final = 100
"""Characters of a dead letter's reason that are read."""


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """Which server answered. ``fails_over``: a partition whose consumer dies goes to another one by itself."""

    broker: str
    transport: str
    product: str
    version: str
    fails_over: bool


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue: ``ready`` messages wait in it, ``consumers`` read it (None: the transport cannot count them).

    ``partition`` is None for the dead-letter queue. ``missing``: the queue does not exist.
    """

    partition: int | None
    queue: str
    ready: int
    consumers: int | None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, and why. ``at`` is in seconds since 1970; 0 if the broker itself gave it up."""

    body: bytes
    reason: str
    detail: str
    partition: int | None
    at: int


def connect_check(config: Config) -> BrokerFacts:
    """Connect, and return which server answered. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
    with one_off_session(config, "doctor") as session:
        return BrokerFacts(config.broker_safe, *session.facts)


def missing_exchanges(config: Config) -> list[str]:
    """Exchanges of the cell that do not exist; empty if none exists, because the cell is new then.

    Every other function here declares missing exchanges when it connects, so this one must be called first. Raises
    ``BrokerUnavailableError`` or ``ConfigError``.
    """
    topology = Topology.of(config)
    with one_off_session(config, "doctor", declare=False) as session:
        missing = session.queues.missing_exchanges(topology)
    return missing if len(missing) < len(topology.exchanges) else []


def dead_queue_faults(config: Config) -> frozenset[DeadQueueFault]:
    """The properties of the dead-letter queue that a process of this version would not declare; see the type."""
    with one_off_session(config, "doctor") as session:
        return session.queues.dead_queue_faults(Topology.of(config))


def check_accepts_messages(config: Config) -> None:
    """Raise ``BrokerUnavailableError`` if the broker takes no messages, because it is short of memory or disk."""
    with one_off_session(config, "doctor") as session:
        if session.facts.fails_over:  # RabbitMQ: it tells a connection only once that publishes
            session.send_checked("", f"nodestate.{config.cell}.no-queue", b"")


def layouts_with_queues(config: Config) -> list[int]:
    """All layouts of the cell that have queues, also queues into which no event is routed.

    Raises ``BrokerUnavailableError`` or ``ConfigError``.
    """
    with one_off_session(config, "doctor") as session:
        return session.queues.layouts(Topology.of(config))


def queue_depths(config: Config) -> list[QueueDepth]:
    """Every partition's queue, then the dead-letter queue. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
    topology = Topology.of(config)
    depths: list[QueueDepth] = []
    with one_off_session(config, "doctor") as session:
        for partition, name in [*topology.queues(), (None, topology.dead)]:
            counts = session.queues.counts(name)
            if counts is None:
                depths.append(QueueDepth(partition, name, 0, 0, missing=True))
            else:
                depths.append(QueueDepth(partition, name, counts.ready, counts.consumers))
    return depths


def read_dead_letters(config: Config, limit: int) -> list[DeadLetter]:
    """Read up to ``limit`` dead letters, oldest first, and leave them in their queue."""
    dead = Topology.of(config).dead
    letters: list[DeadLetter] = []
    with one_off_session(config, "doctor") as session:
        while len(letters) < limit and (message := session.queues.fetch(dead)) is not None:
            letters.append(dead_letter_of(message))
    return letters


def dead_letter_of(message: FetchedMessage) -> DeadLetter:
    """Read a message of the dead-letter queue. Every publisher can write any headers there."""
    headers = message.headers
    partition, at = headers.get("partition"), headers.get("at")
    return DeadLetter(
        message.body,
        _text(headers.get("reason") or headers.get("x-first-death-reason") or "unknown", MAX_REASON_CHARS),
        _text(headers.get("detail", ""), MAX_DETAIL_CHARS),
        partition if isinstance(partition, int) else None,
        at if isinstance(at, int) else 0,
    )


def _text(header: object, max_chars: int) -> str:
    """The text of a header; its kind in words if it is no text."""
    return header[:max_chars] if isinstance(header, str) else kind_text(header)
