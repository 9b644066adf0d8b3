"""The columns: incremental results equal computed ones, and arrays that were returned never change."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodestate.model import STATUSES, NodeRecord, fold, parse_event
from nodestate.view.chunked_list import CHUNK_SLOTS
from nodestate.view.columns import NOT_THERE, Columns, ColumnStore
from nodestate.view.table import Table
from tests.tables import advanced, table_of

CLASSES = ["A", "B", "C"]


def node(name: str, generation: int, state: dict | None) -> NodeRecord:
    """The record of a node after a report; None: after it left."""
    fields = {"node": name, "incarnation": 1, "generation": generation, "reported_at": 1.0}
    more = {"kind": "leave"} if state is None else {"kind": "report", "state": state}
    record = fold(None, parse_event(msgpack.packb({**fields, **more}))).record
    assert record is not None
    return record


states = st.none() | st.fixed_dictionaries(
    {
        "status": st.sampled_from(STATUSES),
        "inventory": st.dictionaries(st.sampled_from(CLASSES), st.builds(lambda n: {"total": n}, st.integers(0, 99))),
        "usage": st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 99)),
    }
)


def from_scratch(tables: list[Table | None], left_out: set[str]) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """By name: status code, and by class capacity and usage, computed from the records alone."""
    rows = {}
    for table in tables:
        for record in table.records() if table is not None else ():
            there = record.live and record.name not in left_out
            state = record.state()
            amounts = {
                name: (state.get("inventory", {}).get(name, {}).get("total", 0), state.get("usage", {}).get(name, 0))
                for name in CLASSES
            }
            rows[record.name] = (STATUSES.index(record.status) if there else NOT_THERE, amounts)
    return rows


def rows_of(columns: Columns) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    return {
        name: (
            int(columns.status[row]),
            {
                c: (int(columns.capacity[c][row]), int(columns.usage[c][row])) if c in columns.capacity else (0, 0)
                for c in CLASSES
            },
        )
        for row, name in enumerate(columns.names)
    }


def copied(columns: Columns) -> tuple:
    return (
        list(columns.names),
        columns.status.copy(),
        {name: array.copy() for name, array in columns.capacity.items()},
        {name: array.copy() for name, array in columns.usage.items()},
    )


class ColumnsMachine(RuleBasedStateMachine):
    """Two partitions whose nodes change, appear and leave; partitions that are lost and begin again."""

    @initialize()
    def begin(self) -> None:
        self.store = ColumnStore()
        self.tables: list[Table | None] = [None, None]
        self.generation = 0
        self.epoch = 0
        self.left_out: set[str] = set()
        self.seen: list[list[Table | None]] = []
        self.handed_out: list[tuple[Columns, tuple]] = []
        self.look()

    @rule(
        partition=st.integers(0, 1),
        size=st.sampled_from([0, 1, 3, CHUNK_SLOTS + 2]),
        state=states,
    )
    def begin_epoch(self, partition: int, size: int, state: dict | None) -> None:
        self.epoch += 1
        self.generation += 1
        names = [f"p{partition}-{self.epoch}-{n}" for n in range(size)]
        self.tables[partition] = table_of(self.epoch, 1, [node(name, self.generation, state) for name in names])

    @rule(partition=st.integers(0, 1))
    def lose(self, partition: int) -> None:
        self.tables[partition] = None

    @rule(partition=st.integers(0, 1), changed=st.dictionaries(st.integers(0, 300), states, max_size=4))
    def change(self, partition: int, changed: dict[int, dict | None]) -> None:
        table = self.tables[partition]
        if table is not None and table.size:
            self.generation += 1
            updates = {
                s % table.size: node(table.at(s % table.size).name, self.generation, x) for s, x in changed.items()
            }
            self.tables[partition] = advanced(table, self.generation, updates)

    @rule(partition=st.integers(0, 1), state=states)
    def appear(self, partition: int, state: dict | None) -> None:
        table = self.tables[partition]
        if table is not None:
            self.generation += 1
            name = f"p{partition}-{table.epoch}-new-{table.size}"
            self.tables[partition] = advanced(table, self.generation, {table.size: node(name, self.generation, state)})

    @rule(picks=st.lists(st.integers(0, 300), max_size=3))
    def leave_out(self, picks: list[int]) -> None:
        names = [record.name for table in self.tables if table is not None for record in table.records()]
        self.left_out = {names[pick % len(names)] for pick in picks if names} | {"nobody"}

    @rule()
    def look(self) -> None:
        columns = self.store.of(self.tables, self.left_out)
        assert rows_of(columns) == from_scratch(self.tables, self.left_out)
        assert all(
            not array.flags.writeable for array in (*columns.capacity.values(), *columns.usage.values(), columns.status)
        )
        assert all(name in columns.usage for name in columns.capacity)
        self.handed_out.append((columns, copied(columns)))
        self.seen.append(list(self.tables))

    @rule(pick=st.integers(0, 1_000))
    def look_at_an_older_view(self, pick: int) -> None:
        """Columns are computed on first use: a scheduler may ask an older view for them after a newer one."""
        tables = self.seen[pick % len(self.seen)]
        assert rows_of(self.store.of(tables)) == from_scratch(tables, set())

    @invariant()
    def what_was_handed_out_stays(self) -> None:
        for columns, (names, status, capacity, usage) in getattr(self, "handed_out", ()):
            assert list(columns.names) == names
            assert np.array_equal(columns.status, status)
            assert all(np.array_equal(columns.capacity[name], array) for name, array in capacity.items())
            assert all(np.array_equal(columns.usage[name], array) for name, array in usage.items())

    def teardown(self) -> None:
        self.look()


TestColumns = ColumnsMachine.TestCase
TestColumns.settings = settings(settings(), stateful_step_count=20)


def test_free_is_capacity_minus_usage_and_may_be_negative() -> None:
    """An overcommitted node must look overcommitted, not empty."""
    record = node("n", 1, {"inventory": {"A": {"total": 3}}, "usage": {"A": 5, "B": 1}})
    columns = ColumnStore().of([table_of(1, 1, [record])])
    assert {name: array.tolist() for name, array in columns.free.items()} == {"A": [-2], "B": [-1]}


def test_columns_are_read_only() -> None:
    """Views share their arrays."""
    columns = ColumnStore().of([table_of(1, 1, [node("n", 1, {"usage": {"A": 5}})])])
    for array in (columns.usage["A"], columns.capacity["A"], columns.status):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_columns_of_an_unknown_cell_are_empty() -> None:
    """The first read of a scheduler that started before any consumer."""
    columns = ColumnStore().of([None, None])
    assert (list(columns.names), columns.status.tolist(), dict(columns.capacity)) == ([], [], {})
