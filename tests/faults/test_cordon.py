"""A cordoned node under load, on real servers, while store, agents and consumers are restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial

import pytest

from harness.cell import Cell
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.broker import KombuCourier
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.scheduling import Booted, NodeOrders, Scheduler, parse
from tests.faults.boot_load import BootLoad
from tests.faults.test_scheduling import ChildProcesses, name_of, processes, scheduling_cell

pytestmark = [pytest.mark.service, pytest.mark.thorough]

__all__ = ["processes", "scheduling_cell"]  # fixtures
SCHEDULERS_COUNT = 4
CORDONED = [name_of(host, number) for host in range(2) for number in (0, 1)]


def booting(scheduler: Scheduler, load: BootLoad, count: int) -> None:
    """Boot an instance and terminate it."""
    instance = f"{scheduler.name}-{count}"
    request = parse({"instances": [instance], "resources": {"VCPU": 1, "MEMORY_MB": 512}})
    try:
        [outcome] = scheduler.boot(request, timeout_s=10.0)
        if isinstance(outcome, Booted):
            load.nodes.append(outcome.node)
            scheduler.terminations.terminate([(outcome.node, instance)])
    except (NodestateError, TimeoutError):
        load.pause()


@pytest.fixture
def load(scheduling_cell: Cell, processes: ChildProcesses) -> Iterator[BootLoad]:
    """Four schedulers that boot and terminate instances."""
    del processes  # they must be there first
    with ExitStack() as stack:
        schedulers = []
        for number in range(SCHEDULERS_COUNT):
            courier = stack.enter_context(closing(KombuCourier(scheduling_cell.config)))
            made = Scheduler(scheduling_cell.config, name=f"s{number}", seed=number, courier=courier)
            schedulers.append(stack.enter_context(made))
        yield BootLoad([partial(booting, scheduler) for scheduler in schedulers])


def test_a_cordoned_node_gets_nothing_from_four_schedulers_while_all_is_restarted(
    scheduling_cell: Cell,
    processes: ChildProcesses,
    memcached: MemcachedServer,
    load: BootLoad,
) -> None:
    cell = scheduling_cell
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
