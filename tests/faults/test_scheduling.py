"""Eight schedulers on a full fleet, on real servers, while everything that can fail does: I8 and I9 of DESIGN.md section 9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cell import SETTINGS
from harness.members import Member
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.ports import Put, Write
from nodestate.scheduling.claims import CLAIMS, CLOCK_S
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore
from tests.conftest import MemcachedFactory
from tests.faults.histories import Histories
from tests.faults.tenants import CONFIRM_S

pytestmark = [pytest.mark.service, pytest.mark.timeout(240)]

HOSTS_COUNT = 2
NODES_COUNT = 24
VCPU = 16
SCHEDULERS_COUNT = 8
FIRE_S = 20.0
CLAIM_TTL_S = 6.0
ANSWER_TIMEOUT_S = 2.0


class Programs:
    """Processes of this test, ended by their ids."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("NODESTATE_")} | settings
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, *arguments: str) -> None:
        with (self.folder / f"{name}.err").open("ab") as errors:
            self.running[name] = subprocess.Popen(  # noqa: S603  our own modules
                [sys.executable, "-m", module, *arguments],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def start_hosts(self, host: int) -> None:
        self.start(f"hosts-{host}", "tests.faults.hosts", str(self.folder), f"hosts-{host}")

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.running[name].pid, number)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def finish(self, name: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """End its stdin, and read what it has to say."""
        process = self.running.pop(name)
        out, _ = process.communicate(timeout=timeout_s)
        errors = (self.folder / f"{name}.err").read_text()
        assert process.returncode == 0, f"{name} ended with {process.returncode}:\n{errors[-3000:]}"
        told: dict[str, Any] = json.loads(out)
        return told

    def terminate(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0, (self.folder / f"{name}.err").read_text()[-3000:]

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)


class Cellar(NamedTuple):
    """A cell with a consumer and agents, ready for schedulers."""

    config: Config
    programs: Programs
    memcached: MemcachedServer
    consumer: Member


@pytest.fixture
def cellar(tmp_path: Path, cell: str, rabbit: RabbitServer, memcached_factory: MemcachedFactory) -> Iterator[Cellar]:
    """The cell of a test."""
    memcached = memcached_factory()
    values = {
        **SETTINGS,
        "cell": cell,
        "broker": rabbit.url,
        "store": memcached.url,
        "state_dir": str(tmp_path),
        "claim_ttl_s": CLAIM_TTL_S,
        "answer_timeout_s": ANSWER_TIMEOUT_S,
    }
    settings = {f"NODESTATE_{name.upper()}": str(value) for name, value in values.items()}
    settings |= {"NODESTATE_DESIGNS": "snapshot", "NODESTATE_READ_DESIGN": "snapshot"}
    config = Config(**{**values, "designs": ("snapshot",), "read_design": "snapshot"})  # type: ignore[arg-type]
    with ExitStack() as stack:
        member = Member(tmp_path, 1, 1, settings)
        stack.callback(member.kill)
        member.start()
        programs = Programs(tmp_path, settings)
        stack.callback(programs.close)
        for host in range(HOSTS_COUNT):
            states = {
                f"host-{host}-{number:02}": {
                    "status": "up",
                    "zone": f"az{number % 2}",
                    "traits": ["HW_CPU_X86_AVX2"] if number % 3 else [],
                    "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 512 * VCPU}},
                }
                for number in range(NODES_COUNT // HOSTS_COUNT)
            }
            (tmp_path / f"hosts-{host}.states").write_text(json.dumps(states))
            programs.start_hosts(host)
        reader = stack.enter_context(Reader(config))
        wait_until(
            lambda: (
                len(reader.read(max_age=1e9, on_stale="flag").nodes) == NODES_COUNT
                and reader.read(max_age=1e9, on_stale="flag").age < 2.0
            ),
            "the nodes are not in the view",
        )
        yield Cellar(config, programs, memcached, member)


def test_eight_schedulers_never_overcommit_under_fire(
    cellar: Cellar, tmp_path: Path, record: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    """Schedulers are killed, claim records evicted, memcached restarted, agents frozen, on a fleet that is full: no node has
    ever more than its room, no reservation is half placed in the end, no allocation is later than its order allows.
    """
    config, programs, memcached, _ = cellar
    rng = random.Random(5)
    lives = Counter[str]()
    totals = Counter[str]()

    def scheduler(name: str) -> None:
        lives[name] += 1
        programs.start(name, "tests.faults.tenants", f"{name}.{lives[name]}", str(rng.randrange(2**31)))

    names = [f"tenant-{number}" for number in range(SCHEDULERS_COUNT)]
    for name in names:
        scheduler(name)
    store = MemcachedStore(memcached.address, timeout_s=1.0)
    request.addfinalizer(store.close)
    began = time.monotonic()
    restarted = False
    evicted = killed = frozen = 0
    while (passed := time.monotonic() - began) < FIRE_S:
        time.sleep(0.4)
        fault = rng.random()
        if passed > 8 and fault < 0.25:
            name = rng.choice(names)
            programs.kill(name)
            scheduler(name)
            killed += 1
        elif passed > 5 and fault < 0.6:
            node = f"host-{rng.randrange(HOSTS_COUNT)}-{rng.randrange(NODES_COUNT // HOSTS_COUNT):02}"
            store.write([Write(Put.DELETE, keys.claim(config.cell, node))])
            evicted += 1
        elif passed > 5 and fault < 0.7:
            programs.signal("hosts-0", signal.SIGSTOP)
            time.sleep(1.5 * ANSWER_TIMEOUT_S)
            programs.signal("hosts-0", signal.SIGCONT)
            frozen += 1
        elif passed > FIRE_S / 2 and not restarted:
            memcached.kill()
            memcached.start()
            restarted = True
    for name in names:
        totals.update(programs.finish(name))
    # Whoever comes next finishes what the dead left.
    programs.start("tidier", "tests.faults.tidier", str(2 * CLAIM_TTL_S + 4.0))
    programs.finish("tidier", 60.0)
    for host in range(HOSTS_COUNT):
        programs.terminate(f"hosts-{host}")

    histories = Histories(
        [tmp_path / f"hosts-{host}.history" for host in range(HOSTS_COUNT)], CLAIM_TTL_S - ANSWER_TIMEOUT_S
    )
    record(
        f"{len(histories.moments)} states, {histories.orders} orders, at most {histories.fullest('VCPU'):.1%} full; "
        f"{killed} schedulers killed, {evicted} records evicted, {frozen} freezes; {dict(totals)}"
    )
    assert list(histories.overcommitted()) == []
    assert list(histories.half_placed()) == []
    assert list(histories.doubled()) == []
    assert histories.late == []
    # Of one that was killed while it confirmed, claims are held for as long as it would have waited.
    wait_until(
        lambda: _claims_that_live(config, store) == [],
        lambda: f"claims live yet: {_claims_that_live(config, store)}",
        CLAIM_TTL_S + CONFIRM_S + CLOCK_S,
    )
    # And it was what it should be: a full fleet, faults that were felt, and groups that were placed.
    assert histories.fullest("VCPU") >= 0.97
    assert min(killed, evicted, restarted) > 0
    assert totals["boot Booted"] > 0


def test_hints_and_group_hold_for_life(cellar: Cellar) -> None:
    """Everything but the agents' disks is lost; then an instance is evacuated, resized and moved, and what was asked for at its
    boot is asked for again each time (I10).
    """
    config, programs, memcached, consumer = cellar
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
        programs.kill(f"hosts-{host}")
        programs.start_hosts(host)
    consumer.start()
    with Reader(config) as reader:
        wait_until(
            lambda: _shows(reader, ["other", "one", "two", "three", "four"]), "the instances are not in the view"
        )
    taken = {outcome.node for outcome in [other, *members]}

    with Scheduler(config, seed=2, courier=courier) as scheduler:
        at = one.node
        [evacuated] = _booted([outcome for outcome in scheduler.migrations.evacuate(at) if outcome.instance == "one"])
        at = _stands(scheduler, "one", evacuated, but={at} | taken)
        moved = scheduler.migrations.migrate("one")
        at = _stands(scheduler, "one", *_booted([moved]), but={at} | taken)
        grown = scheduler.migrations.resize("one", {"VCPU": 12, "MEMORY_MB": 1024})
        at = _stands(scheduler, "one", *_booted([grown]), but=taken)
        # It does not fit beside itself any more once it is to have more than what its node has left.
        [beside] = _booted(scheduler.boot(parse({"instances": ["beside"], "force_nodes": [at], **size})))
        assert beside.node == at
        grown = scheduler.migrations.resize("one", {"VCPU": 16, "MEMORY_MB": 1024})
        _stands(scheduler, "one", *_booted([grown]), but={at} | taken)
    courier.close()


def _booted(outcomes: Sequence[Any]) -> list[Booted]:
    assert all(isinstance(outcome, Booted) for outcome in outcomes), [str(outcome.reason) for outcome in outcomes]
    return list(outcomes)


def _shows(reader: Reader, instances: Sequence[str]) -> bool:
    view = reader.read(max_age=1e9, on_stale="flag")
    shown = {instance for node in view.nodes.values() for instance in node.state.get("allocations", {})}
    return view.age < 2.0 and not view.incomplete and shown >= set(instances)


def _stands(scheduler: Scheduler, instance: str, outcome: Booted, *, but: set[str]) -> str:
    """The instance is on the node of the outcome alone, as it was asked to be at its boot; returns the node."""
    wait_until(lambda: _nodes_of(scheduler, instance) == [outcome.node], lambda: f"{_nodes_of(scheduler, instance)}")
    state = scheduler.view.nodes[outcome.node].state
    assert outcome.node not in but
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


def _claims_that_live(config: Config, store: MemcachedStore) -> list[Any]:
    names = [
        keys.claim(config.cell, f"host-{h}-{n:02}")
        for h in range(HOSTS_COUNT)
        for n in range(NODES_COUNT // HOSTS_COUNT)
    ]
    now = store.server_time()
    records = [CLAIMS.unpack(item.value) for item in store.fetch(names).values()]
    return [claim for record in records for claim in record.claims if claim.until > now]
