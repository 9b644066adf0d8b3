"""Measures reservations of groups, all or nothing, by competing schedulers on a fleet that has hardly enough room.

The same reservations are made in the same order, once by one scheduler and once divided among four. Each reservation is
held while a number of further ones is tried, so that all together want slightly more than the fleet has. Some find no
room; which ones depends on their order. At the end the claim records are read without any scheduler, which proves that
every group is reserved completely or not at all.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bench.environments import PATIENCE_S, Environment
from bench.memcached_environment import MemcachedEnvironment
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.scheduling.hosts import Hosts
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.worker import ParentLink, Worker
from bench.workload import require
from nodestate.config import Config
from nodestate.ports import Key, Put, Write
from nodestate.scheduling.claims import CLAIMS, UNSURE_S, Claim, ClaimRecord
from nodestate.scheduling.request import GroupRequest, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.scheduler import Scheduler
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore

NODES: Final = (200,)
GROUPS_COUNT: Final = 1_000
GROUPS_BRIEF_COUNT: Final = 24
BRIEF_S: Final = 1.0
SIZES: Final = (2, 64)
"""Smallest and largest number of members of a group."""
VCPUS: Final = (8, 16, 32, 64)
MEMORY_MB_PER_VCPU: Final = 1_000
WANTED_SHARE: Final = 1.1
"""VCPUs that are wanted at the same time, as a share of all VCPUs."""
SCHEDULERS: Final = 4
TIMEOUT_S: Final = 10.0
HOLD_S: Final = 3_600.0
GOAL_POINTS: Final = 5.0


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure one scheduler alone, then four, in the first design, at every size."""
    runs = Runs()
    for nodes in settings.nodes:

        def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
            hosts = Hosts(settings.seed, nodes, 0.0, state_bytes=settings.state_bytes)
            with SteppedCell(hosts, environment, settings) as cell:
                cell.load(report_progress)
                return [_raced(cell, hosts, schedulers, settings, report_progress) for schedulers in (1, SCHEDULERS)]

        runs.measure_in([settings.designs[0]], nodes * settings.state_bytes, measure)
    return runs.findings(*_compared(runs.cases))


SCENARIO: Final = Scenario("reserve", "reservations of groups, all or nothing, by competing schedulers", run, NODES)


def wanted(seed: int, count: int) -> list[dict[str, Any]]:
    """Return ``count`` requests for groups, as decoded JSON; half of them are anti-affinity groups."""
    rng = random.Random(f"groups {seed}")
    groups = []
    for number in range(count):
        members = [
            {
                "instances": [f"g{number}-{member}"],
                "resources": {"VCPU": vcpus, "MEMORY_MB": vcpus * MEMORY_MB_PER_VCPU, "DISK_GB": 10},
            }
            for member, vcpus in enumerate(rng.choices(VCPUS, k=rng.randint(*SIZES)))
        ]
        group: dict[str, Any] = {"members": members, "hold_s": HOLD_S}
        if rng.random() < 0.5:
            group["group"] = {"name": f"g{number}", "policy": "anti-affinity"}
        groups.append(group)
    return groups


@dataclass(frozen=True, slots=True)
class ReserveResult:
    """The reservations of one scheduler."""

    ms: Sequence[float]
    """Milliseconds of each reservation."""
    good: Sequence[bool]
    """Whether each reservation succeeded."""
    held: Sequence[str]
    """Ids of the reservations that the scheduler holds at the end."""


def reserve_along(
    parent: ParentLink, config: Config, name: str, seed: int, groups: list[dict[str, Any]], most: int
) -> ReserveResult:
    """Reserve one group after the other, and hold each while ``most`` further groups are tried."""
    wants = [parse_group(group) for group in groups]
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S) as scheduler:
        scheduler.refresh()
        parent.report_ready()
        ms, good, held = [], [], deque[tuple[int, Reservation]]()
        for number, want in enumerate(wants):
            while held and held[0][0] <= number - most:
                scheduler.reservations.release(held.popleft()[1].id)
            began = time.perf_counter()
            found = scheduler.reservations.reserve(want, timeout_s=TIMEOUT_S)
            ms.append((time.perf_counter() - began) * 1e3)
            good.append(isinstance(found, Reservation))
            if isinstance(found, Reservation):
                _require_whole(want, found)
                held.append((number, found))
        return ReserveResult(ms, good, [one.id for _, one in held])


def _require_whole(want: GroupRequest, found: Reservation) -> None:
    asked = {instance for member in want.members for instance in member.instances}
    require({member.instance for member in found.members} == asked, "a reservation has other members than its request")
    if want.group is not None:
        nodes = Counter(member.node for member in found.members)
        require(max(nodes.values()) == 1, f"two of an anti-affinity group share a node: {nodes.most_common(1)}")


def _raced(
    cell: SteppedCell, hosts: Hosts, schedulers: int, settings: Settings, report_progress: ReportProgress
) -> Case:
    environment = cell.environment
    assert isinstance(environment, MemcachedEnvironment), "claims live in memcached"
    count = GROUPS_BRIEF_COUNT if settings.seconds < BRIEF_S else GROUPS_COUNT
    groups = wanted(settings.seed, count)
    vcpus = [sum(member["resources"]["VCPU"] for member in group["members"]) for group in groups]
    room = sum(hosts.kind(number).capacity["VCPU"] for number in range(len(hosts)))
    most = max(schedulers, round(WANTED_SHARE * room / (sum(vcpus) / len(vcpus))))
    report_progress(f"{cell.label}: {count} reservations, {schedulers} schedulers", 0.0)
    # The consumer writes only when it is stepped. A scheduler refuses views that are older than ``claim_ttl_s``.
    config = msgspec.structs.replace(cell.config, claim_ttl_s=HOLD_S)
    store = MemcachedStore(environment.address, timeout_s=PATIENCE_S)
    _begin_records(store, cell.config, hosts)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                Worker(
                    reserve_along,
                    config,
                    f"scheduler-{number}",
                    settings.seed + number,
                    groups[number::schedulers],
                    most // schedulers,
                )
            )
            for number in range(schedulers)
        ]
        for process in processes:
            process.wait_until_ready()
        began = time.monotonic()
        while not all(process.has_ended(0.2) for process in processes):
            report_progress(f"{cell.label}: {count} reservations, {schedulers} schedulers", 0.5)
            require(time.monotonic() - began < count * TIMEOUT_S, "the schedulers did not finish in time")
        took_s = time.monotonic() - began
        found = [process.result() for process in processes]
    shown = _require_sound(store, cell.config, hosts, {one for each in found for one in each.held})
    store.close()
    good = sum(one for each in found for one in each.good)
    return Case(
        cell.label,
        len(hosts),
        {"schedulers": schedulers, "reservations": count, "held_most": most},
        {
            "reserve": Measure.of("ms", [ms for each in found for ms in each.ms]),
            "held": Measure.of("%", [100.0 * good / count]),
            "reservations": Measure.of("/s", [count / took_s]),
        },
        {},
        [shown],
    )


def _begin_records(store: MemcachedStore, config: Config, hosts: Hosts) -> None:
    """Give every node an empty claim record, old enough that schedulers need not wait for lost claims."""
    value = CLAIMS.pack(ClaimRecord(store.server_time() - 2 * UNSURE_S))
    claims = [keys.claim(config.cell, name) for name in hosts.names]
    store.write([Write(Put.DELETE, key) for key in claims])
    store.write([Write(Put.ADD, key, value) for key in claims])


def _claims(store: MemcachedStore, config: Config, hosts: Hosts) -> Iterator[tuple[int, Claim]]:
    asked: dict[Key, int] = {keys.claim(config.cell, name): number for number, name in enumerate(hosts.names)}
    for key, item in store.fetch(list(asked)).items():
        for claim in CLAIMS.unpack(item.value).claims:
            yield asked[key], claim


def _require_sound(store: MemcachedStore, config: Config, hosts: Hosts, held: set[str]) -> str:
    """Require that the records hold exactly the schedulers' reservations, each complete and within all capacities."""
    members: dict[str, list[Claim]] = {}
    used: dict[int, Counter[str]] = {}
    for number, claim in _claims(store, config, hosts):
        members.setdefault(claim.reservation, []).append(claim)
        used.setdefault(number, Counter()).update(claim.resources)
    require(
        members.keys() == held,
        f"{len(members.keys() ^ held)} reservations are in the records or with a scheduler, but not both",
    )
    for reservation, claims in members.items():
        require(
            len(claims) == claims[0].members,
            f"{reservation} is incomplete: {len(claims)} of {claims[0].members} members",
        )
        require(all(claim.kept for claim in claims), f"{reservation} is not kept")
    for number, amounts in used.items():
        capacity = hosts.kind(number).capacity
        over = {name for name, amount in amounts.items() if amount > capacity[name]}
        require(not over, f"{hosts.names[number]} is over its capacity of {over}")
    return f"all {len(held)} reservations that are held at the end are complete, and no node is over its capacity"


def _compared(cases: Sequence[Case]) -> tuple[dict[str, float], list[Goal]]:
    """Return how many percentage points fewer succeed if several schedulers compete, and how much longer they take."""
    across: dict[str, float] = {}
    goals = []
    alone = {case.nodes: case for case in cases if case.settings["schedulers"] == 1}
    for case in cases:
        if case.settings["schedulers"] == 1:
            continue
        before = alone[case.nodes]
        points = before.measures["held"].p50 - case.measures["held"].p50
        across[f"{case.nodes:,} nodes: points that {SCHEDULERS} schedulers hold less than one"] = points
        across[f"{case.nodes:,} nodes: reserve p99 / alone"] = (
            case.measures["reserve"].p99 / before.measures["reserve"].p99
        )
        if case.settings["reservations"] == GROUPS_COUNT:  # of few reservations, one more or less would decide
            goals.append(
                Goal.at_most(
                    f"{case.nodes:,} nodes: {SCHEDULERS} schedulers hold less than one", points, GOAL_POINTS, "points"
                )
            )
    return across, goals
