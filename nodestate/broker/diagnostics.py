"""What ``nodestate doctor`` asks a broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nodestate.broker.link import AmqpLink, VirtualLink, open_link, unavailable
from nodestate.broker.topology import Topology
from nodestate.config import Config


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """Who answers. ``fails_over``: a partition whose consumer dies goes to another by itself."""

    broker: str
    transport: str
    product: str
    version: str
    fails_over: bool


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue: ``ready`` messages wait, ``consumers`` read it (None: the transport can't tell).

    ``partition`` is None for the dead-letter queue. ``missing``: it was not there.
    """

    partition: int | None
    queue: str
    ready: int
    consumers: int | None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, and why. ``at`` is 0 where the broker itself gave it up."""

    body: bytes
    reason: str
    detail: str
    partition: int | None
    at: int


def connect_check(config: Config) -> BrokerFacts:
    """Connect, and say who answered. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
    with _linked(config) as link:
        transport, product, version = link.facts
        return BrokerFacts(config.broker_safe, transport, product, version, isinstance(link, AmqpLink))


def queue_depths(config: Config) -> list[QueueDepth]:
    """Every partition's queue, then the dead-letter queue. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
    topology = Topology.of(config)
    depths: list[QueueDepth] = []
    with _linked(config) as link:
        for partition, name in [*topology.queues(), (None, topology.dead)]:
            depth = link.depth(name)
            if depth is None:
                depths.append(QueueDepth(partition, name, 0, 0, missing=True))
            else:
                depths.append(QueueDepth(partition, name, depth.ready, depth.consumers))
    return depths


def read_dead_letters(config: Config, limit: int) -> list[DeadLetter]:
    """Look at up to ``limit`` dead letters, oldest first, and leave them there."""
    letters: list[DeadLetter] = []
    with _linked(config) as link:
        while len(letters) < limit and (message := link.fetch(Topology.of(config).dead)) is not None:
            headers = message.headers
            reason = headers.get("reason") or headers.get("x-first-death-reason") or "unknown"
            partition = headers.get("partition")
            letters.append(
                DeadLetter(
                    message.body, str(reason), str(headers.get("detail", "")), partition, int(headers.get("at", 0))
                )
            )
    return letters


@contextmanager
def _linked(config: Config) -> Iterator[AmqpLink | VirtualLink]:
    link = open_link(config, "doctor")
    try:
        yield link
    except link.errors as error:
        raise unavailable(config, error) from error
    finally:
        link.close()
