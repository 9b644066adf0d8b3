"""A cordoned node under load, on real servers, while store, agents and consumers are restarted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from harness.cell import Cell
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.broker import KombuCourier
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.scheduling import Booted, NodeOrders, Scheduler, parse
from tests.faults.test_scheduling import ChildProcesses, name_of, processes, scheduling_cell

pytestmark = [pytest.mark.service, pytest.mark.thorough]

__all__ = ["processes", "scheduling_cell"]  # fixtures
SCHEDULERS_COUNT = 4
CORDONED = [name_of(host, number) for host in range(2) for number in (0, 1)]
BOOTS_COUNT = 25
"""Instances that are booted between two faults."""


class Load:
    """Schedulers in threads that boot and terminate instances until the test ends them."""

    def __init__(self, cell: Cell) -> None:
        self.nodes: list[str] = []
        """The nodes of all instances that were booted."""
        self._stop = Event()
        self._threads = [Thread(target=self._run, args=(cell, number)) for number in range(SCHEDULERS_COUNT)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self) -> None:
        before = len(self.nodes)
        wait_until(lambda: len(self.nodes) >= before + BOOTS_COUNT, "the schedulers boot no more instances")

    def _run(self, cell: Cell, number: int) -> None:
        courier = KombuCourier(cell.config)
        with Scheduler(cell.config, name=f"s{number}", seed=number, courier=courier) as scheduler:
            for count in itertools.count():
                if self._stop.is_set():
                    break
                instance = f"s{number}-{count}"
                try:
                    [outcome] = scheduler.boot(
                        parse({"instances": [instance], "resources": {"VCPU": 1, "MEMORY_MB": 512}}), timeout_s=10.0
                    )
                    if isinstance(outcome, Booted):
                        self.nodes.append(outcome.node)
                        scheduler.terminations.terminate([(outcome.node, instance)])
                except (NodestateError, TimeoutError):
                    self._stop.wait(0.1)
        courier.close()


def test_a_cordoned_node_gets_nothing_from_four_schedulers_while_all_is_restarted(
    scheduling_cell: Cell,
    processes: ChildProcesses,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> None:
    del tmp_path
    cell = scheduling_cell
    load = Load(cell)
    load.start()
    courier = KombuCourier(cell.config)
    orders = NodeOrders(courier)
    try:
        load.wait_for_more()
        assert set(load.nodes).intersection(CORDONED), "all nodes get instances before the cordon"
        results = orders.cordon(CORDONED, by="ann", reason="repair")
        assert [result.refused for result in results] == [""] * len(CORDONED)
        wait_until(lambda: _statuses(cell) == ["draining"] * len(CORDONED), "the view shows no cordon")
        load.wait_for_more()  # boots that were under way when the nodes were cordoned have ended
        began = len(load.nodes)
        for fault in _faults(cell, processes, memcached):
            fault()
            load.wait_for_more()
            assert not set(load.nodes[began:]).intersection(CORDONED)
            wait_until(lambda: _statuses(cell) == ["draining"] * len(CORDONED), "the view shows no cordon")
        results = orders.uncordon(CORDONED)
        assert [result.refused for result in results] == [""] * len(CORDONED)
        began = len(load.nodes)
        wait_until(lambda: set(load.nodes[began:]).intersection(CORDONED), "an open node gets no instances")
    finally:
        load.stop()
        courier.close()


def _faults(cell: Cell, processes: ChildProcesses, memcached: MemcachedServer) -> list[Callable[[], None]]:
    [consumer] = cell.members

    def flush() -> None:
        memcached.kill()
        memcached.start()

    def restart_agents() -> None:
        for host in range(2):
            processes.kill(f"host-{host}")
            processes.start_agents(host)

    def restart_consumer() -> None:
        consumer.kill()
        consumer.start()

    return [flush, restart_agents, restart_consumer]


def _statuses(cell: Cell) -> list[str]:
    with Reader(cell.config) as reader:
        view = reader.read(max_age=1e9, on_stale="flag")
    return [view.nodes[name].state.get("status", "up") if name in view.nodes else "?" for name in CORDONED]
