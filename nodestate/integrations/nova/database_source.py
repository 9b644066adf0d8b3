"""The source of state that follows the database of one Nova cell. It sends SELECTs only.

Compute nodes and instances are read incrementally, by the times of their creation, last change and deletion. These have
whole seconds, by the clocks of the conductors, and a transaction may commit some seconds after them. So each poll reads
``OVERLAP_S`` more than was read before, and passes over rows that it knows. A soft delete keeps ``updated_at``, so
``deleted_at`` is asked for as well. Every ``WHOLE_S`` all rows are compared. This finds rows that were archived, and
rows that a wrong clock hid.

Services are read whole, because each report of a service changes its row. A service that reports causes no event: the
state of its nodes says only when a service is silent, with the time of its last report. So a node's heartbeats in
nodestate say that the mirror is alive, and ``last_seen_up`` comes from the database.

After each poll the state of the mirror's own node changes. If a poll fails, it does not, and the agent sends no
heartbeats. Schedulers then use the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from nodestate.agent.sources import FullState, NodeGone, Reading, StatePatch
from nodestate.errors import SourceUnavailableError
from nodestate.integrations.nova.cell_rows import CellRows
from nodestate.integrations.nova.row_form import (
    COMPUTE_COLUMNS,
    LAST_SEEN,
    SERVICE_COLUMNS,
    MirrorPart,
    mirror_name,
    mirror_patch,
    mirror_state,
)
from nodestate.ports import Clock

POLL_S: Final = 1.0
"""Seconds between two polls."""
OVERLAP_S: Final = 30.0
"""How much longer ago than the last poll a row may have changed to be read again."""
WHOLE_S: Final = 300.0
"""Seconds between two comparisons of all rows."""

_SQL_TYPES: Final[Mapping[type, type[sa.types.TypeEngine[Any]]]] = {
    str: sa.Text,
    int: sa.Integer,
    float: sa.Float,
    bool: sa.Boolean,
    datetime: sa.DateTime,
}


def _table(name: str, columns: Mapping[str, type]) -> sa.TableClause:
    kept = {"id": int, "deleted": int, "created_at": datetime, "updated_at": datetime, "deleted_at": datetime}
    return sa.table(name, *(sa.column(one, _SQL_TYPES[kind]()) for one, kind in ({**kept, **columns}).items()))


COMPUTES: Final = _table("compute_nodes", {**COMPUTE_COLUMNS, "uuid": str, "service_id": int})
SERVICES: Final = _table("services", {**SERVICE_COLUMNS, LAST_SEEN: datetime})
INSTANCES: Final = _table(
    "instances",
    {"uuid": str, "host": str, "node": str, "vcpus": int, "memory_mb": int, "root_gb": int, "ephemeral_gb": int},
)


class DatabaseSource:
    """A ``StateSource`` with the compute nodes of one Nova cell, and the mirror's own node.

    Args:
        cell: the uuid of the cell mapping.
        engine: connects to the cell's database. ``close`` disposes of it.
        ratios: by column, the allocation ratio that Nova uses if a row has null or 0.
        silent_after_s: seconds after its last report from which on a service is silent.
        host: the name of this machine, for the name of the mirror's own node.
        clock: wall-clock time, to which Nova's times are compared.
    """

    every_s = POLL_S

    def __init__(
        self,
        cell: str,
        engine: sa.Engine,
        *,
        ratios: Mapping[str, float],
        silent_after_s: float,
        host: str,
        clock: Clock,
    ) -> None:
        self.name = f"nova-{cell}"
        self.mirror = mirror_name(cell, host)
        """The name of the mirror's own node."""
        self.polls = 0
        """Polls that worked."""
        self._cell = cell
        self._engine = engine
        self._clock = clock
        self._rows = CellRows(cell, ratios, timedelta(seconds=silent_after_s))
        self._read_at: datetime | None = None
        """When the last poll that worked began, in UTC; None before the first."""
        self._whole_at = 0.0
        """When all rows are compared next, in monotonic seconds."""

    def nodes(self) -> Sequence[str]:
        """Return the uuids of the compute nodes, and the name of the mirror's own node."""
        return [*self._rows.computes, self.mirror]

    def poll(self, now: float) -> Iterable[Reading]:
        """Return the readings since the last poll; at the first call, every node's full state."""
        began = datetime.fromtimestamp(self._clock.time(), UTC).replace(tzinfo=None)
        is_whole = self._read_at is None or now >= self._whole_at
        since = None if is_whole or self._read_at is None else self._read_at - timedelta(seconds=OVERLAP_S)
        try:
            self._read(since, began)
        except sa.exc.SQLAlchemyError as error:
            raise SourceUnavailableError(self.name, str(error)) from error
        if is_whole:
            self._whole_at = now + WHOLE_S
        self._read_at = began
        self.polls += 1
        return self._readings()

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def _read(self, since: datetime | None, now: datetime) -> None:
        """Read what changed after ``since`` in one transaction, thus as of one moment; everything if it is None."""
        with self._engine.connect() as connection:
            services = _fetch(
                connection, sa.select(SERVICES).where(SERVICES.c.binary == "nova-compute", _live(SERVICES))
            )
            computes = _fetch(connection, sa.select(COMPUTES).where(_changed(COMPUTES, since)))
            instances = _fetch(connection, sa.select(INSTANCES).where(_changed(INSTANCES, since)))
        hosts = {row["id"]: row["host"] for row in services}
        for row in computes:  # a row of an old compute node names its service instead of its host
            row["host"] = row["host"] or hosts.get(row["service_id"])
        rows = self._rows
        rows.take_services(services, now)
        rows.take_computes((row for row in computes if row["uuid"]), is_whole=since is None)
        rows.take_instances(instances, is_whole=since is None)

    def _readings(self) -> Iterable[Reading]:
        # A node that left with allocations stays in views, so they are removed first. The database shows the instances
        # on another node, or not at all.
        for uuid, had_instances in self._rows.take_gone().items():
            if had_instances:
                yield StatePatch(uuid, {"allocations": None})
            yield NodeGone(uuid)
        for uuid, state in self._rows.changed_states():
            yield FullState(uuid, state)
        # Last, so that this sign of life comes after the changes that it stands for.
        mirror = MirrorPart(len(self._rows.computes), self.polls)
        if self.polls == 1:
            yield FullState(self.mirror, mirror_state(self._cell, mirror))
        else:
            yield StatePatch(self.mirror, mirror_patch(mirror))


def _live(table: sa.TableClause) -> sa.ColumnElement[bool]:
    return table.c.deleted == 0


def _changed(table: sa.TableClause, since: datetime | None) -> sa.ColumnElement[bool]:
    """Return the condition for rows that changed; for all that are not deleted if ``since`` is None."""
    if since is None:
        return _live(table)
    return sa.or_(table.c.updated_at >= since, table.c.created_at >= since, table.c.deleted_at >= since)


def _fetch(connection: sa.Connection, statement: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(statement).mappings()]
