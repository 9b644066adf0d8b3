"""A cell that follows its control record, for tests that act as its operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodestate.config import Config
from nodestate.designs.control import Control
from nodestate.designs.control_auth import control_auth
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.store.round_trips import Stores
from nodestate.testing import MemoryStore
from tests.machines.simulated_cell import SimulatedCell

NODES = [f"node-{n}" for n in range(6)]
PARTITIONS = 2


def K(name: str) -> StoredDesign:  # noqa: N802  stands in every line
    """The design that a name means; without a number, in the layout that these cells begin with."""
    return parse_stored_design(name, PARTITIONS)


class SwitchedCell(SimulatedCell):
    """A cell that follows its control record, its operator, and a reader that follows the record."""

    def __init__(
        self, designs: Sequence[str] = ("journal",), *, control_settings: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(designs=tuple(designs), follows_control=True, **more)
        self.config = Config(
            partitions=PARTITIONS, designs=tuple(designs), read_design=designs[0], **(control_settings or {})
        )
        self.start_member([0], [1])
        self.start_member([1], [0])
        for name in NODES:
            self.start_agent(name, {"usage": {"VCPU": 1}})
        self.run_well(60)
        auth = control_auth(self.config, self.clock, signs=True)
        self.operator = ControlStore(self.config.cell, self.fresh_stores(), self.clock, auth)
        self.reader = Reader(self.config, stores=self.fresh_stores(), clock=self.clock)

    def fresh_stores(self) -> Stores:
        database = MemoryStore(self.database) if self.database is not None else None
        stores_b = [MemoryStore(server) for server in self.servers_b]
        return Stores([MemoryStore(server) for server in self.servers], database, stores_b)

    @property
    def record(self) -> Control:
        """The record as an operator sees it."""
        found = newest(self.operator.read())
        assert found is not None
        return found

    def take(self, control: Control) -> None:
        """Take a step of the operator, and let consumers follow."""
        assert self.operator.change(self.operator.read(), control)
        self.run_well(3)

    def whole(self, design: str) -> bool:
        """True if all partitions of a design are complete for a new reader."""
        reader = Reader(self.config, design=design, stores=self.fresh_stores(), clock=self.clock)
        view = reader.read(max_age=3.0, on_stale="flag")
        return sorted(view.nodes) == NODES and not view.incomplete and not view.stale
