"""The rows of one Nova cell as they were last read, and the nodes whose states a new reading changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from nodestate.integrations.nova.row_form import (
    LAST_SEEN,
    Row,
    allocation,
    compute_columns,
    node_state,
    service_columns,
)


class CellRows:
    """The compute nodes, services and instances of a cell.

    Each ``take_…`` method takes rows that were read, and remembers the hosts that they change. ``changed_states`` then
    gives the new state of each node of these hosts, and ``take_gone`` the nodes that are gone.

    Args:
        cell: the uuid of the cell mapping.
        ratios: by column, the allocation ratio that Nova uses if a row of ``compute_nodes`` has null or 0.
        silent_after: a service that has not reported for this long is silent.
    """

    def __init__(self, cell: str, ratios: Mapping[str, float], silent_after: timedelta) -> None:
        self._cell = cell
        self._ratios = ratios
        self._silent_after = silent_after
        self.computes: dict[str, dict[str, Any]] = {}
        """By uuid, the carried columns of each compute node."""
        self._ids: dict[str, int] = {}
        """By uuid, the id of each compute node's row."""
        self._services: dict[str, dict[str, Any]] = {}
        """By host, the carried columns of its nova-compute service."""
        self._instances: dict[str, tuple[str, str, dict[str, Any]]] = {}
        """By uuid, each instance's host, its node and its allocation."""
        self._by_host: dict[str, set[str]] = {}
        """By host, the uuids of its instances."""
        self._changed_hosts: set[str] = set()
        self._gone: dict[str, bool] = {}
        """By uuid of each compute node that is gone and not yet taken: whether it had instances."""

    # -- rows that were read

    def take_services(self, rows: Iterable[Row], now: datetime) -> None:
        """Take all services of the cell that are nova-compute. ``now`` is in UTC, without a time zone."""
        services = {}
        for row in rows:
            seen = row[LAST_SEEN] or row["created_at"]
            is_silent = seen is None or abs(now - seen) > self._silent_after
            services[row["host"]] = service_columns(row, is_silent=is_silent)
        for host in self._services.keys() | services.keys():
            if self._services.get(host) != services.get(host):
                self._changed_hosts.add(host)
        self._services = services

    def take_computes(self, rows: Iterable[Row], *, is_whole: bool) -> None:
        """Take rows of compute nodes, deleted ones included. ``is_whole``: a node that is missing is gone."""
        read = set()
        for row in rows:
            uuid = row["uuid"]
            read.add(uuid)
            if row["deleted"]:
                self._remove_compute(uuid)
                continue
            columns = compute_columns(row, self._ratios)
            before = self.computes.get(uuid)
            if before == columns:
                continue
            self.computes[uuid], self._ids[uuid] = columns, row["id"]
            self._changed_hosts.update(one["host"] for one in (before, columns) if one is not None and "host" in one)
        if is_whole:
            for uuid in self.computes.keys() - read:
                self._remove_compute(uuid)

    def take_instances(self, rows: Iterable[Row], *, is_whole: bool) -> None:
        """Take rows of instances, deleted ones included. ``is_whole``: an instance that is missing is gone."""
        read = set()
        for row in rows:
            uuid = row["uuid"]
            read.add(uuid)
            if row["deleted"] or row["host"] is None:
                self._move_instance(uuid, None)
            else:
                self._move_instance(uuid, (row["host"], row["node"] or "", allocation(row)))
        if is_whole:
            for uuid in self._instances.keys() - read:
                self._move_instance(uuid, None)

    def _remove_compute(self, uuid: str) -> None:
        columns = self.computes.pop(uuid, None)
        if columns is None:
            return
        host = columns.get("host", "")
        self._ids.pop(uuid)
        self._gone[uuid] = bool(self._by_host.get(host))
        self._changed_hosts.add(host)

    def _move_instance(self, uuid: str, to: tuple[str, str, dict[str, Any]] | None) -> None:
        before = self._instances.get(uuid)
        if before == to:
            return
        if before is not None:
            self._by_host[before[0]].discard(uuid)
            self._changed_hosts.add(before[0])
            del self._instances[uuid]
        if to is not None:
            self._instances[uuid] = to
            self._by_host.setdefault(to[0], set()).add(uuid)
            self._changed_hosts.add(to[0])

    # -- states

    def take_gone(self) -> dict[str, bool]:
        """Return the compute nodes that are gone since the last call, each with whether it may have had instances."""
        gone, self._gone = self._gone, {}
        return {uuid: had_instances for uuid, had_instances in gone.items() if uuid not in self.computes}

    def changed_states(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Yield the state of each node of the hosts that changed since the last call."""
        changed, self._changed_hosts = self._changed_hosts, set()
        nodes_of: dict[str, list[str]] = {}
        for uuid, columns in self.computes.items():
            host = columns.get("host", "")
            if host in changed:
                nodes_of.setdefault(host, []).append(uuid)
        for host, uuids in nodes_of.items():
            uuids.sort(key=self._ids.__getitem__)
            allocations = self._allocations_of(host, uuids)
            for uuid in uuids:
                service = self._services.get(host)
                yield uuid, node_state(self._cell, self.computes[uuid], service, allocations[uuid], len(uuids))

    def _allocations_of(self, host: str, uuids: list[str]) -> dict[str, dict[str, Any]]:
        """Return for each node of a host the allocations of its instances.

        An instance whose node is none of the host's belongs to the host's oldest node, because Nova counts each
        instance of a host on each of its nodes.
        """
        named = {self.computes[uuid].get("hypervisor_hostname", ""): uuid for uuid in reversed(uuids)}
        found: dict[str, dict[str, Any]] = {uuid: {} for uuid in uuids}
        for instance in sorted(self._by_host.get(host, ())):
            _, node, held = self._instances[instance]
            found[named.get(node, uuids[0])][instance] = held
        return found
