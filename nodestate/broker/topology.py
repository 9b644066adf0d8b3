"""Every name at the broker, as a function of the cell. The map::

    exchange nodestate.{cell}.events             direct   routing key = bucket of the node
    queue    nodestate.{cell}.{partitions}.{n}            one per partition of each layout, durable, with one active
                                                          consumer at a time; bound to the partition's buckets
    exchange nodestate.{cell}.dead               direct   routing key "dead"
    queue    nodestate.{cell}.dead                        messages that were given up, the reason in a header
    exchange nodestate.{cell}.control            fanout   one exclusive queue per agent: resync requests
    exchange nodestate.{cell}.node-orders        topic    routing key = node; one exclusive queue per agent, bound once
                                                          per node: orders, and presences of other agents
    exchange nodestate.{cell}.answers            topic    routing key = token, a dot, and the node that answers
    queue    nodestate.{cell}.answers.{token}             one exclusive queue per scheduler or census, bound to all keys
                                                          that begin with its token
    exchange nodestate.{cell}.orders             direct   routing key = node: orders of schedulers and to agents of
                                                          versions without the exchange node-orders

The exchanges node-orders and answers are topic exchanges because RabbitMQ checks topic permissions only there: the user
of a node may bind the key of its node, and may publish answers in the name of its node alone. The virtual transports
have no users. There, orders go to the exchange orders, and answers straight to queues.

Layouts exist side by side: an event goes into one queue of each, and is confirmed when it is in all of them. So
publishers need not know the layouts. A consumer declares the queues of its layout whenever it connects. Every other
process declares the settings' layout only if the cell is new, so that events are routable before the first consumer
connects. The process that declares a partition's queue where there was none puts the message ``QUEUE_BEGAN`` into it.

An operator may delete any of these while the cell runs. Every process that connects looks whether all exchanges and the
dead-letter queue exist, which needs no permission, and declares them if one is missing. Consumers declare them again
every ``REDECLARE_S``, and bind their queues again; agents bind their own queues again every ``REBIND_S``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nodestate.config import Config
from nodestate.model.partitioning import BUCKETS_COUNT

CONTENT_TYPE: Final = "application/x-msgpack"
DEAD_KEY: Final = "dead"
DEAD_QUEUE_MAX_BYTES: Final = 256 * 1024 * 1024
"""Dead letters that RabbitMQ keeps; beyond that it drops the oldest ones."""
MAX_DETAIL_CHARS: Final = 1_000
"""Characters of a dead letter's ``detail`` header; the rest is cut off."""
MAX_RECEIVED_BYTES: Final = 16 * 1024 * 1024
"""Size of the messages that one ``receive`` of a consumer reads at most, beside the last one."""
BEGAN_S: Final = 60.0
"""Seconds for which a consumer remembers that a queue was deleted, if it does not become the active consumer. By then
the active one has read the message ``QUEUE_BEGAN``.
"""
REDECLARE_S: Final = 10.0
"""Seconds after which a consumer declares exchanges and dead-letter queue again, and binds its queues again."""
REBIND_S: Final = 30.0
"""Seconds after which an agent binds its own queues again."""
ACTIVATION_TYPE: Final = "poke"
"""The ``type`` property of marker messages, for operators who look into a queue."""

_TOKEN: Final = re.compile(r"[0-9a-f]{32}").fullmatch


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges of one cell, and the queues of one of its layouts."""

    cell: str
    partitions: int
    queue_type: str

    @classmethod
    def of(cls, config: Config) -> Topology:
        """The topology that these settings ask for."""
        return cls(config.cell, config.partitions, config.queue_type)

    @property
    def exchange(self) -> str:
        """The exchange for events; the routing key is the node's bucket."""
        return f"nodestate.{self.cell}.events"

    @property
    def dead(self) -> str:
        """Exchange and queue of messages that were given up."""
        return f"nodestate.{self.cell}.dead"

    @property
    def control(self) -> str:
        """The exchange that broadcasts resync requests."""
        return f"nodestate.{self.cell}.control"

    @property
    def orders(self) -> str:
        """The exchange for orders of virtual transports and of earlier versions; the routing key is the node."""
        return f"nodestate.{self.cell}.orders"

    @property
    def node_orders(self) -> str:
        """The exchange for orders at RabbitMQ; the routing key is the node."""
        return f"nodestate.{self.cell}.node-orders"

    @property
    def answers(self) -> str:
        """The exchange for answers at RabbitMQ; the routing key is a token, a dot and the node."""
        return f"nodestate.{self.cell}.answers"

    def answer_queue(self, token: str) -> str:
        """The queue for the answers to one connection. ``token`` has 32 hexadecimal digits."""
        return f"{self.answers}.{token}"

    def answer_token(self, queue: str) -> str:
        """The token of a queue for answers; empty if a name is none, as the names of earlier versions are."""
        token = queue.removeprefix(f"{self.answers}.")
        return token if token != queue and _TOKEN(token) else ""

    @property
    def exchanges(self) -> tuple[tuple[str, str], ...]:
        """Every exchange with its type. The control exchange is the last one."""
        return (
            (self.exchange, "direct"),
            (self.dead, "direct"),
            (self.orders, "direct"),
            (self.node_orders, "topic"),
            (self.answers, "topic"),
            (self.control, "fanout"),
        )

    def queue(self, partition: int) -> str:
        """The queue of one partition."""
        assert 0 <= partition < self.partitions, f"partition {partition} of {self.partitions}"
        return f"nodestate.{self.cell}.{self.partitions}.{partition}"

    def buckets(self, partition: int) -> range:
        """The buckets whose events go to a partition."""
        return range(partition, BUCKETS_COUNT, self.partitions)

    def queues(self) -> Iterator[tuple[int, str]]:
        """Every partition with its queue."""
        return ((partition, self.queue(partition)) for partition in range(self.partitions))

    @property
    def dead_queue_arguments(self) -> dict[str, Any]:
        """Arguments of the dead-letter queue, which is as durable as the queues of partitions.

        A queue that exists keeps its arguments. A queue that an earlier version declared has no bound.
        """
        bound: dict[str, Any] = {"x-max-length-bytes": DEAD_QUEUE_MAX_BYTES}
        return bound if self.queue_type == "classic" else {"x-queue-type": self.queue_type, **bound}

    @property
    def queue_arguments(self) -> dict[str, Any]:
        """Arguments of a partition's queue. To change one, the queue must be deleted first."""
        return {
            "x-queue-type": self.queue_type,
            "x-single-active-consumer": True,
            # Messages that RabbitMQ itself gives up (a quorum queue's delivery limit) go to the same queue.
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-routing-key": DEAD_KEY,
        }
