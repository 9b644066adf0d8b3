"""Several schedulers on a full fleet, on real servers, while faults are injected (I8, I9); and hints for life (I10)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.cell import Cell
from harness.members import catches_sigterm
from harness.processes import ModuleProcess, start_module
from harness.profile import by_profile
from harness.servers import MemcachedServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.ports import Put, Write
from nodestate.scheduling.claims import CLAIMS
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore
from tests.faults.conftest import CellFactory
from tests.faults.histories import Histories

pytestmark = pytest.mark.service

HOSTS_COUNT = 2
NODES_COUNT = 24
VCPU = 16
SCHEDULERS_COUNT = by_profile(fast=4, thorough=8)
FAULTS_COUNT = by_profile(fast=10, thorough=40)
FAULT_EVERY_S = 0.4
FULL = 0.97
"""Share of the fleet's processors that must be taken before the first fault."""
CLAIM_TTL_S = 6.0
ANSWER_TIMEOUT_S = 2.0
CONFIRM_S = by_profile(fast=5.0, thorough=20.0)
"""A scheduler that is killed while it confirms leaves claims that live for about this much longer."""
VIEW_BOUND_S = 2.0


class ChildProcesses:
    """Python modules that run as processes of one test, each under a name; the test ends them by their process ids."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        """Where their errors and their files go."""
        self.settings = settings
        self.running: dict[str, ModuleProcess] = {}

    def start(self, name: str, module: str, *arguments: str) -> None:
        with (self.folder / f"{name}.err").open("ab") as errors:
            self.running[name] = start_module(module, arguments, self.settings, stdin=subprocess.PIPE, stderr=errors)

    def start_agents(self, host: int) -> None:
        """Start the agent of all nodes of a host."""
        self.start(f"host-{host}", "tests.faults.recording_agents", str(self.folder), f"host-{host}")

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.running[name].pid, number)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def finish(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """End their stdin, wait until each of them has ended, and return the JSON objects that they print."""
        processes = [self.running[name] for name in names]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        results = []
        for name, process in zip(names, processes, strict=True):
            out, _ = process.communicate(timeout=PATIENCE_S)
            del self.running[name]
            assert process.returncode == 0, f"{name} ended with {process.returncode}:\n{self._errors(name)}"
            results.append(json.loads(out))
        return results

    def terminate(self, name: str) -> None:
        """End it in order (SIGTERM)."""
        process = self.running.pop(name)
        wait_until(lambda: catches_sigterm(process.pid), f"{name} installs no handler for SIGTERM")
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, f"{name} ended with {process.returncode}:\n{self._errors(name)}"

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)

    def _errors(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()[-3000:]


@pytest.fixture
def scheduling_cell(cell_of: CellFactory, memcached: MemcachedServer) -> Iterator[Cell]:
    """A cell with one consumer and no simulated fleet: its agents are processes that carry out orders."""
    with cell_of(
        memcached.url,
        members=1,
        count=0,
        rate=0.0,
        designs=["snapshot"],
        claim_ttl_s=CLAIM_TTL_S,
        answer_timeout_s=ANSWER_TIMEOUT_S,
    ) as cell:
        yield cell


@pytest.fixture
def processes(scheduling_cell: Cell, tmp_path: Path) -> Iterator[ChildProcesses]:
    """The agents of the cell; when the fixture is ready, their nodes are in the view."""
    children = ChildProcesses(tmp_path, scheduling_cell.environment)
    for host in range(HOSTS_COUNT):
        states = {
            name_of(host, number): {
                "status": "up",
                "zone": f"az{number % 2}",
                "traits": ["HW_CPU_X86_AVX2"] if number % 3 else [],
                "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 512 * VCPU}},
            }
            for number in range(NODES_COUNT // HOSTS_COUNT)
        }
        (tmp_path / f"host-{host}.states").write_text(json.dumps(states))
        children.start_agents(host)
    try:
        wait_until(
            lambda: (
                len(scheduling_cell.read("snapshot").nodes) == NODES_COUNT
                and scheduling_cell.read("snapshot").age < VIEW_BOUND_S
            ),
            "the nodes are not in the view",
        )
        yield children
    finally:
        children.close()


def name_of(host: int, number: int) -> str:
    return f"host-{host}-{number:02}"


NAMES = [name_of(host, number) for host in range(HOSTS_COUNT) for number in range(NODES_COUNT // HOSTS_COUNT)]


class SchedulerFaults:
    """Injects faults into a cell on which schedulers work."""

    def __init__(self, cell: Cell, processes: ChildProcesses, memcached: MemcachedServer, seed: int) -> None:
        self.cell = cell
        self.processes = processes
        self.memcached = memcached
        self.rng = random.Random(seed)
        self.store = MemcachedStore(memcached.address, timeout_s=1.0)
        self.schedulers = [f"tenant-{number}" for number in range(SCHEDULERS_COUNT)]
        self.lives = Counter[str]()
        """How often each scheduler was started."""
        self.done = Counter[str]()
        """How often each kind of fault was injected."""

    def start_scheduler(self, name: str) -> None:
        self.lives[name] += 1
        life = f"{name}.{self.lives[name]}"
        self.processes.start(name, "tests.faults.tenants", life, str(self.rng.randrange(2**31)), str(CONFIRM_S))

    def kill_scheduler(self) -> None:
        name = self.rng.choice(self.schedulers)
        self.processes.kill(name)
        self.start_scheduler(name)

    def evict_claims(self) -> None:
        self.store.write([Write(Put.DELETE, keys.claim(self.cell.config.cell, self.rng.choice(NAMES)))])

    def freeze_agents(self) -> None:
        """Freeze half of the agents for longer than a scheduler waits for an answer."""
        self.processes.signal("host-0", signal.SIGSTOP)
        time.sleep(1.25 * ANSWER_TIMEOUT_S)
        self.processes.signal("host-0", signal.SIGCONT)

    def restart_memcached(self) -> None:
        self.memcached.kill()
        self.memcached.start()

    def inject(self, count: int) -> None:
        """Inject ``count`` faults, each kind at least once."""
        kinds = [self.kill_scheduler, self.evict_claims, self.freeze_agents]
        chosen = [*kinds, *self.rng.choices(kinds, [25, 50, 10], k=count - len(kinds) - 1)]
        self.rng.shuffle(chosen)
        chosen.insert(count // 2, self.restart_memcached)
        for fault in chosen:
            time.sleep(FAULT_EVERY_S)
            fault()
            self.done[fault.__name__] += 1


def test_schedulers_never_overcommit_a_full_fleet_while_faults_are_injected(
    scheduling_cell: Cell, processes: ChildProcesses, memcached: MemcachedServer, tmp_path: Path
) -> None:
    """Schedulers are killed, claim records evicted, memcached restarted, agents frozen, on a fleet that is full:
    no node ever has more than its room (I8), no reservation is half placed in the end (I9), and no allocation is
    made after its order allows it.
    """
    cell = scheduling_cell
    faults = SchedulerFaults(cell, processes, memcached, seed=5)
    for name in faults.schedulers:
        faults.start_scheduler(name)
    wait_until(lambda: share_taken(cell) >= FULL, lambda: f"the fleet is only {share_taken(cell):.0%} full")
    faults.inject(FAULTS_COUNT)
    totals = Counter[str]()
    for counters in processes.finish(faults.schedulers):
        totals.update(counters)

    # Another scheduler completes or rolls back the operations of the killed ones. It runs until all claims have expired
    # and no instance is in doubt. A scheduler that was killed during a confirmation has left claims that live longer.
    processes.start("repairing", "tests.faults.repairing_scheduler")

    def histories() -> Histories:
        files = [tmp_path / f"host-{host}.history" for host in range(HOSTS_COUNT)]
        return Histories(files, CLAIM_TTL_S - ANSWER_TIMEOUT_S)

    def leftovers() -> list[object]:
        claims = [*live_claims(cell.config, faults.store)]
        return claims or [*histories().half_placed(), *histories().doubled()]

    wait_until(lambda: not leftovers(), lambda: f"left over: {leftovers()}", poll_s=0.5)
    processes.finish(["repairing"])
    for host in range(HOSTS_COUNT):
        processes.terminate(f"host-{host}")
    faults.store.close()

    history = histories()
    cell.record(
        f"{len(history.moments)} states, {history.orders} orders, at most {history.fullest('VCPU'):.1%} full; "
        f"{dict(faults.done)}; {dict(totals)}"
    )
    assert list(history.overcommitted()) == []
    assert list(history.half_placed()) == []
    assert list(history.doubled()) == []
    assert history.late == []
    assert totals["boot Booted"] > 0


def share_taken(cell: Cell) -> float:
    """Return the share of the fleet's processors that the view shows as taken."""
    used = sum(node.state.get("usage", {}).get("VCPU", 0) for node in cell.read("snapshot").nodes.values())
    return float(used) / (NODES_COUNT * VCPU)


def live_claims(config: Config, store: MemcachedStore) -> list[Any]:
    """Return the claims that have not expired."""
    now = store.server_time()
    items = store.fetch([keys.claim(config.cell, name) for name in NAMES]).values()
    return [claim for item in items for claim in CLAIMS.unpack(item.value).claims if claim.until > now]


def test_hints_and_group_are_kept_for_the_life_of_an_instance(
    scheduling_cell: Cell, processes: ChildProcesses, memcached: MemcachedServer
) -> None:
    """Everything but the agents' disks is lost; then an instance is evacuated, migrated and resized, and the
    hints of its boot apply again each time (I10).
    """
    config, [consumer] = scheduling_cell.config, scheduling_cell.members
    courier = KombuCourier(config)
    with Scheduler(config, seed=1, courier=courier) as scheduler:
        groups = {"group": {"name": "web", "policy": "anti-affinity"}, "required_traits": ["HW_CPU_X86_AVX2"]}
        size = {"resources": {"VCPU": 2, "MEMORY_MB": 1024}}
        [other] = _booted(scheduler.boot(parse({"instances": ["other"], "zone": "az1", **size})))
        wanted = {"instances": ["one"], "zone": "az1", "different_host": ["other"], **groups, **size}
        [one] = _booted(scheduler.boot(parse(wanted)))
        members = _booted(
            scheduler.boot(parse({"instances": ["two", "three", "four"], "zone": "az1", **groups, **size}))
        )

    memcached.kill()
    memcached.start()
    consumer.kill()
    for host in range(HOSTS_COUNT):
        processes.kill(f"host-{host}")
        processes.start_agents(host)
    consumer.start()
    with Reader(config) as reader:
        wait_until(
            lambda: _shows(reader, ["other", "one", "two", "three", "four"]), "the instances are not in the view"
        )
    taken = {outcome.node for outcome in [other, *members]}

    with Scheduler(config, seed=2, courier=courier) as scheduler:
        node = one.node
        [evacuated] = _booted([outcome for outcome in scheduler.migrations.evacuate(node) if outcome.instance == "one"])
        node = _require_placed(scheduler, "one", evacuated, exclude={node} | taken)
        moved = scheduler.migrations.migrate("one")
        node = _require_placed(scheduler, "one", *_booted([moved]), exclude={node} | taken)
        grown = scheduler.migrations.resize("one", {"VCPU": 12, "MEMORY_MB": 1024})
        node = _require_placed(scheduler, "one", *_booted([grown]), exclude=taken)
        # The resized instance does not fit on its node beside another one, so it moves.
        [beside] = _booted(scheduler.boot(parse({"instances": ["beside"], "force_nodes": [node], **size})))
        assert beside.node == node
        grown = scheduler.migrations.resize("one", {"VCPU": 16, "MEMORY_MB": 1024})
        _require_placed(scheduler, "one", *_booted([grown]), exclude={node} | taken)
    courier.close()


def _booted(outcomes: Sequence[Any]) -> list[Booted]:
    assert all(isinstance(outcome, Booted) for outcome in outcomes), [str(outcome.reason) for outcome in outcomes]
    return list(outcomes)


def _shows(reader: Reader, instances: Sequence[str]) -> bool:
    view = reader.read(max_age=1e9, on_stale="flag")
    shown = {instance for node in view.nodes.values() for instance in node.state.get("allocations", {})}
    return view.age < VIEW_BOUND_S and not view.incomplete and shown >= set(instances)


def _require_placed(scheduler: Scheduler, instance: str, outcome: Booted, *, exclude: set[str]) -> str:
    """Require that the instance is on the node of the outcome alone, as its boot asked for; returns the node."""
    wait_until(lambda: _nodes_of(scheduler, instance) == [outcome.node], lambda: f"{_nodes_of(scheduler, instance)}")
    state = scheduler.view.nodes[outcome.node].state
    assert outcome.node not in exclude
    assert state["zone"] == "az1"
    assert "HW_CPU_X86_AVX2" in state["traits"]
    allocation = state["allocations"][instance]
    assert allocation["group"] == "web"
    assert allocation["hints"]["group_policy"] == "anti-affinity"
    assert allocation["hints"]["different_host"] == ("other",)
    return outcome.node


def _nodes_of(scheduler: Scheduler, instance: str) -> list[str]:
    view = scheduler.refresh()
    return [name for name, node in view.nodes.items() if instance in node.state.get("allocations", {})]
