"""Measures the cost of decisions and claims, for one scheduler and for several that claim at the same time.

First one scheduler chooses nodes for one request after the other, with and without reading changes, and claims in
batches of several sizes. Then several schedulers in processes of their own claim on the same fleet, which is empty,
half full, nearly full or full. The chosen nodes are compared with the best node of a plain search. The claims are read
from the records without any scheduler.
"""

from __future__ import annotations

import gc
import os
import random
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import msgspec
import numpy as np
from pymemcache.client.base import Client

from bench.environments import PATIENCE_S, Environment
from bench.fresh_process import run_in_fresh_process
from bench.memcached_environment import MemcachedEnvironment, memcached_for
from bench.record import Case, Goal, Measure, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.scheduling.claim_audit import ClaimAudit
from bench.scheduling.claim_race import BATCH_COUNT, Race, RaceResult, race
from bench.scheduling.claim_slices import BATCHES, CLAIM_TTL_S, claim_slice
from bench.scheduling.hosts import FLAVOURS, Hosts, RequestStream, best_worth, fits, worth
from bench.scheduling.openstack_decisions import OPENSTACK, measure_nova
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.worker import Worker
from bench.workload import require
from harness.servers import ServerMissingError
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.scheduling.claims import Placing
from nodestate.scheduling.request import Request
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection.ranking import TIE_WIDTH

HALF: Final = 0.5
"""Mean usage of the fleet on which one scheduler decides."""
FULL: Final = (0.0, HALF, 0.9, 0.99)
SCHEDULERS: Final = (1, 2, 4, 8)
BRIEF_S: Final = 1.0
"""A run with fewer seconds has fewer races."""
FULL_BRIEF: Final = (HALF,)
SCHEDULERS_BRIEF: Final = (1, 2)
ROUNDS_MIN: Final = 20
ONE_SHARE: Final = 0.5
BATCH_SHARE: Final = 0.15
RACE_SHARE: Final = 0.2
"""Shares of the seconds to measure: for single requests, for each size of batch, and for each race."""
HELD_SHARE: Final = 0.25
"""Largest share of the free room that all schedulers of a race hold together."""
COMPARED_COUNT: Final = 12
"""Largest number of requests whose chosen node is compared with a plain search."""
COMPARED_NODES: Final = 100_000
"""Largest number of nodes that these searches visit, all together."""
START_AFTER_S: Final = 0.2
NOVA_NODES_MAX: Final = 10_000
GOAL_NODES: Final = {10_000: 1.0, 100_000: 6.0}
GOAL_CLAIMS: Final = 4_000.0
GOAL_SHARE: Final = 0.7


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure one scheduler in every design at every size, races, and OpenStack.

    Races take place in the first design with the smallest fleet, OpenStack with fleets of up to ``NOVA_NODES_MAX``
    nodes.
    """
    runs = Runs()
    brief = settings.seconds < BRIEF_S
    for design in settings.designs:
        for nodes in settings.nodes:
            races = (design, nodes) == (settings.designs[0], min(settings.nodes))
            for full in (FULL_BRIEF if brief else FULL) if races else (HALF,):

                def measure(
                    environment: Environment, nodes: int = nodes, full: float = full, races: bool = races
                ) -> list[Case]:
                    hosts = Hosts(settings.seed, nodes, full, state_bytes=settings.state_bytes)
                    with ExitStack() as held:
                        held.callback(gc.unfreeze)
                        cell = held.enter_context(SteppedCell(hosts, environment, settings))
                        claim_cell = held.enter_context(_claim_cell(cell, hosts, settings, report_progress))
                        cases = [_one(claim_cell), *_batches(claim_cell)] if full == HALF else []
                        return [*cases, *(_races(claim_cell, brief=brief) if races else [])]

                runs.measure_in([design], nodes * settings.state_bytes, measure)
    for nodes in (nodes for nodes in settings.nodes if nodes <= NOVA_NODES_MAX):
        try:
            cases, versions = measure_nova(Hosts(settings.seed, nodes, HALF), settings, report_progress)
        except ServerMissingError as error:
            runs.skipped[f"openstack: {error}"] = None
        else:
            runs.cases += cases
            runs.servers |= versions
    return runs.findings(*_compared(runs.cases))


SCENARIO: Final = Scenario("select", "decisions and claims of one scheduler and of several at once", run)


class ClaimCell(NamedTuple):
    """A loaded cell, the memcached with its claims, and an audit of the claims."""

    cell: SteppedCell
    hosts: Hosts
    config: Config
    address: str
    audit: ClaimAudit
    settings: Settings
    report_progress: ReportProgress

    @property
    def label(self) -> str:
        """The label of the cell in figures."""
        return self.cell.label

    def scheduler(self) -> Scheduler:
        """Return a new scheduler that has read the fleet."""
        scheduler = Scheduler(self.config, name="bench", seed=self.settings.seed, max_age=MAX_AGE_S)
        scheduler.refresh()
        return scheduler


@contextmanager
def _claim_cell(
    cell: SteppedCell, hosts: Hosts, settings: Settings, report_progress: ReportProgress
) -> Iterator[ClaimCell]:
    """Load a cell. Claims are stored in the memcached of the design or, if it uses none, in one of their own."""
    cell.load(report_progress)
    with ExitStack() as held:
        environment = cell.environment
        config = msgspec.structs.replace(cell.config, claim_ttl_s=CLAIM_TTL_S)
        if isinstance(environment, MemcachedEnvironment):
            address = environment.address
        else:
            server = held.enter_context(memcached_for(0))
            address, config = server.address, msgspec.structs.replace(config, store=server.url)
        audit = held.enter_context(ClaimAudit([address], config.cell, hosts))
        # Objects that exist now belong to the benchmark; the garbage collector of a scheduler would not visit them.
        gc.collect()
        gc.freeze()
        yield ClaimCell(cell, hosts, config, address, audit, settings, report_progress)


# -- one scheduler, one request after the other ---------------------------------------------------


def _one(claim_cell: ClaimCell) -> Case:
    cell, hosts, settings = claim_cell.cell, claim_cell.hosts, claim_cell.settings
    changed = min(settings.changed, len(hosts))
    picks, timings = random.Random(settings.seed), Timings()
    wants = RequestStream(settings.seed)
    baseline = _Baseline(claim_cell)
    with claim_cell.scheduler() as scheduler:
        best = _require_best(claim_cell, scheduler, wants)
        plain = [Request(resources=flavour.resources, required_traits=flavour.traits) for flavour in FLAVOURS]
        seconds = settings.seconds * ONE_SHARE
        began, rounds = time.monotonic(), 0
        while rounds < ROUNDS_MIN or time.monotonic() - began < seconds:
            claim_cell.report_progress(
                f"{claim_cell.label}, {len(hosts):,} nodes: requests", (time.monotonic() - began) / seconds
            )
            rounds += 1
            timings.time("select, unseen shape", scheduler.selector.choices, wants.unseen())
            seen = plain[rounds % len(plain)]
            scheduler.select(seen)
            cell.change(picks.sample(range(len(hosts)), 1))
            scheduler.refresh()
            timings.time("select, one node changed", scheduler.selector.choices, seen)
            timings.time("read and select, nothing changed", scheduler.select, seen)
            cell.change(picks.sample(range(len(hosts)), changed))
            [choice] = timings.time("read and select, some changed", scheduler.select, seen)
            require(choice.node is not None, f"no node for {seen.resources}")
            cell.change(picks.sample(range(len(hosts)), changed))
            view = scheduler.refresher.reader.read(max_age=MAX_AGE_S, on_stale="exclude")
            timings.time("advance", scheduler.fleet.advance, view)
            scheduler.refresh()
            [placing] = timings.time("claim", _claim, scheduler, [seen])
            scheduler.placer.give_back([placing])
            baseline.sample(timings)
        again = _require_best(claim_cell, scheduler, wants)
        claim_cell.audit.require_sound([])
    baseline.close()
    kept = cell.environment.require_nothing_lost(len(hosts))
    measures = timings.measures
    measures["memory beyond the reader"] = Measure.of("bytes/node", [_memory(claim_cell)])
    p50 = {name: measure.p50 for name, measure in measures.items()}
    label, nodes = f"{claim_cell.label}: one request", len(hosts)
    return Case(
        label,
        nodes,
        {"changed": changed, "full": hosts.full, "weighers": 3, "tie_width": TIE_WIDTH},
        measures,
        {
            "unseen shape / bare argmax": p50["select, unseen shape"] / p50["bare argmax"],
            "claim / bare cas": p50["claim"] / p50["bare cas"],
        },
        [
            (
                f"{best + again} choices before and after the rounds were as good as the best of a plain search over "
                f"all {nodes:,} nodes"
            ),
            "after the last claim had been given back, no record held a claim",
            kept,
        ],
        [
            Goal.at_most(f"{label}, {nodes:,} nodes: {name}, p50", p50[name], GOAL_NODES[nodes], "ms")
            for name in ("select, unseen shape", "select, one node changed", "read and select, nothing changed")
            if nodes in GOAL_NODES
        ],
    )


def _claim(scheduler: Scheduler, requests: Sequence[Request]) -> list[Placing]:
    placings = scheduler.claim(requests)
    require(all(placing.claim is not None for placing in placings), f"not claimed: {placings[0].failure}")
    return placings


def _require_best(claim_cell: ClaimCell, scheduler: Scheduler, wants: RequestStream) -> int:
    """Compare the scheduler's choices with a plain search over the fleet; return the number of choices."""
    hosts = claim_cell.hosts
    number_of = {name: number for number, name in enumerate(hosts.names)}
    scheduler.refresh()
    count = max(1, min(COMPARED_COUNT, COMPARED_NODES // len(hosts)))
    for request in [request for request in wants.take(10 * count) if request.group is None][:count]:
        [choice] = scheduler.select(request)
        require(choice.node is not None, f"no node was chosen for {request.resources}")
        number = number_of[choice.node or ""]
        require(fits(hosts, number, request), f"{choice.node} was chosen for {request.resources}, but it has no room")
        best, got = best_worth(hosts, request), worth(hosts, number, request)
        require(got > best - TIE_WIDTH, f"{choice.node} was chosen with weight {got}, but the best weight is {best}")
    return count


class _Baseline:
    """Baseline: a compare-and-swap through the client library, and a search for the largest of N numbers."""

    KEY: Final = "bare:claim"

    def __init__(self, claim_cell: ClaimCell) -> None:
        host, _, port = claim_cell.address.rpartition(":")
        self._client = Client((host, int(port)), no_delay=True, timeout=PATIENCE_S)
        self._client.set(self.KEY, b"x" * 200, noreply=False)
        self._scores = np.random.default_rng(claim_cell.settings.seed).random(len(claim_cell.hosts))

    def sample(self, timings: Timings) -> None:
        """Take one sample of each."""
        value, cas = self._client.gets(self.KEY)
        require(
            timings.time("bare cas", self._client.cas, self.KEY, value, cas, noreply=False),
            "the compare-and-swap of the baseline failed",
        )
        timings.time("bare argmax", np.argmax, self._scores)

    def close(self) -> None:
        self._client.close()


def _memory(claim_cell: ClaimCell) -> float:
    """Return the bytes for each node that a scheduler needs beyond its reader, after requests of several shapes."""
    return run_in_fresh_process(scheduler_bytes, claim_cell.config, claim_cell.settings.seed) / len(claim_cell.hosts)


def scheduler_bytes(config: Config, seed: int) -> int:
    """Return the bytes allocated after the reader's first view until a request of each shape; runs in a new process."""
    with Reader(config) as reader:
        reader.read(max_age=MAX_AGE_S, on_stale="flag")
        gc.collect()
        tracemalloc.start()
        scheduler = Scheduler(config, seed=seed, max_age=MAX_AGE_S, reader=reader)
        scheduler.refresh()
        for flavour in FLAVOURS:
            scheduler.select(Request(resources=flavour.resources, required_traits=flavour.traits))
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        scheduler.close()
    return size


# -- one scheduler, in batches --------------------------------------------------------------------


def _batches(claim_cell: ClaimCell) -> list[Case]:
    return [_batch(claim_cell, batch) for batch in BATCHES]


def _batch(claim_cell: ClaimCell, batch: int) -> Case:
    hosts, settings = claim_cell.hosts, claim_cell.settings
    seconds = settings.seconds * BATCH_SHARE
    wants, rates, cpu_us = RequestStream(settings.seed, f"batch {batch}"), list[float](), list[float]()
    with claim_cell.scheduler() as scheduler:
        scheduler.placer.give_back(claim_slice(scheduler, wants, batch).placings)
        first = claim_slice(scheduler, wants, batch)
        shown = claim_cell.audit.require_sound(first.held)
        scheduler.placer.give_back(first.placings)
        began = time.monotonic()
        while not rates or time.monotonic() - began < seconds:
            claim_cell.report_progress(
                f"{claim_cell.label}, {len(hosts):,} nodes: batches of {batch}", (time.monotonic() - began) / seconds
            )
            done = claim_slice(scheduler, wants, batch)
            scheduler.placer.give_back(done.placings)
            rates.append(done.rate)
            cpu_us.append(done.cpu_us)
    claim_cell.audit.require_sound([])
    measures = {"claims": Measure.of("claims/s", rates), "claims, CPU": Measure.of("us/claim", cpu_us)}
    label = f"{claim_cell.label}: batches"
    goals = (
        [Goal.at_least(f"{label} of {batch}: claims", measures["claims"].p50, GOAL_CLAIMS, "claims/s")]
        if len(hosts) == min(GOAL_NODES) and batch == max(BATCHES)
        else []
    )
    return Case(
        label,
        len(hosts),
        {"batch": batch, "full": hosts.full},
        measures,
        {},
        [f"every request got a claim; {shown}", claim_cell.cell.environment.require_nothing_lost(len(hosts))],
        goals,
    )


# -- many schedulers ------------------------------------------------------------------------------


def _races(claim_cell: ClaimCell, *, brief: bool) -> Iterator[Case]:
    seconds = claim_cell.settings.seconds * (1.0 if brief else RACE_SHARE)
    for schedulers in SCHEDULERS_BRIEF if brief else SCHEDULERS:
        for shared in (True, False) if schedulers > 1 else (True,):
            yield _race(claim_cell, schedulers, seconds, shared=shared)


def _race(claim_cell: ClaimCell, schedulers: int, seconds: float, *, shared: bool) -> Case:
    hosts, settings = claim_cell.hosts, claim_cell.settings
    label = f"{claim_cell.label}: schedulers" + ("" if shared else ", sharing nothing")
    claim_cell.report_progress(f"{label}, {hosts.full:.0%} full, {schedulers} schedulers start", 0.0)
    claim_cell.audit.delete_records()
    own = Race(seconds, int(HELD_SHARE * room(hosts) / schedulers), shared, settings.seed)
    with ExitStack() as stack:
        racers = [
            stack.enter_context(Worker(race, claim_cell.config, f"scheduler-{number}", own))
            for number in range(schedulers)
        ]
        for racer in racers:
            racer.wait_until_ready()
        start = time.monotonic() + START_AFTER_S
        for racer in racers:
            racer.send(start)
        claim_cell.report_progress(f"{label}, {hosts.full:.0%} full, {schedulers} schedulers", 0.5)
        raced = [racer.result() for racer in racers]
    shown = claim_cell.audit.require_sound([claim for one in raced for claim in one.held])
    claim_cell.audit.delete_records()
    return Case(
        label,
        len(hosts),
        {"schedulers": schedulers, "full": hosts.full, "batch": BATCH_COUNT, "held_most": own.held_most},
        _race_measures(raced),
        {},
        [shown, claim_cell.cell.environment.require_nothing_lost(len(hosts))],
    )


def room(hosts: Hosts) -> int:
    """Return for about how many instances of mean size the fleet has room."""
    weights = sum(flavour.weight for flavour in FLAVOURS)
    mean_mb = sum(flavour.weight * flavour.memory_mb for flavour in FLAVOURS) / weights
    free_mb = sum(hosts.kind(n).capacity["MEMORY_MB"] - hosts.usage(n)["MEMORY_MB"] for n in range(len(hosts)))
    return int(free_mb / mean_mb)


def _race_measures(raced: Sequence[RaceResult]) -> dict[str, Measure]:
    """Return the rates of each scheduler, the rate of all together, and shares of all requests and writes."""
    claims = sum(one.claims for one in raced)
    require(claims > 0, "no scheduler claimed anything")
    wanted = claims + sum(one.nowhere + one.given_up for one in raced)
    written, lost = sum(one.written for one in raced), sum(one.lost for one in raced)
    return {
        "claims": Measure.of("claims/s", [one.claims / one.seconds for one in raced]),
        "claims, all": Measure.of("claims/s", [sum(one.claims / one.seconds for one in raced)]),
        "claims, CPU": Measure.of("us/claim", [sum(one.cpu_s for one in raced) / claims * 1e6]),
        "conflicts": Measure.of("%", [100 * lost / (written + lost)]),
        "no room": Measure.of("%", [100 * sum(one.nowhere for one in raced) / wanted]),
        "given up": Measure.of("%", [100 * sum(one.given_up for one in raced) / wanted]),
    }


# -- ratios --------------------------------------------------------------------------------------


def _compared(cases: Sequence[Case]) -> tuple[dict[str, float], list[Goal]]:
    """Return ratios of cases, and goals.

    Several schedulers are compared with one, schedulers without sharing with schedulers that share, and OpenStack
    with nodestate.
    """
    across: dict[str, float] = {}
    goals: list[Goal] = []
    races = {
        (case.design, case.settings["full"], int(case.settings["schedulers"])): case
        for case in cases
        if "schedulers" in case.settings
    }
    cores = cores_here()
    for (design, full, schedulers), case in races.items():
        name = f"{design}, {full:.0%} full, {schedulers} schedulers"
        one = races.get((design.removesuffix(", sharing nothing"), full, 1))
        if one is not None and schedulers > 1:
            ratio = case.measures["claims, all"].p50 / one.measures["claims, all"].p50
            share = ratio / min(schedulers, cores)
            across[f"{name}: all claims / those of 1"] = ratio
            across[f"{name}: claims for each of {min(schedulers, cores)} cores / those of 1"] = share
            if (
                case.nodes == min(GOAL_NODES)
                and schedulers == cores
                and full == HALF
                and not design.endswith("sharing nothing")
            ):
                goals.append(
                    Goal.at_least(f"{name} on {cores} cores: claims for each core / those of 1", share, GOAL_SHARE, "x")
                )
        shared = races.get((design.removesuffix(", sharing nothing"), full, schedulers))
        if shared is not None and shared is not case:
            across[f"{name}: all claims / sharing"] = (
                case.measures["claims, all"].p50 / shared.measures["claims, all"].p50
            )
    for own in (case for case in cases if case.design.endswith(": one request")):
        for theirs in (case for case in cases if case.design in OPENSTACK and case.nodes == own.nodes):
            across |= _openstack_ratios(own, theirs)
    return across, goals


COMPARED_WITH_OPENSTACK: Final = (
    ("filter and weigh", "select, unseen shape"),
    ("filter and weigh", "select, one node changed"),
    ("candidates", "read and select, some changed"),
    ("claim", "claim"),
)


def _openstack_ratios(own: Case, theirs: Case) -> dict[str, float]:
    return {
        f"{own.nodes:,} nodes: {theirs.design}, {measure} / {own.design}, {ours}": theirs.measures[measure].p50
        / own.measures[ours].p50
        for measure, ours in COMPARED_WITH_OPENSTACK
        if measure in theirs.measures and ours in own.measures
    }


def cores_here() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
