"""Boots by HTTP on real servers: clients at once, and a POST whose first answer is lost."""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from harness.cell import Cell
from harness.waiting import PATIENCE_S, wait_until
from nodestate.designs.reader import Reader
from tests.faults.test_scheduling import ChildProcesses, processes, scheduling_cell
from tests.serve.running_service import RunningService

pytestmark = [pytest.mark.service, pytest.mark.thorough]

__all__ = ["processes", "scheduling_cell"]  # fixtures
CLIENTS_COUNT = 4
INSTANCES_COUNT = 40
"""Instances that each client asks for, on a fleet that has no room for all of them."""


def done(running: RunningService, path: str) -> Any:
    """Wait for the end of an operation, and return its document."""
    found: Any = {"state": "running"}
    while found["state"] == "running":
        found = running.get(f"{path}?wait=30s").json()
    return found


def boot(running: RunningService, body: Any, key: str) -> Any:
    """Boot instances, and return the document of the operation."""

    def accepted() -> Any:
        answer = running.client.post("/v1/boots", json=body, headers={"Idempotency-Key": key}, timeout=PATIENCE_S)
        assert answer.status_code in (202, 503), answer.text
        return answer.headers.get("location")

    wait_until(accepted, "the boot is not accepted")
    return done(running, accepted())


def allocations(cell: Cell) -> dict[str, dict[str, Any]]:
    """By node, its allocations as a view shows them."""
    with Reader(cell.config) as reader:
        view = reader.read(max_age=1e9, on_stale="flag")
    return {name: dict(view.nodes[name].state.get("allocations", {})) for name in view.nodes}


def test_boots_of_four_clients_by_http_never_overcommit_and_a_lost_answer_boots_once(
    scheduling_cell: Cell, processes: ChildProcesses
) -> None:
    del processes
    cell = scheduling_cell
    with RunningService(cell.config) as running:
        body = {"requests": [{"resources": {"VCPU": 1, "MEMORY_MB": 1}}]}
        content = msgspec.json.encode(body)
        _, _, address = running.listener.url.partition("//")
        host, _, port = address.partition(":")
        wait_until(lambda: running.client.post("/v1/select", json=body).status_code == 200, "no node is found")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/boots HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(content)}\r\n"
            client.sendall(head.encode() + b"Content-Type: application/json\r\nIdempotency-Key: k\r\n\r\n" + content)
        again = boot(running, body, "k")  # its first answer was lost
        assert again["state"] == "done"
        wait_until(lambda: sum(map(len, allocations(cell).values())) == 1, "no view shows the instance")

        def boot_many(number: int) -> Any:
            names = [f"c{number}-{one}" for one in range(INSTANCES_COUNT)]
            return boot(running, {"requests": [{"instances": names, "resources": {"VCPU": 4}}]}, f"many-{number}")

        with ThreadPoolExecutor(CLIENTS_COUNT) as clients:
            ended = list(clients.map(boot_many, range(CLIENTS_COUNT)))
        states = Counter(one["state"] for document in ended for one in document["instances"])
        assert states["booted"] + states["failed"] == CLIENTS_COUNT * INSTANCES_COUNT
        wait_until(
            lambda: sum(map(len, allocations(cell).values())) == states["booted"] + 1, "no view shows all instances"
        )
        assert states["booted"] > 0
        for name, node in running.get("/v1/view").json()["nodes"].items():
            used = sum(one["resources"].get("VCPU", 0) for one in node["state"].get("allocations", {}).values())
            inventory = node["state"]["inventory"]["VCPU"]
            room = (inventory["total"] - inventory.get("reserved", 0)) * inventory.get("allocation_ratio", 1.0)
            assert used <= room, name
