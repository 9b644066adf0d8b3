"""The fleet: all nodes as a scheduler computes with them, one row for each node, in numpy arrays that change in place.

A view is immutable, so the columns of each new view are copies of the previous view's columns. A scheduler decides on
one view at a time and does not need the older views. So the fleet overwrites its arrays instead of copying them. The
cost of an advance to the next view then depends on the number of changed nodes, not on the number of all nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from nodestate.auth import NO_TAGS, AllocationTags
from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord, Version
from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.ports import Clock, SystemClock
from nodestate.scheduling.fleet.bitsets import WordBits
from nodestate.scheduling.fleet.change_log import ChangeLog
from nodestate.scheduling.fleet.claim_overlay import ClaimOverlay, Exclusion, OutstandingClaims
from nodestate.scheduling.fleet.group_policies import GroupPolicies
from nodestate.scheduling.fleet.instance_locations import InstanceLocations
from nodestate.scheduling.fleet.inventory_limits import InventoryLimits
from nodestate.scheduling.fleet.node_columns import DOWN, UP, NodeColumns
from nodestate.scheduling.fleet.node_reports import NodeReports
from nodestate.scheduling.fleet.placement_fields import AllocationFields, PlacementFields, placement_fields_of
from nodestate.scheduling.fleet.placement_marks import PlacementMarks
from nodestate.scheduling.fleet.row_types import Flags
from nodestate.scheduling.fleet.state_columns import StateColumns
from nodestate.scheduling.fleet.view_changes import ViewChanges
from nodestate.scheduling.order_ids import precedence_of
from nodestate.store.damage import DAMAGE
from nodestate.view.columns import NOT_THERE, Amounts
from nodestate.view.view import View


class Fleet:
    """All nodes of one view, with the claims on each node subtracted from its free amounts. Belongs to one scheduler::

        empty --advance(view)--> the nodes as the view shows them; no claims are subtracted
              --overlay(row, claims)--> the same nodes; the claims are subtracted from the row of their node
              --excluding(exclusions)--> the same nodes without these instances, until the ``with`` block ends
              --advance(next view)--> the nodes as the next view shows them; the same claims are subtracted

    The fleet never mixes two views: after ``advance`` every row shows the new view.

    The fleet is composed of parts: the arrays (``NodeColumns``), the locations of instances (``instances``), the nodes'
    reports of their allocations (``reports``), the placement marks of reservations (``placement_marks``), the
    outstanding claims and exclusions (``claim_overlay``), and the log of changed rows.

    Filters and weighers read the arrays. The arrays are longer than the number of rows, so always index them: by
    ``all``, or by the row numbers that the filter or weigher was called with.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        tags: AllocationTags = NO_TAGS,
        ceilings: InventoryCeilings | None = None,
    ) -> None:
        self._columns = NodeColumns()
        """The arrays with the state of each node."""
        self.instances = InstanceLocations(self._columns.names)
        """The rows on which each instance is, and how many members of each group are on each row."""
        self.reports = NodeReports(self._columns.names, clock or SystemClock(), tags)
        """The allocations and hints that each node reports, decoded when they are read."""
        self.limits = InventoryLimits(ceilings or InventoryCeilings(), self._columns.names)
        """Finds nodes that report more than an operator believes."""
        self.placement_marks = PlacementMarks()
        """The placement marks in the nodes' reports: which allocation belongs to which reservation."""
        self.claim_overlay = ClaimOverlay()
        """The outstanding claims and exclusions. Only ``overlay`` and ``excluding`` may change them."""
        self.unresponsive: frozenset[str] = frozenset()
        """The names of the nodes without a recent sign of life. Assigned by the scheduler that owns the fleet."""
        self.group_policies = GroupPolicies(self._columns.version, self.instances, self.reports, self.claim_overlay)
        """The policies under which the members of each group were booted."""
        self._log = ChangeLog()
        """The log of changed rows."""
        self.taints = self._columns.taints
        """The taints of each row."""
        self.units = self._columns.units
        """The units in which the node of each row gives its resources."""
        self.state_columns = StateColumns(self.reports, self._columns.version, self._log)
        """Columns that filters and weighers of other packages compute from metrics, namespaces and other state."""
        self._view_changes = ViewChanges()
        """Finds the nodes whose records differ between the last view and the next one."""
        self._left_out: frozenset[str] = frozenset()
        """The names of the nodes that the last view left out because they are stale or incomplete."""
        self._rest_hashes: list[int] = []
        """For each row a hash of the encoded part of the state that contains zone, traits, aggregates and allocations.

        That part is decoded only if its hash changed.
        """
        self._judged_with = tags.keys_version
        """The version of the keys with which the tags of group members and placement marks were checked."""

    def __len__(self) -> int:
        return len(self._columns.names)

    # -- the arrays

    @property
    def rows(self) -> Mapping[str, int]:
        """The row number of each node, by the node's name."""
        return self._columns.rows

    @property
    def names(self) -> Sequence[str]:
        """The name of each row's node: ``names[row]``."""
        return self._columns.names

    @property
    def version(self) -> Sequence[Version]:
        """The version of the node's state that each row shows: ``version[row]``."""
        return self._columns.version

    @property
    def all(self) -> slice:
        """An index that selects all rows of an array: ``fleet.zone[fleet.all]``."""
        return slice(0, len(self._columns.names))

    @property
    def amounts(self) -> Mapping[str, Amounts]:
        """The capacity and the usage of each resource class on each row.

        For a class ``c``, ``amounts[c][0][row]`` is the capacity and ``amounts[c][1][row]`` the usage. Both are as the
        node reports them: claims do not count as usage.
        """
        return self._columns.amounts

    @property
    def free(self) -> Mapping[str, Amounts]:
        """The free amount of each resource class on each row: ``free[c][row]`` for class ``c``.

        It is the capacity, minus the usage, minus the claims, and may be negative.
        """
        return self._columns.free

    @property
    def usable(self) -> Flags:
        """Whether instances may be placed on each row: ``usable[row]`` is True if four conditions hold.

        The node is up. The view did not leave it out as stale or incomplete. It is not faulty (``is_faulty``). And no
        claim record names a newer state of the node than the fleet has (``OutstandingClaims.blocked``).
        """
        return self._columns.usable

    @property
    def is_there(self) -> Flags:
        """Whether the last view has the node of each row: False if the node is gone, or if its state is unknown."""
        return np.not_equal(self._columns.status[self.all], NOT_THERE)

    @property
    def in_service(self) -> Flags:
        """Whether the node of each row is up, in the view and not faulty, as ``usable`` without its last condition."""
        rows = [row for row, outstanding in self.claim_overlay.outstanding.items() if outstanding.blocked]
        if not rows:
            return self._columns.usable
        flags = self._columns.usable.copy()
        for row in rows:
            flags[row] = self._is_in_service(row)
        return flags

    def is_faulty(self, row: int) -> bool:
        """Return whether a row's node gets no instances because of its report.

        Its stored state is damaged, or it reports more than the setting ``inventory_ceilings`` allows.
        """
        return row in self.reports.damaged or row in self.limits.exceeding

    @property
    def zone(self) -> npt.NDArray[np.int32]:
        """The availability zone of each row, as a number: ``zone[row]`` is a value of ``zones``."""
        return self._columns.zone

    @property
    def zones(self) -> Mapping[str, int]:
        """The number that stands for each availability zone in ``zone``, by the name of the zone."""
        return self._columns.zones

    @property
    def traits(self) -> WordBits:
        """The traits of each row's node, as one bit for each trait."""
        return self._columns.traits

    @property
    def aggregates(self) -> WordBits:
        """The aggregates of each row."""
        return self._columns.aggregates

    @property
    def groups(self) -> Mapping[str, Mapping[int, int]]:
        """The number of members of each group on each row: ``groups[g][row]`` for group ``g``.

        This includes members that have a claim on the row's node but not yet an allocation. A row without members of
        the group is missing from the mapping.
        """
        return self.instances.groups

    # -- changes

    @property
    def changes(self) -> int:
        """The number of row changes since the fleet was created. Pass it to ``changed_since`` to get later changes."""
        return self._log.count

    def changed_since(self, changes: int) -> list[int] | None:
        """Return the rows that changed after ``Fleet.changes`` had this value. A row may occur several times.

        Returns None if the log no longer reaches back that far. The caller must then assume that every row changed.
        """
        return self._log.since(changes)

    # -- comparing reports

    def authoritative_row(self, instance: str) -> int | None:
        """Return the row with the authoritative allocation of an instance (``order_ids`` defines it).

        Returns None if no node reports the instance. Also returns None if several nodes report it and two of these
        allocations share the highest precedence, for example because no scheduler ordered them.
        """
        rows = self.instances.reporting_rows(instance)
        if len(rows) < 2:
            return rows[0] if rows else None
        ranks = sorted((precedence_of(self.reports.hints(row, instance)), row) for row in rows)
        return ranks[-1][1] if ranks[-1][0] > ranks[-2][0] else None

    def rows_hosting(self, instance: str) -> list[int]:
        """Return the rows on which an instance is claimed, or reported and believed, in ascending order."""
        rows = self.instances.rows_with(instance)
        if not self.reports.tags.requires:
            return rows
        reported = self.instances.reported
        return [row for row in rows if instance not in reported[row] or self.reports.is_believed(row, instance)]

    def is_responsive(self, row: int) -> bool:
        """Return whether a row's node is responsive, so that its report can be taken as its present state.

        The node must be in the view, it must not be down, and it must not be in ``unresponsive``.
        """
        name = self._columns.names[row]
        status = self._columns.status[row]
        if row in self.reports.damaged:
            return False
        return status not in (NOT_THERE, DOWN) and name not in self._left_out and name not in self.unresponsive

    # -- transitions

    def advance(self, view: View) -> None:
        """Bring all rows to the state that ``view`` shows. Only rows that changed are written.

        Outstanding claims and exclusions stay in force.
        """
        records = self._view_changes.next(view, self._columns.names)
        self.reports.view = view
        self._write(records)
        if self.reports.tags.requires and self._judged_with != self.reports.tags.keys_version:
            self._judge_again()
        self._leave_out(frozenset(view.left_out))

    def overlay(self, row: int, outstanding: OutstandingClaims | None) -> None:
        """Set the outstanding claims that are subtracted from a row.

        Args:
            row: The row of the node with the claims.
            outstanding: The claims, in place of the row's earlier ones; None if the node has no claims now.
        """
        before = self.claim_overlay.outstanding.get(row)
        if before == outstanding:
            return
        present = self._instances_on(row)
        self.claim_overlay.replace(row, outstanding)
        for name in {*(before.amounts if before else ()), *(outstanding.amounts if outstanding else ())}:
            self._update_free(name, row)
        self.instances.update(row, present, self._instances_on(row))
        self._update_usable(row)
        self._note([row])

    @contextmanager
    def excluding(self, exclusions: Sequence[Exclusion]) -> Iterator[None]:
        """Show the fleet without the instances in ``exclusions`` while the ``with`` block runs.

        A migration selects a node in such a block: the resources that the instance has now then count as free, and the
        instance does not count as a member of its group.
        """
        for exclusion in exclusions:
            self._exclude(exclusion, excluded=True)
        try:
            yield
        finally:
            for exclusion in exclusions:
                self._exclude(exclusion, excluded=False)

    def _exclude(self, exclusion: Exclusion, *, excluded: bool) -> None:
        """Add an exclusion if ``excluded`` is True, else remove the exclusion. Then update its row."""
        row = exclusion.row
        present = self._instances_on(row)
        if excluded:
            self.claim_overlay.add_exclusion(exclusion)
        else:
            self.claim_overlay.remove_exclusion(exclusion)
        for name in exclusion.amounts:
            self._update_free(name, row)
        self.instances.update(row, present, self._instances_on(row))
        self._note([row])

    def _leave_out(self, names: frozenset[str]) -> None:
        """Note which nodes the view left out, and update the rows for which this changed."""
        concerned = names ^ self._left_out
        self._left_out = names
        rows = [self._columns.rows[name] for name in concerned if name in self._columns.rows]
        for row in rows:
            self._update_usable(row)
        self._note(rows)

    def _write(self, records: Sequence[NodeRecord]) -> None:
        """Write changed records into their rows.

        This is the hot path of ``advance``. So whole columns are written at a time, and the loop over the rows makes
        only the calls that it needs.
        """
        rows = [(self._row(record.name), record) for record in records]
        if not rows:
            return
        columns, outstanding, rest_hashes = self._columns, self.claim_overlay.outstanding, self._rest_hashes
        damaged, exceeding = self.reports.damaged, self.limits.exceeding
        at_rows = np.array([row for row, _ in rows])
        for name in columns.write(rows, at_rows):
            claimed = self.claim_overlay.rows_claiming(name)
            for row in claimed:
                self._update_free(name, row)
            self._note(claimed)
        self.limits.examine(at_rows, columns.amounts)
        version = columns.version
        for row, record in rows:
            version[row] = record.version
            if self._left_out or outstanding or damaged or exceeding:
                self._update_usable(row)
            rest_hash = hash(record.rest)
            if rest_hash != rest_hashes[row]:
                rest_hashes[row] = rest_hash
                self._write_placement(row, record)
            if row in outstanding:
                for name in outstanding[row].amounts:
                    self._update_free(name, row)
        self._note(at_rows.tolist())

    def _write_placement(self, row: int, record: NodeRecord) -> None:
        """Write a row's placement fields, and the instances and placement marks that its node reports."""
        damaged = self.reports.damaged
        try:
            fields = placement_fields_of(record)
            if self.reports.tags.requires:
                self._disregard_unbelieved(record, fields)
            self._columns.set_placement(row, fields)
        except CorruptItemError as error:  # the row keeps the placement from before, and is not usable
            DAMAGE.report(f"node {record.name}", str(error))
            damaged.add(row)
            self._update_usable(row)
            return
        if row in damaged:
            damaged.discard(row)
            self._update_usable(row)
        present = self._instances_on(row)
        allocations = fields.allocations.items()
        self.placement_marks.replace(row, [(instance, allocation.hints) for instance, allocation in allocations])
        self.instances.reported[row] = {instance: allocation.group for instance, allocation in allocations}
        self.instances.update(row, present, self._instances_on(row))

    def _disregard_unbelieved(self, record: NodeRecord, fields: PlacementFields) -> None:
        """Remove group and placement mark of the allocations that are not believed. They still take room."""
        allocations = fields.allocations
        concerned = [name for name, one in allocations.items() if one.group is not None or one.hints.reservation]
        for instance in self.reports.unbelieved_among(record, concerned):
            allocations[instance] = AllocationFields()

    def _judge_again(self) -> None:
        """Write the instances and placement marks of all rows again, because other keys may be in force now."""
        self._judged_with = self.reports.tags.keys_version
        for row in range(len(self)):
            record = self.reports.record(row)
            if record is not None:
                self._write_placement(row, record)
        self._note(range(len(self)))

    def _instances_on(self, row: int) -> Mapping[str, str | None]:
        """Return the instances that the fleet shows on a row, each with the name of its group."""
        return self.claim_overlay.instances(row, self.instances.reported[row])

    def _update_usable(self, row: int) -> None:
        """Compute again whether instances may be placed on a row."""
        self._columns.usable[row] = self._is_in_service(row) and not self.claim_overlay.is_blocked(row)

    def _is_in_service(self, row: int) -> bool:
        """Return whether a row's node is up, in the view and not faulty."""
        columns = self._columns
        return bool(columns.status[row] == UP and columns.names[row] not in self._left_out and not self.is_faulty(row))

    def _update_free(self, resource: str, row: int) -> None:
        """Compute again the free amount of a resource class on a row."""
        self._columns.set_claimed(resource, row, self.claim_overlay.net_claimed(resource, row))

    def _row(self, name: str) -> int:
        """Return the row of a node. A node without a row first gets the next unused row."""
        row = self._columns.rows.get(name)
        if row is None:
            row = self._columns.add(name)
            self._rest_hashes.append(0)
            self.instances.reported.append({})
        return row

    def _note(self, rows: Iterable[int]) -> None:
        """Add one change for each of ``rows`` to the log."""
        self._log.note(rows, self._columns.capacity)
