"""A Nova cell in this process: its tables in SQLite, a mirror, and nodestate with stores and a broker in memory.

It needs no Nova. Nothing runs by itself: ``poll`` lets time pass, and the mirror and the consumer act.
"""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from nodestate import Config, Reader, View
from nodestate.agent.agent import Agent
from nodestate.consumers.loop import Consumer
from nodestate.integrations.nova.cell_nodes import CellNodes
from nodestate.integrations.nova.database_source import COMPUTES, INSTANCES, SERVICES, DatabaseSource
from nodestate.integrations.nova.row_form import RATIOS
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker, MemoryServer, MemoryStore

CELL: Final = "6f1cf9ae-7e64-4d6b-9a3c-3f8f2f8d0e11"
PARTITIONS: Final = 2
SILENT_AFTER_S: Final = 25.0
MAX_AGE_S: Final = 10.0
SILENT_SHARE: Final = 0.2
STEP_S: Final = 1.0
MAX_STEPS_COUNT: Final = 10

COMPUTE: Final[dict[str, Any]] = {
    "vcpus": 8,
    "memory_mb": 4_096,
    "local_gb": 100,
    "vcpus_used": 1,
    "memory_mb_used": 512,
    "local_gb_used": 10,
    "hypervisor_type": "QEMU",
    "hypervisor_version": 8_002_000,
    "free_ram_mb": 3_584,
    "free_disk_gb": 90,
    "cpu_info": "{}",
    "cpu_allocation_ratio": 4.0,
    "ram_allocation_ratio": 1.0,
    "disk_allocation_ratio": 1.0,
}
SERVICE: Final[dict[str, Any]] = {
    "binary": "nova-compute",
    "topic": "compute",
    "disabled": False,
    "forced_down": False,
    "version": 70,
}


def uuid_of(host: str) -> str:
    """Return the uuid of a host's compute node."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, host))


class NovaCell:
    """The database of a Nova cell, and everything between it and a reader of views."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        metadata = sa.MetaData()
        for table in (COMPUTES, SERVICES, INSTANCES):
            columns = [sa.Column(one.name, one.type, primary_key=one.name == "id") for one in table.columns]
            sa.Table(table.name, metadata, *columns)
        metadata.create_all(self.engine)
        self.tables = metadata.tables
        self.config = Config(partitions=PARTITIONS, designs=("snapshot",), heartbeat_s=10.0, resync_jitter_s=0.0)
        self.broker = MemoryBroker(PARTITIONS, clock=self.clock)
        self.stores = Stores([MemoryStore(MemoryServer(clock=self.clock))])
        self.consumer = Consumer(
            self.config,
            self.broker.source(range(PARTITIONS)),
            self.stores,
            self.broker,
            self.clock,
            random.Random(1),
            "consumer",
        )
        self.reader = Reader(self.config, design="snapshot", stores=self.stores, clock=self.clock)
        self.nodes = CellNodes(CELL)
        self.start_mirror()

    def start_mirror(self, host: str = "ctl1") -> None:
        """Start a mirror, as the only one: the last one stops without a word."""
        self.source = DatabaseSource(
            CELL,
            self.engine,
            ratios=dict.fromkeys(RATIOS, 16.0),
            silent_after_s=SILENT_AFTER_S,
            host=host,
            clock=self.clock,
        )
        sink = self.broker.sink()
        self.agent = Agent(
            self.config,
            [self.source],
            sink,
            self.clock,
            random.Random(1),
            inbox=sink,
            incarnation=int(self.clock.time()),
        )

    # -- the database

    def utc(self) -> datetime:
        """Return the time as Nova writes it: whole seconds, without a time zone."""
        return datetime.fromtimestamp(self.clock.time(), UTC).replace(tzinfo=None, microsecond=0)

    def insert(self, table: str, **columns: Any) -> None:
        """Insert a row as Nova does."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.insert(self.tables[table]).values({"deleted": 0, "created_at": self.utc(), **columns})
            )

    def update(self, table: str, host: str, /, **columns: Any) -> None:
        """Update the rows of a host that are not deleted."""
        rows = self.tables[table]
        with self.engine.begin() as connection:
            connection.execute(
                sa.update(rows)
                .where(rows.c.host == host, rows.c.deleted == 0)
                .values({"updated_at": self.utc(), **columns})
            )

    def delete(self, table: str, host: str) -> None:
        """Delete the rows of a host softly, as Nova does: ``updated_at`` stays."""
        rows = self.tables[table]
        with self.engine.begin() as connection:
            connection.execute(
                sa.update(rows)
                .where(rows.c.host == host, rows.c.deleted == 0)
                .values(deleted=rows.c.id, deleted_at=self.utc())
            )

    def add_host(self, host: str, **columns: Any) -> None:
        """Add a compute node with its service, which reports now."""
        self.insert("services", uuid=uuid_of(f"{host}-service"), host=host, last_seen_up=self.utc(), **SERVICE)
        names = {"uuid": uuid_of(host), "host": host, "hypervisor_hostname": host}
        self.insert("compute_nodes", **{**COMPUTE, **names, **columns})

    def add_instance(self, name: str, host: str | None, **columns: Any) -> None:
        """Add an instance on a host's node of the same name."""
        amounts = {"vcpus": 1, "memory_mb": 512, "root_gb": 10, "ephemeral_gb": 0}
        self.insert("instances", **{**amounts, "uuid": uuid_of(name), "host": host, "node": host, **columns})

    def report_services(self, *silent: str) -> None:
        """Let each service report, except the services of the hosts in ``silent``."""
        rows = self.tables["services"]
        with self.engine.begin() as connection:
            connection.execute(sa.update(rows).where(rows.c.host.not_in(silent)).values(last_seen_up=self.utc()))

    # -- from the database to a reader

    def poll(self, seconds: float = 2.0, *, mirrors: bool = True) -> View:
        """Let time pass; then the mirror polls, if ``mirrors``, and the consumer applies all events."""
        step_s = max(STEP_S, seconds / MAX_STEPS_COUNT)
        while seconds > 0:
            self.clock.advance(min(step_s, seconds))
            seconds -= step_s
            if mirrors:
                self.agent.step()
            self.consumer.step()
        return self.view()

    def begin(self) -> View:
        """Poll until the new cell is complete: at first the owner asks all agents for reports."""
        for _ in range(40):
            self.report_services()
            if not self.poll().incomplete:
                return self.poll()
        raise AssertionError("the cell is never complete")

    def view(self) -> View:
        """Return a view, with which ``nodes`` is up to date."""
        view = self.reader.read(max_age=1e9, node_max_age=1e9, on_stale="flag")
        self.nodes.advance(view)
        return view

    def problem(self) -> str:
        """Return why the last view may not decide; empty if it may."""
        return self.nodes.problem(self.view(), MAX_AGE_S, SILENT_SHARE)

    def state(self, host: str) -> Any:
        """Return the state of a host's node in the last view."""
        return self.view().nodes[uuid_of(host)].state
