"""Cordon and drain by HTTP on real servers: under load from four services, and in a full fleet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest

from harness.cell import Cell
from harness.waiting import wait_until
from tests.faults.boot_load import BootLoad
from tests.faults.test_boots_by_http import allocations, boot, done
from tests.faults.test_scheduling import NAMES, VCPU, ChildProcesses, name_of, processes, scheduling_cell
from tests.serve.running_service import RunningService

pytestmark = [pytest.mark.service, pytest.mark.thorough]

__all__ = ["processes", "scheduling_cell"]  # fixtures
SERVICES_COUNT = 4
CORDONED = [name_of(host, number) for host in range(2) for number in range(3)]


def booting(running: RunningService, number: int, load: BootLoad, count: int) -> None:
    """Boot some instances by one service, and terminate them."""
    names = [f"l{number}-{count}-{one}" for one in range(5)]
    body = {"requests": [{"instances": names, "resources": {"VCPU": 1, "MEMORY_MB": 1}}]}
    try:
        booted = boot(running, body, f"l{number}-{count}")
        load.nodes += [one["node"] for one in booted["instances"] if one["state"] == "booted"]
        for name in names:
            running.client.post(f"/v1/instances/{name}/terminate", json={})
    except httpx.HTTPError:
        load.pause()


@pytest.fixture
def services(scheduling_cell: Cell, processes: ChildProcesses) -> Iterator[list[RunningService]]:
    """Four services of one cell, each with a scheduler of its own."""
    del processes
    with ExitStack() as stack:
        found = [stack.enter_context(RunningService(scheduling_cell.config)) for _ in range(SERVICES_COUNT)]
        body = {"requests": [{"resources": {"VCPU": 1, "MEMORY_MB": 1}}]}
        for one in found:
            wait_until(lambda one=one: one.client.post("/v1/select", json=body).status_code == 200, "no node is found")
        yield found


def test_a_cordoned_node_gets_nothing_from_four_services_under_load_until_it_is_uncordoned(
    services: list[RunningService],
) -> None:
    load = BootLoad([partial(booting, one, number) for number, one in enumerate(services)])
    load.start()
    try:
        load.wait_for_more()
        wait_until(lambda: set(load.nodes).intersection(CORDONED), "no node gets instances before the cordon")
        for number, name in enumerate(CORDONED):
            answer = services[number % SERVICES_COUNT].client.post(f"/v1/nodes/{name}/cordon", json={"reason": "disk"})
            assert answer.status_code == 200, answer.text
            version = answer.json()["version"]
        at_least = f"{CORDONED[-1]}:{version['incarnation']}.{version['generation']}"
        for one in services:
            shown = one.get(f"/v1/nodes/{CORDONED[-1]}?at_least={at_least}&wait=30s")
            assert shown.json()["state"]["status"] == "draining"
        load.wait_for_more()  # boots that were under way when the nodes were cordoned have ended
        began = len(load.nodes)
        for _ in range(5):
            load.wait_for_more()
        assert not set(load.nodes[began:]).intersection(CORDONED)
        for name in CORDONED:
            assert services[0].client.post(f"/v1/nodes/{name}/uncordon", json={}).status_code == 200
        began = len(load.nodes)
        wait_until(lambda: set(load.nodes[began:]).intersection(CORDONED), "an open node gets no instances")
    finally:
        load.stop()


def test_a_drain_in_a_full_fleet_reports_what_is_left_and_why(
    scheduling_cell: Cell, services: list[RunningService]
) -> None:
    """Each node has one instance that fits beside no other, and the drained one a small instance besides."""
    running, node = services[0], NAMES[0]
    large = [{"instances": [f"large-{name}"], "resources": {"VCPU": VCPU - 1}, "force_nodes": [name]} for name in NAMES]
    small = {"instances": ["small"], "resources": {"VCPU": 1}, "force_nodes": [node]}
    assert boot(running, {"requests": [*large, small]}, "fill")["state"] == "done"
    wait_until(lambda: sum(map(len, allocations(scheduling_cell).values())) == len(NAMES) + 1, "no view shows them all")
    accepted = services[1].client.post(f"/v1/nodes/{node}/drain", json={"reason": "kernel"})
    assert accepted.status_code == 202, accepted.text
    ended = done(services[1], accepted.headers["location"])
    assert (ended["state"], ended["cordon"]["done"], ended["error"]) == ("failed", True, "")
    moved, left = sorted(ended["instances"], key=lambda one: one["state"])
    assert (moved["instance"], moved["state"]) == ("small", "booted")
    assert moved["node"] in set(NAMES) - {node}
    assert (left["instance"], left["state"], left["node"]) == (f"large-{node}", "failed", None)
    assert "the filter resources removed the last" in left["why"]
    assert {"name": "resources", "left": 0} in left["filters"]

    def shown() -> dict[str, Any]:
        return allocations(scheduling_cell)[node]

    wait_until(lambda: shown().keys() == {f"large-{node}"}, "the node does not lose the small instance")
