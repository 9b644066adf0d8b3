"""Measures the cost of two replicas: a consumer, a reader and a scheduler with ``replicas`` 2, and the same with 1.

Each mode has three memcached servers of its own, so that the bytes of both can be told apart. In each round one
consumer process of each mode drains the same events from its queues. Two readers then follow two cells that commit the
same changes, one in each mode, and two schedulers claim the same requests on the same fleet. The order of the two
alternates from round to round, because the machine drifts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self

from msgspec import structs

from bench.design_names import DEFAULT_DESIGNS, design_label
from bench.environments import config_for
from bench.memcached_environment import MemcachedEnvironment, memcached_for
from bench.mode_comparison import (
    Comparison,
    compare_consumers,
    compare_readers,
    fleet_of,
    frozen_heap,
    in_turn,
    ratio_name,
)
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.scheduling.claim_audit import ClaimAudit
from bench.scheduling.claim_slices import BATCHES, CLAIM_TTL_S, SLICE_CLAIMS, ClaimSlice, claim_slice
from bench.scheduling.hosts import Hosts, RequestStream
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet
from harness.servers import RabbitServer
from nodestate import Reader
from nodestate.broker import connect_check
from nodestate.config import Config
from nodestate.scheduling.scheduler import Scheduler

ONE, TWO = MODES = ("1 replica", "2 replicas")
REPLICAS: Final = {ONE: 1, TWO: 2}
SERVERS_COUNT: Final = 3
"""memcached servers of each mode."""
REFRESH_MOST: Final = 1.05
"""Goal of the ratio of the times of a refresh."""
CONSUMER_LEAST: Final = 0.65
"""Goal of the ratio of events a second."""
CLAIMS_LEAST: Final = 0.7
"""Goal of the ratio of claims a second."""
HALF: Final = 0.5
"""Mean usage of the fleet on which schedulers claim."""
NO_GOALS: Final[Mapping[str, float]] = MappingProxyType({})
OWNER_RENEW_S: Final = 0.1
"""``renew_s`` of the consumers beside schedulers. They renew their heads before each sample, and not during one."""
FRESH_S: Final = 1.0
"""Age of the views at the beginning of a sample. An older one makes a reader look for the other replica."""
SLICES_MIN: Final = 2
"""Samples of each mode and size of batch: each mode is the first one in one of them."""


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design of memcached at every size."""
    runs = Runs()
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for nodes in settings.nodes:
            for design in settings.designs:
                if design not in DEFAULT_DESIGNS:
                    runs.skipped[f"{design_label([design])}: only the designs of memcached have replicas"] = None
                    continue
                cost = ReplicaCost(design, nodes, settings, report_progress)
                runs.cases += [cost.consumers(rabbit.url), cost.readers(), cost.claims()]
                runs.servers |= cost.versions
    return runs.findings()


SCENARIO: Final = Scenario(
    "replicas", "a consumer, a reader and claims, with two replicas on three memcacheds and with one", run, modes=MODES
)


class ReplicaCost:
    """One design at one size."""

    def __init__(self, design: str, nodes: int, settings: Settings, report_progress: ReportProgress) -> None:
        self.versions: Mapping[str, str] = {}
        """Versions of the servers that were started."""
        self._design = design
        self._nodes = nodes
        self._settings = settings
        self._report_progress = report_progress
        self._label = f"{design_label([design])}, {nodes:,} nodes"

    def consumers(self, broker: str) -> Case:
        """Drain the same events in each mode, from the RabbitMQ at the URL ``broker``."""
        with self._environments() as environments:
            configs = {
                mode: self._config(environment, mode, "c", broker=broker, broker_heartbeat_s=60)
                for mode, environment in environments.items()
            }
            compared = compare_consumers(configs, self._settings, self._nodes, self._label, self._report_progress)
            goals = {"consumer": CONSUMER_LEAST}
            return self._case("consumer", compared, ("consumer", "consumer, CPU"), environments, at_least=goals)

    def readers(self) -> Case:
        """Refresh the view of a reader in each mode after the same changes, and count the bytes of the servers."""
        with self._environments() as environments, ExitStack() as stack:
            cells, bytes_held = {}, {}
            for mode, environment in environments.items():
                fleet, config = fleet_of(self._settings, self._nodes), self._config(environment, mode, "r")
                cell = stack.enter_context(self._loaded(fleet, environment, config))
                cells[mode] = cell, stack.enter_context(Reader(_of_reader(config)))
                bytes_held[mode] = partial(_bytes_per_node, environment, self._nodes)
            compared = compare_readers(cells, self._settings, self._label, self._report_progress, bytes_held)
            names = ("refresh", "nothing", "commit", "stored")
            return self._case("reader", compared, names, environments, at_most={"refresh": REFRESH_MOST})

    def claims(self, count: int = SLICE_CLAIMS) -> Case:
        """Claim the same requests in each mode, in batches of several sizes. ``count`` are the claims of a sample."""
        settings, nodes = self._settings, self._nodes
        with self._environments() as environments, ExitStack() as stack:
            sides = {}
            for mode, environment in environments.items():
                hosts = Hosts(settings.seed, nodes, HALF, state_bytes=settings.state_bytes)
                config = self._config(environment, mode, "s", claim_ttl_s=CLAIM_TTL_S, renew_s=OWNER_RENEW_S)
                cell = stack.enter_context(self._loaded(hosts, environment, config))
                sides[mode] = stack.enter_context(_ClaimSide(cell, hosts, environment, settings.seed, count))
            stack.enter_context(frozen_heap())
            measures: dict[str, Measure] = {}
            shown = {mode: side.warm_up() for mode, side in sides.items()}
            for batch in BATCHES:
                slices: dict[str, list[ClaimSlice]] = {mode: [] for mode in MODES}
                seconds, began = settings.seconds / len(BATCHES), time.monotonic()
                while len(slices[TWO]) < SLICES_MIN or time.monotonic() - began < seconds:
                    passed = (time.monotonic() - began) / seconds
                    self._report_progress(f"{self._label}: claims, {_batch_name(batch)}", passed)
                    for mode in in_turn(MODES, len(slices[TWO])):
                        slices[mode].append(sides[mode].sample(batch))
                for unit, cpu, field in (("claims/s", False, "rate"), ("us/claim", True, "cpu_us")):
                    for mode in MODES:
                        name = f"{_claims_name(batch, cpu=cpu)}, {mode}"
                        measures[name] = Measure.of(unit, [getattr(one, field) for one in slices[mode]])
            for mode, side in sides.items():
                measures[f"claims, stored, {mode}"] = Measure.of("bytes/claim", [side.claim_bytes])
                side.audit.require_sound([])
            facts = {f"copies of records, {mode}": side.copies for mode, side in sides.items()}
            facts |= {f"oldest_view_s, {mode}": side.oldest_s for mode, side in sides.items()}
            compared = Comparison({"full": HALF, **facts}, measures, [f"{mode}: {shown[mode]}" for mode in MODES])
            names = [_claims_name(batch, cpu=cpu) for batch in BATCHES for cpu in (False, True)]
            goals = {_claims_name(batch): CLAIMS_LEAST for batch in BATCHES}
            return self._case("claims", compared, [*names, "claims, stored"], environments, at_least=goals)

    @contextmanager
    def _environments(self) -> Iterator[dict[str, MemcachedEnvironment]]:
        """Start the servers of each mode."""
        with ExitStack() as stack:
            environments = {}
            for mode in MODES:
                servers = [
                    stack.enter_context(memcached_for(self._nodes * self._settings.state_bytes))
                    for _ in range(SERVERS_COUNT)
                ]
                environments[mode] = MemcachedEnvironment([self._design], *servers)
                self.versions = environments[mode].versions
            yield environments

    def _config(self, environment: MemcachedEnvironment, mode: str, what: str, **others: Any) -> Config:
        """Return the settings of a cell of its own, in this mode."""
        replicas = REPLICAS[mode]
        cell = f"replicas-{what}-{environment.slug}-{self._nodes}-{replicas}"
        return config_for(environment, self._settings, cell=cell, replicas=replicas, **others)

    @contextmanager
    def _loaded(self, fleet: SeededFleet, environment: MemcachedEnvironment, config: Config) -> Iterator[SteppedCell]:
        """Store a report of each node, and the control record, which tells readers whether there is a replica."""
        with SteppedCell(fleet, environment, self._settings, config=config) as cell:
            cell.load(self._report_progress)
            cell.write_control_record()
            yield cell

    def _case(
        self,
        what: str,
        compared: Comparison,
        names: Sequence[str],
        environments: Mapping[str, MemcachedEnvironment],
        *,
        at_least: Mapping[str, float] = NO_GOALS,
        at_most: Mapping[str, float] = NO_GOALS,
    ) -> Case:
        """Return a case with the ratios of the measures ``names``. Goals are bounds by the names of measures."""
        design = design_label([self._design])
        ratios: dict[str, float] = {}
        for name in names:
            ratios |= compared.ratio(name, TWO, ONE)
        goals = [
            goal(f"{design}: {ratio_name(name, TWO, ONE)}", ratios[ratio_name(name, TWO, ONE)], bound, "x")
            for goal, bounds in ((Goal.at_least, at_least), (Goal.at_most, at_most))
            for name, bound in bounds.items()
        ]
        state_bytes = len(fleet_of(self._settings, 1).body(0, 1))
        settings = {**compared.settings, "servers": SERVERS_COUNT, "state_bytes": state_bytes}
        lost = dict.fromkeys(environment.require_nothing_lost(self._nodes) for environment in environments.values())
        return Case(
            f"{design}: {what}", self._nodes, settings, compared.measures, ratios, [*compared.shown, *lost], goals
        )


class _ClaimSide:
    """A scheduler in one mode, with the cell on which it claims. A context manager."""

    def __init__(
        self, cell: SteppedCell, hosts: Hosts, environment: MemcachedEnvironment, seed: int, count: int
    ) -> None:
        self.copies = 0.0
        """The mean number of copies of a node's claim record."""
        self.claim_bytes = 0.0
        """Bytes that all servers hold for each claim."""
        self.oldest_s = 0.0
        """The greatest age of a view on which the scheduler claimed."""
        self.audit = ClaimAudit(environment.addresses, cell.config.cell, hosts)
        """Reads the claims without the scheduler."""
        self._cell = cell
        self._environment = environment
        self._count = count
        self._wants = RequestStream(seed)
        self._scheduler = Scheduler(_of_reader(cell.config), name="bench", seed=seed, max_age=MAX_AGE_S)

    def warm_up(self) -> str:
        """Claim and give back one sample; return a sentence which proves that the records hold exactly these claims."""
        self._scheduler.refresh()
        before = self._environment.bytes_held()["stored"]
        first = self._claimed(max(BATCHES))
        self.claim_bytes = (self._environment.bytes_held()["stored"] - before) / len(first.placings)
        shown = self.audit.require_sound(first.held)
        self.copies = self.audit.copies()
        self._scheduler.placer.give_back(first.placings)
        return shown

    def sample(self, batch: int) -> ClaimSlice:
        """Claim in batches of this size, and give everything back."""
        done = self._claimed(batch)
        self._scheduler.placer.give_back(done.placings)
        return done

    def _claimed(self, batch: int) -> ClaimSlice:
        self._cell.step_until(lambda: self._scheduler.refresh().age < FRESH_S)
        done = claim_slice(self._scheduler, self._wants, batch, self._count)
        self.oldest_s = max(self.oldest_s, self._scheduler.view.age)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.close()
        self.audit.close()


def _of_reader(config: Config) -> Config:
    """Return the settings of a reader that looks for the other replica as late as usual, however often owners renew."""
    return structs.replace(config, renew_s=Config().renew_s)


def _batch_name(batch: int) -> str:
    return f"batches of {batch}" if batch > 1 else "one by one"


def _claims_name(batch: int, *, cpu: bool = False) -> str:
    """Return the name of a measure of claims, without the mode."""
    return f"claims, {_batch_name(batch)}" + (", CPU" if cpu else "")


def _bytes_per_node(environment: MemcachedEnvironment, nodes: int) -> float:
    return environment.bytes_held()["stored"] / nodes
