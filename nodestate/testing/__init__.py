"""Doubles for tests: a store, a database, a broker and a clock in this process, with faults on demand.

====================  ==============================================  =================================================
double                stands for                                      faults
====================  ==============================================  =================================================
``MemoryServer``,     memcached, and a client's connection to it      evictions, a full server, restarts, outages
``MemoryStore``
``MemoryDatabase``    a database with transactions                    backups that are restored, lost rows, a full disk
``FaultyStore``       any store, made to fail                         writes of a call that are done, lost or late
``MemoryBroker``      RabbitMQ: queues, confirms, orders, resyncs     outages, lost confirms, duplicates, reordering
``ManualClock``       the machine's clock                             steps of the wall clock
``SeededIds``         random ids of orders and instances              none: the same seed gives the same ids
====================  ==============================================  =================================================

They pass the same contract suites as memcached, the databases and RabbitMQ (``tests/contract/``). They start no
threads, and do nothing that is not asked for: the order of calls determines every outcome. A test of one event's way::

    from nodestate.testing import ManualClock, MemoryBroker

    clock = ManualClock()
    broker = MemoryBroker(partitions=1, clock=clock)
    sink, source = broker.sink(), broker.source([0])
    confirms: list[bool] = []
    sink.publish(0, b"event", confirms.append)
    sink.flush(timeout_s=1.0)
    marker, delivery = source.receive(limit=10, timeout_s=1.0)   # the activation message, and the event
    assert (delivery.body, confirms) == (b"event", [True])

``MemoryServer`` is also what ``memory://`` is as a store's URL. The broker of ``memory://`` is another one, which
serves several threads (see ADR 22 in ``docs/adr``).
"""

from __future__ import annotations

from nodestate.ports.ids import SeededIds
from nodestate.store.memory import MemoryServer, MemoryStore, process_server
from nodestate.testing.broker import MemoryBroker
from nodestate.testing.clock import ManualClock
from nodestate.testing.courier import MemoryCourier
from nodestate.testing.database import Backup, MemoryDatabase
from nodestate.testing.faults import Fault, FaultyStore, Plan, chance, script
from nodestate.testing.queues import MemoryDeadLetter, MemoryMessage, MemoryQueue
from nodestate.testing.sink import MemorySink
from nodestate.testing.source import MemorySource
from nodestate.testing.transit import OrderTransit, TransitMessage

__all__ = [
    "Backup",
    "Fault",
    "FaultyStore",
    "ManualClock",
    "MemoryBroker",
    "MemoryCourier",
    "MemoryDatabase",
    "MemoryDeadLetter",
    "MemoryMessage",
    "MemoryQueue",
    "MemoryServer",
    "MemorySink",
    "MemorySource",
    "MemoryStore",
    "OrderTransit",
    "Plan",
    "SeededIds",
    "TransitMessage",
    "chance",
    "process_server",
    "script",
]
