"""Doubles for tests, and what ``memory://`` is: a store, a broker and a clock in this process, with faults on demand.

They pass the same contract suites as memcached and RabbitMQ (``tests/contract/``), need no threads, and do
nothing that is not asked for: the order of calls determines every outcome.
"""

from __future__ import annotations

from nodestate.ports.ids import SeededIds
from nodestate.store.memory import MemoryServer, MemoryStore, process_server
from nodestate.testing.broker import (
    Letter,
    MemoryBroker,
    MemoryCourier,
    MemoryDeadLetter,
    MemoryQueue,
    MemorySink,
    MemorySource,
)
from nodestate.testing.clock import ManualClock
from nodestate.testing.database import Backup, MemoryDatabase
from nodestate.testing.faults import Fault, FaultyStore, Plan, chance, script

__all__ = [
    "Backup",
    "Fault",
    "FaultyStore",
    "Letter",
    "ManualClock",
    "MemoryBroker",
    "MemoryCourier",
    "MemoryDatabase",
    "MemoryDeadLetter",
    "MemoryQueue",
    "MemoryServer",
    "MemorySink",
    "MemorySource",
    "MemoryStore",
    "Plan",
    "SeededIds",
    "chance",
    "process_server",
    "script",
]
