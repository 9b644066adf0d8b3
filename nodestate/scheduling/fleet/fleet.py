"""The fleet as a scheduler computes with it: one row for each node, in numpy arrays that change in place.

A view is immutable and its columns are copied from one to the next; a scheduler decides on one view at a time, so its
fleet is written over instead, and costs what changed, however many nodes there are::

    empty --advance(view)--> exactly that view --overlay(claims of a node)--> that view less what is claimed --advance--> …

Between two calls of ``advance`` nothing of another view gets in. Rows are given to nodes as they first appear, and kept:
also where a node moves to another partition, or to another design. Belongs to one scheduler.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from nodestate.model import NEVER, STATUSES, NodeRecord, Version
from nodestate.scheduling.fleet.bitsets import WordBits
from nodestate.scheduling.fleet.row_types import Flags
from nodestate.scheduling.order_ids import precedence_of
from nodestate.view.columns import NOT_THERE, Amounts, write_rows
from nodestate.view.table import Table
from nodestate.view.view import View

N = TypeVar("N", bound=np.generic)

UP = STATUSES.index("up")
DOWN = STATUSES.index("down")
FIRST_ROWS = 256


class PlacementMark(msgspec.Struct, frozen=True, gc=False):
    """What schedulers put into an allocation's hints for each other: the ``reservation`` that the instance was placed with, how
    many ``members`` that has, and whether all are known to be ``placed``.
    """

    reservation: str = ""
    members: int = 0
    placed: bool = False


class _Tenant(msgspec.Struct, gc=False):
    group: str | None = None
    hints: PlacementMark = PlacementMark()


class _PlacementFields(msgspec.Struct, gc=False):
    """What of a state decides where something goes; other fields are passed over undecoded."""

    zone: str = ""
    traits: tuple[str, ...] = ()
    aggregates: tuple[str, ...] = ()
    allocations: dict[str, _Tenant] = {}


class _Hinted(msgspec.Struct, gc=False):
    hints: Any = None


class _Hints(msgspec.Struct, gc=False):
    """What of a state stays with its instances."""

    allocations: dict[str, _Hinted] = {}


_decode_hints = msgspec.msgpack.Decoder(_Hints).decode
_decode_placing = msgspec.msgpack.Decoder(_PlacementFields).decode
_decode_plain = msgspec.msgpack.Decoder(dict[str, Any]).decode
_NOTHING = _PlacementFields()


@dataclass(slots=True)
class OutstandingClaims:
    """What is claimed of a node and not yet in its allocations: amounts by class, and instances with their groups.
    ``blocked``: nothing more may be claimed until a newer state of the node is read.
    """

    amounts: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, str | None] = field(default_factory=dict)
    blocked: bool = False


class Exclusion(NamedTuple):
    """An instance to be taken out of its row for a while, with what it has there, and the ``order`` that built it so."""

    row: int
    instance: str
    amounts: Mapping[str, int]
    order: str = ""


class Fleet:
    """All nodes of a view. ``rows`` by name, ``names`` by row; arrays are longer than there are rows, so they are read
    through ``all`` (or fewer rows).

    ``amounts[c]``: capacity and usage of resource class c; ``free[c]``: capacity less usage and claims, may be negative;
    ``usable``: up, and not left out; ``zone``: codes, by ``zones``; ``traits``, ``aggregates``: bits. ``groups``: how many
    of a group are on which row, claims included; ``version``: which state of the node the row is; ``gangs``: the marks of those
    that were placed by a reservation, by (row, instance); ``silent``: nodes that gave no sign of life lately, as whoever owns the
    fleet was told last.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.names: list[str] = []
        self.version: list[Version] = []
        self.amounts: dict[str, Amounts] = {}
        self.free: dict[str, Amounts] = {}
        self.usable: Flags = np.zeros(FIRST_ROWS, np.bool_)
        self.zone: npt.NDArray[np.int32] = np.zeros(FIRST_ROWS, np.int32)
        self.zones: dict[str, int] = {"": 0}
        self.traits = WordBits()
        self.aggregates = WordBits()
        self.groups: dict[str, dict[int, int]] = {}
        self.placement_marks: dict[str, dict[tuple[int, str], PlacementMark]] = {}
        self.unresponsive: frozenset[str] = frozenset()
        self.changes = 0
        self._status: npt.NDArray[np.uint8] = np.full(FIRST_ROWS, NOT_THERE, np.uint8)
        self._log: list[int] = []
        self._view: View | None = None
        self._tables: tuple[Table | None, ...] = ()
        self._left_out: frozenset[str] = frozenset()
        self._rest: list[int] = []
        self._tenants: list[dict[str, str | None]] = []
        self._marked: dict[int, list[tuple[str, str]]] = {}
        self._outstanding: dict[int, OutstandingClaims] = {}
        self._lifted: dict[int, list[Exclusion]] = {}
        self._at: dict[str, int] = {}
        self._also_at: dict[str, set[int]] = {}
        self.traits.grow(FIRST_ROWS)
        self.aggregates.grow(FIRST_ROWS)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def all(self) -> slice:
        """Every row."""
        return slice(0, len(self.names))

    def changed_since(self, change: int) -> list[int] | None:
        """Rows that changed after ``changes`` was this, or None where that is too long ago to be known."""
        begin = len(self._log) - (self.changes - change)
        return self._log[begin:] if begin >= 0 else None

    def duplicates(self) -> dict[str, list[int]]:
        """The instances that more than one node reports, with their rows."""
        found = {}
        for instance in self._also_at:
            rows = self.reporting_rows(instance)
            if len(rows) > 1:
                found[instance] = rows
        return found

    def rows_with(self, instance: str) -> list[int]:
        """The rows that an instance is on, or claimed on: none, one, or two while it moves."""
        if instance not in self._at:
            return []
        return sorted({self._at[instance], *self._also_at.get(instance, ())})

    def reporting_node(self, instance: str, exclude: Collection[int] = ()) -> str:
        """A node that reports this instance, other than those in ``exclude``; empty where there is none."""
        rows = (row for row in self.reporting_rows(instance) if row not in exclude)
        return next((self.names[row] for row in rows), "")

    def group_of(self, row: int, instance: str) -> str | None:
        """The group of an instance that is on this row."""
        pending = self._outstanding.get(row)
        tenants = self._tenants[row]
        return tenants[instance] if instance in tenants or pending is None else pending.tenants.get(instance)

    def outstanding(self, row: int) -> OutstandingClaims | None:
        """What lies over a row, to be read only."""
        return self._outstanding.get(row)

    def tenants(self, row: int) -> Mapping[str, str | None]:
        """The instances that the node itself reports, with their groups."""
        return self._tenants[row]

    def reporting_rows(self, instance: str) -> list[int]:
        """The rows whose nodes report this instance."""
        return [row for row in self.rows_with(instance) if instance in self._tenants[row]]

    def allocations(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """What the node of a row reports of its instances, decoded anew each time."""
        record = self._view.nodes.record(self.names[row]) if self._view is not None else None
        allocations: Mapping[str, Mapping[str, Any]] = (
            record.state().get("allocations", {}) if record is not None else {}
        )
        return allocations

    def hints(self, row: int, instance: str) -> Mapping[str, Any]:
        """What stays with an instance of a row for its life; empty where the node reports none."""
        return self.hints_by_instance(row).get(instance, {})

    def hints_by_instance(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """The same of all instances of a row, decoded anew each time."""
        record = self._view.nodes.record(self.names[row]) if self._view is not None else None
        if record is None or not record.live:
            return {}
        allocations = _decode_hints(record.rest).allocations.items()
        return {instance: one.hints for instance, one in allocations if isinstance(one.hints, dict)}

    def authoritative_row(self, instance: str) -> int | None:
        """The row whose allocation of an instance counts (``identities``), of those that report one; None where there is none,
        or no scheduler built any of several.
        """
        rows = self.reporting_rows(instance)
        if len(rows) < 2:
            return rows[0] if rows else None
        ranks = sorted((precedence_of(self.hints(row, instance)), row) for row in rows)
        return ranks[-1][1] if ranks[-1][0] > ranks[-2][0] else None

    def is_responsive(self, row: int) -> bool:
        """Whether the view has a state of the node that its agent stands by: it is neither left out, nor down, nor ``silent``."""
        name = self.names[row]
        return (
            self._status[row] not in (NOT_THERE, DOWN) and name not in self._left_out and name not in self.unresponsive
        )

    # -- views

    def advance(self, view: View) -> None:
        """Become this view; what is claimed stays over it."""
        tables = tuple(partition.table for partition in view.partitions)
        olds = self._tables if len(self._tables) == len(tables) else (None,) * len(tables)
        records: list[NodeRecord] = []
        whole = len(self._tables) != len(tables)
        for table, old in zip(tables, olds, strict=True):
            if table is old:
                continue
            whole |= old is not None and (table is None or table.slots is not old.slots)
            if table is not None:
                before = old.rows if old is not None and table.slots is old.slots else None
                records += [table.record(row) for _, row in table.rows.differing(before)]
        self._tables = tables
        self._view = view
        if whole and self.names:
            there = {record.name for table in tables if table is not None for record in table.records()}
            records += [_gone(name) for name in self.names if name not in there]
        self._write(records)
        self._leave_out(frozenset(view.left_out))

    def overlay(self, row: int, outstanding: OutstandingClaims | None) -> None:
        """What is claimed of a row beyond its allocations, in place of what was so far."""
        before = self._outstanding.pop(row, None)
        if before == outstanding:
            if before is not None:
                self._outstanding[row] = before
            return
        present = self._present(row, before)
        if outstanding is not None:
            self._outstanding[row] = outstanding
        for name in {*(before.amounts if before else ()), *(outstanding.amounts if outstanding else ())}:
            self._refree(name, row)
        self._settle(row, present)
        self._reuse(row)
        self._note([row])

    @contextmanager
    def excluding(self, lifts: Sequence[Exclusion]) -> Iterator[None]:
        """As if these instances were not where they are: what a move selects on."""
        for lift in lifts:
            self._lift(lift, up=True)
        try:
            yield
        finally:
            for lift in lifts:
                self._lift(lift, up=False)

    def _lift(self, lift: Exclusion, *, up: bool) -> None:
        present = self._present(lift.row, self._outstanding.get(lift.row))
        if up:
            self._lifted.setdefault(lift.row, []).append(lift)
        else:
            self._lifted[lift.row].remove(lift)
            if not self._lifted[lift.row]:
                del self._lifted[lift.row]
        for name in lift.amounts:
            self._refree(name, lift.row)
        self._settle(lift.row, present)
        self._note([lift.row])

    def _leave_out(self, names: frozenset[str]) -> None:
        concerned = names ^ self._left_out
        self._left_out = names
        rows = [self.rows[name] for name in concerned if name in self.rows]
        for row in rows:
            self._reuse(row)
        self._note(rows)

    def _write(self, records: Sequence[NodeRecord]) -> None:
        rows = [(self._row(record.name), record) for record in records]
        if not rows:
            return
        known = len(self.amounts)
        write_rows(rows, self._status, self.amounts)
        at_rows = np.array([row for row, _ in rows])
        if len(self.amounts) != known:
            for name in self.amounts.keys() - self.free.keys():
                self.free[name] = np.zeros(len(self._status), np.int64)
                claimed = [row for row, pending in self._outstanding.items() if name in pending.amounts]
                for row in claimed:
                    self._refree(name, row)
                self._note(claimed)
        for name, (capacity, usage) in self.amounts.items():
            self.free[name][at_rows] = capacity[at_rows] - usage[at_rows]
        self.usable[at_rows] = self._status[at_rows] == UP
        for row, record in rows:
            self.version[row] = record.version
            if self._left_out or self._outstanding:
                self._reuse(row)
            rest = hash(record.rest)
            if rest != self._rest[row]:
                self._rest[row] = rest
                self._place(row, record)
            for name in self._outstanding[row].amounts if row in self._outstanding else ():
                self._refree(name, row)
        self._note(at_rows.tolist())

    def _place(self, row: int, record: NodeRecord) -> None:
        placing = _placing_of(record) if record.live else _NOTHING
        self.zone[row] = self.zones.setdefault(placing.zone, len(self.zones))
        self.traits.put(row, placing.traits)
        self.aggregates.put(row, placing.aggregates)
        pending = self._outstanding.get(row)
        present = self._present(row, pending)
        self._unmark(row)
        self._tenants[row] = {instance: tenant.group for instance, tenant in placing.allocations.items()}
        for instance, tenant in placing.allocations.items():
            if tenant.hints.reservation:
                self._marked.setdefault(row, []).append((tenant.hints.reservation, instance))
                self.placement_marks.setdefault(tenant.hints.reservation, {})[row, instance] = tenant.hints
        self._settle(row, present)

    def _unmark(self, row: int) -> None:
        for reservation, instance in self._marked.pop(row, ()):
            gang = self.placement_marks[reservation]
            del gang[row, instance]
            if not gang:
                del self.placement_marks[reservation]

    # -- who is where

    def _present(self, row: int, pending: OutstandingClaims | None) -> Mapping[str, str | None]:
        present = {**pending.tenants, **self._tenants[row]} if pending is not None else self._tenants[row]
        if row in self._lifted:
            absent = {lift.instance for lift in self._lifted[row]}
            present = {instance: group for instance, group in present.items() if instance not in absent}
        return present

    def _settle(self, row: int, before: Mapping[str, str | None]) -> None:
        """Keep the indexes of instances and groups, after what is on a row changed from ``before``."""
        now = self._present(row, self._outstanding.get(row))
        if before == now:
            return
        for instance, group in before.items() - now.items():
            if group is not None:
                counts = self.groups[group]
                counts[row] -= 1
                if not counts[row]:
                    del counts[row]
                    if not counts:
                        del self.groups[group]
            if instance not in now:
                self._forget(instance, row)
        for instance, group in now.items() - before.items():
            if group is not None:
                counts = self.groups.setdefault(group, {})
                counts[row] = counts.get(row, 0) + 1
            if instance not in before and self._at.setdefault(instance, row) != row:
                self._also_at.setdefault(instance, set()).add(row)

    def _forget(self, instance: str, row: int) -> None:
        others = self._also_at.get(instance)
        if self._at[instance] != row:
            assert others is not None, f"{instance} is on row {self._at[instance]}, not on {row}"
            others.discard(row)
        elif others:
            self._at[instance] = others.pop()
        else:
            del self._at[instance]
        if others is not None and not others:
            del self._also_at[instance]

    # -- rows

    def _reuse(self, row: int) -> None:
        pending = self._outstanding.get(row)
        blocked = pending is not None and pending.blocked
        self.usable[row] = self._status[row] == UP and not blocked and self.names[row] not in self._left_out

    def _refree(self, name: str, row: int) -> None:
        amounts = self.amounts.get(name)
        if amounts is None:
            return
        claimed = self._outstanding[row].amounts.get(name, 0) if row in self._outstanding else 0
        claimed -= sum(lift.amounts.get(name, 0) for lift in self._lifted.get(row, ()))
        self.free[name][row] = amounts[0][row] - amounts[1][row] - claimed

    def _row(self, name: str) -> int:
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = len(self.names)
            self.names.append(name)
            self.version.append(NEVER)
            self._rest.append(0)
            self._tenants.append({})
            if row >= len(self._status):
                self._grow(2 * len(self._status))
        return row

    def _grow(self, size: int) -> None:
        self._status = _longer(self._status, size, NOT_THERE)
        self.usable = _longer(self.usable, size, False)
        self.zone = _longer(self.zone, size, 0)
        more = size - len(self.free[next(iter(self.free))]) if self.free else 0
        self.free = {name: _longer(array, size, 0) for name, array in self.free.items()}
        self.amounts = {
            name: np.concatenate([array, np.zeros((2, more), np.int64)], axis=1) for name, array in self.amounts.items()
        }
        self.traits.grow(size)
        self.aggregates.grow(size)

    def _note(self, rows: Iterable[int]) -> None:
        before = len(self._log)
        self._log += rows
        self.changes += len(self._log) - before
        if len(self._log) > 2 * len(self._status):
            del self._log[: len(self._log) // 2]


def _longer(array: npt.NDArray[N], size: int, fill: object) -> npt.NDArray[N]:
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])


def _gone(name: str) -> NodeRecord:
    return NodeRecord(name, 0, 0, 0, 0, 0.0, True, "down", "", b"", b"", b"", b"")


def _placing_of(record: NodeRecord) -> _PlacementFields:
    try:
        return _decode_placing(record.rest)
    except msgspec.ValidationError:  # hints of others, under a name that is ours: they are no marks
        plain = _decode_plain(record.rest)
        for allocation in plain.get("allocations", {}).values():
            try:
                msgspec.convert(allocation, _Tenant)
            except msgspec.ValidationError:
                del allocation["hints"]
        return msgspec.convert(plain, _PlacementFields)
