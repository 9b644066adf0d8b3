"""The fleet as a scheduler computes with it: one row for each node, in numpy arrays that change in place.

A view is immutable, so each view's columns are a copy of the ones before. A scheduler decides on one view at a time and
needs no copies. So the fleet's arrays are written over: an advance to the next view costs what changed between the two
views, however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from nodestate.model import NodeRecord, Version
from nodestate.scheduling.fleet.bitsets import WordBits
from nodestate.scheduling.fleet.change_log import ChangeLog
from nodestate.scheduling.fleet.claim_overlay import ClaimOverlay, Exclusion, OutstandingClaims
from nodestate.scheduling.fleet.instance_locations import InstanceLocations
from nodestate.scheduling.fleet.node_columns import DOWN, UP, NodeColumns
from nodestate.scheduling.fleet.node_reports import NodeReports
from nodestate.scheduling.fleet.placement_fields import placement_fields_of
from nodestate.scheduling.fleet.placement_marks import PlacementMarks
from nodestate.scheduling.fleet.row_types import Flags
from nodestate.scheduling.fleet.view_changes import ViewChanges
from nodestate.scheduling.order_ids import precedence_of
from nodestate.view.columns import NOT_THERE, Amounts
from nodestate.view.view import View


class Fleet:
    """All nodes of one view, less the claims on them. Belongs to one scheduler::

        empty --advance(view)--> exactly that view, less the claims known for its nodes
              --overlay(row, claims of its node)--> the same view, less these claims
              --excluding(instances)--> the same view without these instances, until the block ends
              --advance(next view)--> exactly the next view, less the same claims

    Between two calls of ``advance`` the fleet shows nothing of another view. The fleet is composed of parts, each with
    one job: the arrays (``NodeColumns``), the locations of instances (``instances``), the nodes' reports of their
    allocations (``reports``), the marks of reservations (``placement_marks``), outstanding claims and exclusions
    (``claim_overlay``), and the log of changed rows. A filter or weigher reads the arrays: index them by ``all``, or by
    fewer rows, because they are longer than there are rows.
    """

    def __init__(self) -> None:
        self._columns = NodeColumns()
        """The arrays."""
        self.instances = InstanceLocations(self._columns.names)
        """The rows of each instance, and the members of each group by row."""
        self.reports = NodeReports(self._columns.names)
        """The nodes' own reports of their allocations, decoded on demand."""
        self.placement_marks = PlacementMarks()
        """The marks of reservations that nodes report."""
        self.claim_overlay = ClaimOverlay()
        """Outstanding claims and exclusions; changed through ``overlay`` and ``excluding`` alone."""
        self.unresponsive: frozenset[str] = frozenset()
        """The nodes without a recent sign of life. Assigned by the scheduler that owns the fleet."""
        self._log = ChangeLog()
        """The rows that changed."""
        self._view_changes = ViewChanges()
        """The tables of the last view, to find the changes in the next one."""
        self._left_out: frozenset[str] = frozenset()
        """The nodes that the last view left out: stale, or incomplete."""
        self._rest_hashes: list[int] = []
        """For each row the hash of the state's fields beyond the amounts; they are decoded only if the hash changed."""

    def __len__(self) -> int:
        return len(self._columns.names)

    # -- the arrays

    @property
    def rows(self) -> Mapping[str, int]:
        """The row of each node, by name."""
        return self._columns.rows

    @property
    def names(self) -> Sequence[str]:
        """The node of each row."""
        return self._columns.names

    @property
    def version(self) -> Sequence[Version]:
        """The version of the state that each row shows."""
        return self._columns.version

    @property
    def all(self) -> slice:
        """Every row."""
        return slice(0, len(self._columns.names))

    @property
    def amounts(self) -> Mapping[str, Amounts]:
        """Capacity and usage: ``amounts[c][0][row]`` and ``amounts[c][1][row]`` of resource class c."""
        return self._columns.amounts

    @property
    def free(self) -> Mapping[str, Amounts]:
        """``free[c][row]``: capacity less usage and claims of resource class c; may be negative."""
        return self._columns.free

    @property
    def usable(self) -> Flags:
        """``usable[row]``: the node is up, the view does not leave it out, and it is not blocked by a claim record."""
        return self._columns.usable

    @property
    def zone(self) -> npt.NDArray[np.int32]:
        """``zone[row]``: the code of the node's availability zone."""
        return self._columns.zone

    @property
    def zones(self) -> Mapping[str, int]:
        """The code of each availability zone, by name."""
        return self._columns.zones

    @property
    def traits(self) -> WordBits:
        """Which rows have which traits."""
        return self._columns.traits

    @property
    def aggregates(self) -> WordBits:
        """Which rows are in which aggregates."""
        return self._columns.aggregates

    @property
    def groups(self) -> Mapping[str, Mapping[int, int]]:
        """``groups[g][row]``: how many members of group g are on the row, claimed members included."""
        return self.instances.groups

    # -- changes

    @property
    def changes(self) -> int:
        """How many changes of rows there have been so far."""
        return self._log.count

    def changed_since(self, changes: int) -> list[int] | None:
        """The rows that changed since ``changes`` had this value; None if that is too long ago to be known."""
        return self._log.since(changes)

    # -- which report holds

    def authoritative_row(self, instance: str) -> int | None:
        """The row with the authoritative allocation of an instance: the one of the highest precedence (``order_ids``).

        Returns None if no node reports the instance, or if several do and their orders rank none above the others.
        """
        rows = self.instances.reporting_rows(instance)
        if len(rows) < 2:
            return rows[0] if rows else None
        ranks = sorted((precedence_of(self.reports.hints(row, instance)), row) for row in rows)
        return ranks[-1][1] if ranks[-1][0] > ranks[-2][0] else None

    def is_responsive(self, row: int) -> bool:
        """Whether a row's agent vouches for its state: the node is not down, not left out, and not ``unresponsive``."""
        name = self._columns.names[row]
        status = self._columns.status[row]
        return status not in (NOT_THERE, DOWN) and name not in self._left_out and name not in self.unresponsive

    # -- transitions

    def advance(self, view: View) -> None:
        """Show this view from now on, less the same claims as before."""
        records = self._view_changes.next(view, self._columns.names)
        self.reports.view = view
        self._write(records)
        self._leave_out(frozenset(view.left_out))

    def overlay(self, row: int, outstanding: OutstandingClaims | None) -> None:
        """Replace the claims that are taken off a row; None if there are none."""
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
        """Show the fleet without these instances until the block ends: a migration selects nodes that way."""
        for exclusion in exclusions:
            self._exclude(exclusion, excluded=True)
        try:
            yield
        finally:
            for exclusion in exclusions:
                self._exclude(exclusion, excluded=False)

    def _exclude(self, exclusion: Exclusion, *, excluded: bool) -> None:
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
        concerned = names ^ self._left_out
        self._left_out = names
        rows = [self._columns.rows[name] for name in concerned if name in self._columns.rows]
        for row in rows:
            self._update_usable(row)
        self._note(rows)

    def _write(self, records: Sequence[NodeRecord]) -> None:
        """Write changed records into their rows. This is the hot path of ``advance``: whole columns at a time, and for
        each row no call that can be avoided.
        """
        rows = [(self._row(record.name), record) for record in records]
        if not rows:
            return
        columns, outstanding, rest_hashes = self._columns, self.claim_overlay.outstanding, self._rest_hashes
        at_rows = np.array([row for row, _ in rows])
        for name in columns.write(rows, at_rows):
            claimed = self.claim_overlay.rows_claiming(name)
            for row in claimed:
                self._update_free(name, row)
            self._note(claimed)
        version = columns.version
        for row, record in rows:
            version[row] = record.version
            if self._left_out or outstanding:
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
        fields = placement_fields_of(record)
        self._columns.set_placement(row, fields.zone, fields.traits, fields.aggregates)
        present = self._instances_on(row)
        allocations = fields.allocations.items()
        self.placement_marks.replace(row, [(instance, allocation.hints) for instance, allocation in allocations])
        self.instances.reported[row] = {instance: allocation.group for instance, allocation in allocations}
        self.instances.update(row, present, self._instances_on(row))

    def _instances_on(self, row: int) -> Mapping[str, str | None]:
        return self.claim_overlay.instances(row, self.instances.reported[row])

    def _update_usable(self, row: int) -> None:
        columns = self._columns
        columns.usable[row] = (
            columns.status[row] == UP
            and not self.claim_overlay.is_blocked(row)
            and columns.names[row] not in self._left_out
        )

    def _update_free(self, resource: str, row: int) -> None:
        self._columns.set_claimed(resource, row, self.claim_overlay.amount(resource, row))

    def _row(self, name: str) -> int:
        row = self._columns.rows.get(name)
        if row is None:
            row = self._columns.add(name)
            self._rest_hashes.append(0)
            self.instances.reported.append({})
        return row

    def _note(self, rows: Iterable[int]) -> None:
        self._log.note(rows, self._columns.capacity)
