"""The message broker, through kombu: RabbitMQ, ``memory://`` in one process, or Redis.

``topology`` names everything at the broker. ``source`` consumes, ``sink`` publishes, ``courier`` brings orders to
agents, ``resyncs`` asks agents for reports, ``layouts`` opens and ends numbers of partitions, ``diagnostics`` serves
the doctor. They all work on the protocols of ``sessions``; ``connector`` opens sessions and handles lost ones.

The transports stand behind these protocols, and only they import kombu and amqp: ``rabbitmq/`` for RabbitMQ,
``virtual/`` for ``memory://`` and Redis.
"""

from nodestate.broker.courier import KombuCourier
from nodestate.broker.diagnostics import (
    BrokerFacts,
    DeadLetter,
    QueueDepth,
    check_accepts_messages,
    connect_check,
    dead_queue_faults,
    layouts_with_queues,
    missing_exchanges,
    queue_depths,
    read_dead_letters,
)
from nodestate.broker.layouts import KombuLayouts
from nodestate.broker.resyncs import KombuResyncSender, collect_census
from nodestate.broker.sink import KombuSink
from nodestate.broker.source import KombuSource
from nodestate.broker.topology import Topology

__all__ = [
    "BrokerFacts",
    "DeadLetter",
    "KombuCourier",
    "KombuLayouts",
    "KombuResyncSender",
    "KombuSink",
    "KombuSource",
    "QueueDepth",
    "Topology",
    "check_accepts_messages",
    "collect_census",
    "connect_check",
    "dead_queue_faults",
    "layouts_with_queues",
    "missing_exchanges",
    "queue_depths",
    "read_dead_letters",
]
