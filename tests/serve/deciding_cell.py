"""A simulated cell with a service whose scheduler's thread lets the agents act whenever it looks for their answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from harness.waiting import PATIENCE_S
from nodestate.designs.inspection import CellInspector
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.model.orders import Answer, Order
from nodestate.ports import Courier
from nodestate.scheduling import Scheduler
from nodestate.scheduling.selection.plugins import own
from nodestate.store.round_trips import Stores
from nodestate.testing import MemoryStore
from tests.machines.scheduling_cell import SchedulingCell
from tests.serve.running_service import RunningService

VCPU = 8


def state(**more: Any) -> dict[str, Any]:
    """The state of one node."""
    return {"status": "up", "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 8_000}}, **more}


class DrivingCourier:
    """A courier that lets time pass in the cell whenever its scheduler looks for answers."""

    def __init__(self, cell: SchedulingCell) -> None:
        self._cell = cell
        self._inner: Courier = cell.broker.courier()
        self.lock = threading.Lock()
        """Held while time passes."""

    @property
    def reply_to(self) -> str:
        return self._inner.reply_to

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        self._inner.send(orders, expires_s)

    def answers(self, timeout_s: float) -> list[Answer]:
        del timeout_s
        with self.lock:
            self._cell.step_agents()
            self._cell.clock.advance(0.2)
            return self._inner.answers(0.0)

    def refused_answers(self) -> tuple[int, str]:
        return self._inner.refused_answers()

    def close(self) -> None:
        self._inner.close()


class DecidingCell:
    """The cell, its service, and short calls. Used as a context.

    Args:
        states: the state of each node; None: three equal nodes n0, n1 and n2.
        state_dir: where agents store cordons; None: they cannot be cordoned.
        options: further arguments of ``RunningService``.
    """

    def __init__(
        self, states: dict[str, dict[str, Any]] | None = None, *, state_dir: Path | None = None, **options: Any
    ) -> None:
        self.cell = SchedulingCell(states or {f"n{number}": state() for number in range(3)}, state_dir=state_dir)
        self.cell.wait_until_complete()
        self.claim_servers = self.cell.servers
        """The servers of the claim records."""
        self.courier = DrivingCourier(self.cell)
        self.running = RunningService(self.cell.config, self.open_reader, self.open_scheduler, **options)

    def open_reader(self) -> Reader:
        """Open a reader of the cell."""
        stores = Stores([MemoryStore(server) for server in self.cell.servers])
        return Reader(self.cell.config, stores=stores, clock=self.cell.clock)

    def open_inspector(self, designs: Sequence[StoredDesign]) -> CellInspector:
        """Open an inspector of the cell."""
        stores = Stores([MemoryStore(server) for server in self.cell.servers])
        return CellInspector(self.cell.config, designs, stores=stores, clock=self.cell.clock)

    def open_scheduler(self) -> Scheduler:
        """Open the scheduler of the service."""
        return Scheduler(
            self.cell.config,
            name="served",
            seed=1,
            reader=self.open_reader(),
            claims=[MemoryStore(server) for server in self.claim_servers],
            courier=self.courier,
            clock=self.cell.clock,
            policies=own(),
        )

    def __enter__(self) -> Self:
        self.running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.running.__exit__(*error)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in the cell."""
        with self.courier.lock:
            self.cell.run_for(seconds)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Send a POST request; underscores in the names of headers stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.running.client.post(path, json=body, headers=named, timeout=PATIENCE_S)

    def done(self, accepted: httpx.Response) -> Any:
        """Wait for the end of an operation that was accepted, and return its document."""
        assert accepted.status_code == 202, accepted.text
        while True:
            answer = self.running.get(f"{accepted.headers['location']}?wait=10s")
            assert answer.status_code == 200, answer.text
            if answer.json()["state"] != "running":
                return answer.json()

    def allocations(self) -> dict[str, set[str]]:
        """By node, the instances that it has."""
        return {node: set(self.cell.fleet.resources_of(node).allocations) for node in self.cell.fleet.nodes()}

    def nodes_with(self, instance: str) -> list[str]:
        """The nodes that have an instance."""
        return [node for node, found in self.allocations().items() if instance in found]


def wanted(*instances: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    """A body with one request for these instances."""
    return {"requests": [{"instances": [*instances], "resources": {"VCPU": vcpu, "MEMORY_MB": 100}, **more}]}
