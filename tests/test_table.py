"""The table of a partition: equal to a plain dict, and immutable once it was returned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodestate.model import NodeRecord
from nodestate.view.chunked_list import CHUNK_SLOTS, GROUP_SLOTS
from nodestate.view.table import Table
from tests.tables import advanced, table_of


def record(name: str, generation: int, *, incomplete: bool = False) -> NodeRecord:
    return NodeRecord(name, 1, generation, 1, generation + incomplete, 0.0, False, "up", "", b"", b"", b"", b"\x80")


def name_of(slot: int) -> str:
    return f"n{slot}"


class TableMachine(RuleBasedStateMachine):
    """Every table that was created, beside the plain dict that it must equal for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = 1
        self.touched: list[int] = []
        self.made: list[tuple[Table, dict[str, NodeRecord], frozenset[str]]] = [(table_of(9, 1, []), {}, frozenset())]

    @rule(
        new=st.sampled_from([0, 0, 1, 3, CHUNK_SLOTS - 3, CHUNK_SLOTS + 1, GROUP_SLOTS - 3]),
        touched=st.lists(st.integers(0, 3_000), max_size=5),
        incomplete=st.integers(0, 3),
        unread=st.lists(st.integers(0, 3_000), max_size=2),
    )
    def advance(self, new: int, touched: list[int], incomplete: int, unread: list[int]) -> None:
        table, model, missing = self.made[-1]
        self.offset += 1
        size = len(model)
        slots = {slot % size for slot in touched if size} | set(range(size, size + new))
        updates = {
            slot: record(name_of(slot), self.offset, incomplete=(slot + self.offset) % 4 < incomplete) for slot in slots
        }
        lost = {name_of(slot % size) for slot in unread if size} - {r.name for r in updates.values()}
        after = {**model, **{r.name: r for r in updates.values()}}
        still = {name for name in missing | lost if name not in {r.name for r in updates.values()}}
        still |= {r.name for r in updates.values() if r.incomplete}
        self.touched = sorted(slots)
        self.made.append((advanced(table, self.offset, updates, sorted(lost)), after, frozenset(still)))

    @rule()
    def advance_by_nothing(self) -> None:
        table, model, missing = self.made[-1]
        self.offset += 1
        self.touched = []
        self.made.append((advanced(table, self.offset, {}), model, missing))

    @invariant()
    def tables_are_as_they_were_made(self) -> None:
        for table, model, missing in (self.made[0], *self.made[-3:]):
            assert {r.name: r for r in table.records()} == model
            assert [r.name for r in table.records()] == [name_of(slot) for slot in range(len(model))]
            assert (table.size, table.incomplete) == (len(model), missing)
            assert table.get(name_of(len(model))) is None, "the table shows a name of a later table"
            if model:
                assert table.get(name_of(len(model) - 1)) == model[name_of(len(model) - 1)]

    @invariant()
    def what_differs_is_what_was_changed(self) -> None:
        """Columns are written again for these rows alone, and the others are not visited to find them."""
        for (before, *_), (after, *_) in zip(self.made[-2:], self.made[-1:], strict=False):
            assert [slot for slot, _ in after.rows.differing(before.rows)] == self.touched
            assert all(row is after.rows[slot] for slot, row in after.rows.differing(before.rows))

    def teardown(self) -> None:
        for table, model, missing in self.made:
            assert ({r.name: r for r in table.records()}, table.incomplete) == (model, missing)


TestTable = TableMachine.TestCase
TestTable.settings = settings(settings(), stateful_step_count=12)


@given(st.integers(0, 3 * CHUNK_SLOTS + 1) | st.sampled_from([GROUP_SLOTS - 1, GROUP_SLOTS, GROUP_SLOTS + 1]))
def test_table_created_at_once_equals_one_that_grew(size: int) -> None:
    """A new reader loads a checkpoint, an older one followed the commits: both have the same view (I4)."""
    records = [record(name_of(slot), 1) for slot in range(size)]
    grown = table_of(9, 1, [])
    for slot, one in enumerate(records):
        grown = advanced(grown, slot + 2, {slot: one})
    assert table_of(9, size + 1, records) == grown


def test_slot_that_would_leave_a_hole_is_refused() -> None:
    """It would move every later node to another slot."""
    with pytest.raises(AssertionError):
        advanced(table_of(9, 1, []), 2, {1: record("n1", 1)})
