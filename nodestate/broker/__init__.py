"""The message broker, through kombu: RabbitMQ, ``memory://`` in one process, or Redis.

``topology`` names everything, ``link`` connects (and alone knows kombu), ``source`` consumes, ``sink`` publishes,
``control`` asks agents for reports, ``courier`` brings them orders, ``layouts`` opens and ends
numbers of partitions, ``checks`` is what the doctor looks at.
"""

from nodestate.broker.checks import (
    BrokerFacts,
    DeadLetter,
    QueueDepth,
    connect_check,
    queue_depths,
    read_dead_letters,
)
from nodestate.broker.control import KombuResyncSender, collect_census
from nodestate.broker.courier import KombuCourier
from nodestate.broker.layouts import KombuLayouts
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
    "collect_census",
    "connect_check",
    "queue_depths",
    "read_dead_letters",
]
