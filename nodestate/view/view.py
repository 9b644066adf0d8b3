"""The view: an immutable answer about all nodes, as of a position."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from nodestate.errors import BehindError, StaleViewError
from nodestate.model import NEVER, NodeRecord, Receipt, Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import Clock
from nodestate.text import age_text, count_text
from nodestate.view.changed_nodes import all_nodes, changed_nodes, live_nodes
from nodestate.view.columns import Columns, ColumnStore
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table

OnStale = Literal["exclude", "refuse", "flag"]


class Position(NamedTuple):
    """The commit that one partition of a view is as of. Offsets of different epochs cannot be compared."""

    epoch: int
    offset: int


class Node:
    """One node in a view."""

    __slots__ = ("_record", "_state")

    def __init__(self, record: NodeRecord) -> None:
        # The node's record.
        self._record = record
        # The decoded state; None until it is used.
        self._state: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return self._record.name

    @property
    def version(self) -> Version:
        """The version of the node's state."""
        return self._record.version

    @property
    def status(self) -> str:
        """``up``, ``draining``, ``maintenance`` or ``down``."""
        return self._record.status

    @property
    def reported_at(self) -> float:
        """When the agent sent the last event, by the agent's own clock, in seconds since 1970; advisory."""
        return self._record.reported_at

    @property
    def incomplete(self) -> bool:
        """True if a newer version is known to exist."""
        return self._record.incomplete

    @property
    def state(self) -> Mapping[str, Any]:
        """The state (DESIGN.md section 4), read-only, decoded on first use."""
        if self._state is None:
            self._state = _frozen(self._record.state())
        return self._state

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.version.incarnation}.{self.version.generation}, {self.status})"


def _frozen(value: Any) -> Any:
    """The same value with read-only maps, and tuples in place of lists."""
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    if isinstance(value, list):
        return tuple(_frozen(inner) for inner in value)
    return value


class Nodes(Mapping[str, Node]):
    """The live nodes of a view by name, without the nodes in ``left_out``."""

    def __init__(self, partitions: tuple[PartitionState, ...], left_out: Collection[str]) -> None:
        # The state of each partition.
        self._partitions = partitions
        # Names of the nodes to hide.
        self._left_out = left_out
        # By name, the nodes that were used so far.
        self._nodes: dict[str, Node] = {}

    def __getitem__(self, name: str) -> Node:
        node = self._nodes.get(name)
        if node is None:
            record = self.record(name)
            if record is None or not record.live or name in self._left_out:
                raise KeyError(name)
            node = self._nodes[name] = Node(record)
        return node

    def record(self, name: str) -> NodeRecord | None:
        """A node's record, also if the node is gone, has no state, or was left out. None if the node is unknown."""
        table = self._partitions[partition_of(name, len(self._partitions))].table
        return table.get(name) if table is not None else None

    def records(self) -> Iterator[NodeRecord]:
        """All records; also of tombstones, nodes without a state, and nodes that were left out."""
        for partition in self._partitions:
            if partition.table is not None:
                yield from partition.table.records()

    def __iter__(self) -> Iterator[str]:
        return (record.name for record in self.records() if record.live and record.name not in self._left_out)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{count_text(len(self), 'node')}>"


class View:
    """All nodes as of ``position``. A view never changes and is cheap to keep.

    Attributes:
        design: name of the design that the view was read from.
        partitions: the state of each partition.
        stale: names of the nodes that are over the bounds of the read.
        left_out: names of the nodes that the read excluded because they are stale or incomplete.
        nodes: the live nodes by name.
    """

    def __init__(
        self,
        design: str,
        partitions: tuple[PartitionState, ...],
        stale: frozenset[str],
        left_out: Collection[str],
        columns: ColumnStore,
        clock: Clock,
    ) -> None:
        self.design = design
        self.partitions = partitions
        self.stale = stale
        self.nodes = Nodes(partitions, left_out)
        self.left_out = left_out
        # Computes the columns from the columns of the view before.
        self._columns = columns
        # The reader's clock, for ages.
        self._clock = clock

    @cached_property
    def position(self) -> tuple[Position | None, ...]:
        """By partition, the commit that the view is as of; None if the partition could not be read."""
        return tuple(Position(p.table.epoch, p.table.offset) if p.table else None for p in self.partitions)

    @property
    def age(self) -> float:
        """Seconds since all partitions' owners are known to have been caught up; infinite if one never was."""
        return self._clock.monotonic() - min(p.confirmed_at for p in self.partitions)

    def partition_age(self, partition: int) -> float:
        """Seconds since the owner of a partition is known to have been caught up; infinite if it never was."""
        return self._clock.monotonic() - self.partitions[partition].confirmed_at

    @cached_property
    def incomplete(self) -> frozenset[str]:
        """The names of incomplete nodes, and ``partition N`` for each incomplete partition.

        A node is incomplete if a newer version is known to exist, or if its newest state cannot be read. A partition is
        incomplete if its owner does not know all nodes yet, or if the store lost part of it.
        """
        names: set[str] = set()
        for partition in self.partitions:
            if partition.lost or not partition.complete:
                names.add(f"partition {partition.partition}")
            if partition.table is not None:
                names |= partition.table.incomplete
        return frozenset(names)

    def node_age(self, name: str) -> float:
        """Seconds since the node's last sign of life; infinite if unknown, or if the read gave no ``node_max_age``."""
        partition = self.partitions[partition_of(name, len(self.partitions))]
        if partition.table is None or partition.heard_at is None:
            return math.inf
        slot = partition.table.slots.get(name)
        if slot is None or slot >= len(partition.heard_at):
            return math.inf
        return self._clock.monotonic() - float(partition.heard_at[slot])

    @cached_property
    def columns(self) -> Columns:
        """Capacity and usage of all nodes as numpy arrays; computed from the columns of the view before."""
        return self._columns.of([p.table for p in self.partitions], self.left_out)

    def changed_since(self, before: View) -> frozenset[str]:
        """Return the names of the nodes that differ from an earlier view: they appeared, changed or are gone.

        A name that ``nodes`` does not have is of a node that is gone. So this keeps a copy up to date::

            for name in view.changed_since(before):
                if name in view.nodes:
                    copy[name] = view.nodes[name].state
                else:
                    copy.pop(name, None)

        A node that became incomplete, or is complete again, counts as changed: its state may be the same, but
        ``incomplete`` is not. A node that only one of the two reads left out counts as appeared or gone. That a node
        became stale, or gave a sign of life, is no change. Partitions that became incomplete name no nodes: see
        ``incomplete``.

        If both views are of one reader, the cost is that of the changes, and not of the fleet. If a partition is of
        another epoch than in ``before``, all of its nodes in either view are named, whether they differ or not. After a
        switch to another design or number of partitions these are all nodes.
        """
        names: set[str] = set()
        if before.design == self.design and len(before.partitions) == len(self.partitions):
            for old, new in zip(before.partitions, self.partitions, strict=True):
                names |= changed_nodes(old.table, new.table)
        else:
            names.update(*(all_nodes(state.table) for view in (before, self) for state in view.partitions))
        if before.left_out or self.left_out:
            names |= set(before.left_out) ^ set(self.left_out)
        return frozenset(names)

    def bounded(
        self,
        max_age: float | None,
        node_max_age: float | None,
        on_stale: OnStale,
        on_unresponsive: OnStale | None = None,
    ) -> View:
        """Return a view of the same commits, judged now by other bounds.

        Args:
            max_age: greatest age of a partition, in seconds; None: any.
            node_max_age: greatest age of a node, in seconds; None: any.
            on_stale: what becomes of stale nodes, as in ``Reader.read``.
            on_unresponsive: what becomes of nodes over ``node_max_age``, as in ``Reader.read``.

        Raises:
            StaleViewError: if a partition or a node is too old, and the view must be refused for it.
        """
        on_unresponsive = on_unresponsive or on_stale
        states = self.partitions
        now = self._clock.monotonic()
        late = [s.partition for s in states if max_age is not None and now - s.confirmed_at > max_age]
        if late and on_stale == "refuse" and max_age is not None:  # before the nodes of large cells are named
            cause = next((states[p].lost for p in late if states[p].lost), "")
            raise StaleViewError(now - min(state.confirmed_at for state in states), max_age, late, (), cause)
        of_late: set[str] = set().union(*(live_nodes(states[p].table) for p in late))
        unresponsive: list[str] = []
        if node_max_age is not None:
            for state in states:
                unresponsive += unresponsive_nodes(state, now, node_max_age)
        if unresponsive and on_unresponsive == "refuse":
            age = now - min(state.confirmed_at for state in states)
            raise StaleViewError(age, node_max_age or 0.0, (), unresponsive)
        left_out: set[str] = set()
        if on_stale == "exclude":
            left_out.update(of_late, *(state.table.incomplete for state in states if state.table is not None))
        if on_unresponsive == "exclude":
            left_out.update(unresponsive)
        stale = of_late.union(unresponsive)
        if not stale and not left_out and not self.stale and not self.left_out:  # usually
            return self
        return View(self.design, states, frozenset(stale), left_out, self._columns, self._clock)

    def changed(self, change: Callable[[NodeRecord], NodeRecord]) -> View:
        """Return a view of the same commits and the same age with other nodes, for questions of the form "what if".

        Args:
            change: Returns the record to put in place of a record, with the same name.
        """
        states = []
        for state in self.partitions:
            table = state.table
            if table is not None:
                records = list(map(change, table.records()))
                names = [record.name for record in records]
                table = Table.of(table.epoch, table.offset, table.decode, names, records, table.incomplete)
            states.append(state._replace(table=table))
        return View(self.design, tuple(states), self.stale, self.left_out, ColumnStore(), self._clock)

    def require(self, receipt: Receipt, timeout: float) -> None:
        """Raise ``BehindError`` unless the view has the version of the receipt or a newer one.

        ``timeout``: seconds that the caller waited, for the text of the error only.
        """
        record = self.nodes.record(receipt.node)
        version = record.version if record is not None else NEVER
        if version < receipt.version:
            raise BehindError(receipt.node, receipt.version, version if record is not None else None, timeout)

    def __repr__(self) -> str:
        return (
            f"<View of {self.design}: {count_text(len(self.nodes), 'node')}, {age_text(self.age)}, "
            f"{len(self.incomplete)} incomplete>"
        )


def unresponsive_nodes(partition: PartitionState, now: float, node_max_age: float) -> list[str]:
    """The live nodes of a partition without a sign of life in the last ``node_max_age`` seconds at the time ``now``."""
    table = partition.table
    if table is None:
        return []
    heard_at = np.full(table.size, -math.inf)
    if partition.heard_at is not None:  # shorter than the table if nodes appeared after the signs of life were read
        heard_at[: len(partition.heard_at)] = partition.heard_at[: table.size]
    silent = np.flatnonzero(now - heard_at > node_max_age)
    return [record.name for record in map(table.at, silent.tolist()) if record.live]
