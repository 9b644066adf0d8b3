"""Ports: the Protocols that separate nodestate from its store, its broker and its clock, and the values they exchange.

Adapters: ``nodestate.store.memcached`` and ``nodestate.sql.store`` (store), ``nodestate.broker`` (broker). Doubles for
tests: ``nodestate.testing``.
"""

from __future__ import annotations

from nodestate.ports.broker import (
    ACTIVATION,
    QUEUE_BEGAN,
    AgentInbox,
    Courier,
    Delivery,
    Layouts,
    OrderCounts,
    RefusedDelivery,
    Resync,
    ResyncSender,
    Sink,
    Source,
)
from nodestate.ports.clock import Clock, SystemClock
from nodestate.ports.database import NodeRow, RowQuery, RowSelection
from nodestate.ports.store import (
    MAX_TTL_S,
    ClaimStore,
    Item,
    Key,
    Put,
    Store,
    StoreRole,
    Write,
    WriteResult,
    WriteStatus,
    item_keys,
)

__all__ = [
    "ACTIVATION",
    "MAX_TTL_S",
    "QUEUE_BEGAN",
    "AgentInbox",
    "ClaimStore",
    "Clock",
    "Courier",
    "Delivery",
    "Item",
    "Key",
    "Layouts",
    "NodeRow",
    "OrderCounts",
    "Put",
    "RefusedDelivery",
    "Resync",
    "ResyncSender",
    "RowQuery",
    "RowSelection",
    "Sink",
    "Source",
    "Store",
    "StoreRole",
    "SystemClock",
    "Write",
    "WriteResult",
    "WriteStatus",
    "item_keys",
]
