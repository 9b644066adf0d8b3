"""The same payload, on the same machine, in the same run: how fast each peer does what nodestate does.

A round: the store takes in K changes; a reader that follows along catches up; it looks again, with nothing changed;
the store takes in K more, and the reader catches up and decodes the K states. After the rounds, new processes read
all nodes. Every side is given the same events of the same seeded fleet, one after the other.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Final, Protocol, Self

import msgspec

from bench.design_names import DEFAULT_DESIGNS, design_label
from bench.fresh_process import run_in_fresh_process
from bench.peer_servers import EtcdServer, MariadbServer, NatsServer, PostgresServer, RedisServer
from bench.peers.first_read import first_read
from bench.peers.interfaces import Opener, Peer, Reader, Row, Server, digest
from bench.peers.nodestate_peer import OwnReader
from bench.peers.openstack import NOVA_WITH_NUMA, measure_openstack
from bench.record import Case, Goal, Timings
from bench.runs import open_environment
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import SteppedCell
from bench.workload import SeededFleet, require
from harness.servers import ServerMissingError

ROUNDS_MIN: Final = 10
COLD_ROUNDS_MIN: Final = 3
"""… where a second or more is given; a smoke test is content with one."""
WARM_UP_SHARE: Final = 0.2
COLD_SHARE: Final = 0.3
"""Of the timed seconds, beside the rounds."""
LOAD_ROWS: Final = 1_000
GOAL_NODES, GOAL_CHANGED = 10_000, 100
OURS: Final = "nodestate"
BESIDE_SELECT: Final = ("sql:mariadb", "sql:postgres")
"""nodestate's own, measured beside the plain SELECT also where nobody names them."""
OWN_WITH_GOALS: Final = tuple(f"{OURS} {design}" for design in DEFAULT_DESIGNS)
COMPARED: Final = ("refresh", "refresh, decoded", "nothing", "cold", "write")

_decode = msgspec.msgpack.Decoder().decode


# -- the sides ------------------------------------------------------------------------------------


class PeerServer(Server, Protocol):
    """A server that this run owns; ended with its context."""

    @property
    def version(self) -> str:
        """What it says that it is."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where a peer comes from. Its module is imported only here, since its client may be missing."""

    name: str
    module: str
    peer: str
    server: Callable[[], PeerServer]


SOURCES: Final = (
    Source("redis", "bench.peers.redis", "Redis", RedisServer),
    Source("nats", "bench.peers.nats", "Nats", NatsServer),
    Source("etcd", "bench.peers.etcd", "Etcd", EtcdServer),
    Source("mariadb", "bench.peers.mariadb", "Mariadb", MariadbServer),
    Source("postgres", "bench.peers.postgres", "Postgres", PostgresServer),
)


class Missing(Exception):  # noqa: N818 - reads as what it is
    """Raised when a peer's server or client is not installed; says what to install."""


class Side(Protocol):
    """One store under one fleet."""

    @property
    def fleet(self) -> SeededFleet:
        """What it is told to store."""

    @property
    def openers(self) -> Mapping[str, Opener]:
        """Each way to read it, by its label."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Server and clients."""

    @property
    def imports(self) -> Sequence[str]:
        """What its readers import late, if anything: importing is not timed."""

    def load(self, report_progress: ReportProgress) -> None:
        """Store every node."""

    def change(self, numbers: Sequence[int]) -> float:
        """Bring these nodes one generation on; returns the seconds that the store took."""

    def shown(self) -> Sequence[str]:
        """What was found to be right of the store as a whole, in the end."""


class Theirs:
    """A peer. Who writes to it has folded the events already, which nodestate's consumer has to do."""

    def __init__(self, peer: Peer, fleet: SeededFleet, versions: Mapping[str, str]) -> None:
        self.fleet = fleet
        self.openers = peer.openers
        self.versions = versions
        self.imports: Sequence[str] = ()
        self._peer = peer

    def load(self, report_progress: ReportProgress) -> None:
        """Write all, in portions."""
        for at in range(0, len(self.fleet), LOAD_ROWS):
            report_progress(f"{next(iter(self.openers))}: {len(self.fleet):,} nodes", at / len(self.fleet))
            self.change(range(at, min(at + LOAD_ROWS, len(self.fleet))))

    def change(self, numbers: Sequence[int]) -> float:
        """Write the next state of each."""
        for number in numbers:
            self.fleet.generations[number] += 1
        rows = [row_of(self.fleet, number) for number in numbers]
        began = time.perf_counter()
        self._peer.write(rows)
        return time.perf_counter() - began

    def shown(self) -> Sequence[str]:
        """Nothing but what its readers show."""
        return []


class Ours:
    """nodestate, one design of it."""

    def __init__(self, cell: SteppedCell) -> None:
        self.fleet = cell.fleet
        self.openers: Mapping[str, Opener] = {f"{OURS} {cell.label}": partial(OwnReader, cell.config)}
        self.versions = cell.environment.versions
        self.imports: Sequence[str] = cell.environment.imports
        self._cell = cell

    def load(self, report_progress: ReportProgress) -> None:
        """Commit a report of every node."""
        self._cell.load(report_progress)

    def change(self, numbers: Sequence[int]) -> float:
        """Commit a change of each: the consumer decodes, folds and writes."""
        return self._cell.change(numbers)

    def shown(self) -> Sequence[str]:
        """That all was kept."""
        return [self._cell.environment.require_nothing_lost(len(self.fleet))]


@contextmanager
def theirs(source: Source, fleet: SeededFleet) -> Iterator[Theirs]:
    """A peer that runs, and its end. Raises Missing."""
    with ExitStack() as held:
        try:
            module = import_module(source.module)
            server = held.enter_context(source.server())
            peer: Peer = getattr(module, source.peer)(server)
        except ServerMissingError as error:
            raise Missing(f"{source.name}: {error}") from error
        except ImportError as error:
            raise Missing(f"{source.name}: {error}: pip install -e '.[bench]'") from error
        held.callback(peer.close)
        yield Theirs(peer, fleet, {source.name: server.version, **peer.clients})


@contextmanager
def ours(design: str, fleet: SeededFleet, settings: Settings) -> Iterator[Ours]:
    """One design in a place of its own, and its end. Raises Missing."""
    with ExitStack() as held:
        try:
            place = held.enter_context(open_environment([design], len(fleet) * settings.state_bytes))
        except ServerMissingError as error:
            raise Missing(f"{OURS} {design_label([design])}: {error}") from error
        yield Ours(held.enter_context(SteppedCell(fleet, place, settings)))


# -- the oracle -----------------------------------------------------------------------------------


def row_of(fleet: SeededFleet, number: int) -> Row:
    """A node as the fleet sent it last."""
    version = fleet.version(number)
    return Row(fleet.names[number], *version, fleet.body(number, version.generation))


def require_shown(label: str, reader: Reader, fleet: SeededFleet, numbers: Sequence[int]) -> None:
    """Raise ``WrongResultError`` unless the reader holds these nodes as the fleet sent them last."""
    for number in numbers:
        want = row_of(fleet, number)
        try:
            got = reader.node(want.name)
        except KeyError:
            got = None
        require(got is not None, f"{label} does not show {want.name}")
        assert got is not None
        require(got[:3] == want[:3], f"{label} shows {got[:3]}, the fleet is at {want[:3]}")
        # Compared decoded: a fold may keep the keys of a map in another order.
        require(_decode(got.body) == _decode(want.body), f"{label} shows {want.name} with another state")


def require_all_shown(label: str, reader: Reader, fleet: SeededFleet) -> int:
    """The same for the whole fleet, and nothing else; returns the digest of what is held."""
    count = sum(1 for _ in reader.names())
    require(count == len(fleet), f"{label} shows {count} nodes of {len(fleet)}")
    require_shown(label, reader, fleet, range(len(fleet)))
    return digest(map(reader.node, reader.names()))


# -- measuring ------------------------------------------------------------------------------------


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Every side at every size."""
    cases: list[Case] = []
    versions: dict[str, str] = {}
    skipped: dict[str, None] = {}

    def fleet_of(nodes: int) -> SeededFleet:
        return SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)

    for nodes in settings.nodes:
        sides: list[AbstractContextManager[Side]] = [
            *(ours(design, fleet_of(nodes), settings) for design in dict.fromkeys((*settings.designs, *BESIDE_SELECT))),
            *(theirs(source, fleet_of(nodes)) for source in SOURCES),
        ]
        for one in sides:
            try:
                with one as side:
                    side.load(report_progress)
                    versions |= side.versions
                    cases += [
                        measure(side, label, opener, settings, report_progress)
                        for label, opener in side.openers.items()
                    ]
            except Missing as error:
                skipped[str(error)] = None
        try:
            found, with_versions = measure_openstack(nodes, settings, report_progress)
        except ServerMissingError as error:
            skipped[f"openstack: {error}"] = None
        else:
            cases += found
            versions |= with_versions
    across, goals = _beside_ours(cases)
    return Findings(cases, across, goals, versions, tuple(skipped))


SCENARIO: Final = Scenario("peers", "what other stores take for the same, each by its best native way", run)


def measure(side: Side, label: str, opener: Opener, settings: Settings, report_progress: ReportProgress) -> Case:
    """One way to read one store."""
    fleet, changed = side.fleet, min(settings.changed, len(side.fleet))
    picks = random.Random(settings.seed)
    timings = Timings()
    # What stands on the heap now is the benchmark's own; a scheduler's collector would not look at it either.
    gc.collect()
    gc.freeze()
    reader = opener()
    try:
        reader.cold()
        require_all_shown(label, reader, fleet)
        for _ in _rounds(settings.seconds * WARM_UP_SHARE, 1, f"{label}: warms up", report_progress):
            _follow(side, label, reader, picks.sample(range(len(fleet)), changed), None)
        share = 1 - WARM_UP_SHARE - COLD_SHARE
        for _ in _rounds(
            settings.seconds * share, ROUNDS_MIN, f"{label}, {len(fleet):,} nodes: rounds", report_progress
        ):
            _follow(side, label, reader, picks.sample(range(len(fleet)), changed), timings)
        wanted = require_all_shown(label, reader, fleet)
    finally:
        reader.close()
        gc.unfreeze()
    least = COLD_ROUNDS_MIN if settings.seconds >= 1 else 1
    for _ in _rounds(settings.seconds * COLD_SHARE, least, f"{label}: new processes", report_progress):
        ms, shown = run_in_fresh_process(first_read, opener, side.imports)
        require(shown == wanted, f"a new reader of {label} shows other states than the one that followed along")
        timings.note("cold", ms)
    measures = timings.measures
    return Case(
        label,
        len(fleet),
        {"changed": changed, "state_bytes": len(fleet.body(0, 1)), "change_bytes": settings.change_bytes},
        measures,
        {},
        [
            f"in each of {measures['nothing'].count} rounds the {changed} changed nodes showed version and state of their last event, twice",
            f"before and after, all {len(fleet):,} nodes did, and nothing else was there",
            f"the new reader of each of {measures['cold'].count} new processes showed the same",
            *side.shown(),
        ],
    )


def _rounds(seconds: float, least: int, what: str, report_progress: ReportProgress) -> Iterator[None]:
    """One for each round, for at least so many rounds and so many seconds."""
    began = time.monotonic()
    done = 0
    while done < least or time.monotonic() - began < seconds:
        report_progress(what, (time.monotonic() - began) / seconds)
        done += 1
        yield


def _follow(side: Side, label: str, reader: Reader, numbers: Sequence[int], timings: Timings | None) -> None:
    timings = timings or Timings()
    names = [side.fleet.names[number] for number in numbers]
    timings.note("write", side.change(numbers) * 1e3)
    timings.time("refresh", reader.refresh)
    require_shown(label, reader, side.fleet, numbers)
    timings.time("nothing", reader.refresh)
    timings.note("write", side.change(numbers) * 1e3)
    timings.time("refresh, decoded", _refresh_and_decode, reader, names)
    require_shown(label, reader, side.fleet, numbers)


def _refresh_and_decode(reader: Reader, names: Sequence[str]) -> list[object]:
    reader.refresh()
    return [_decode(reader.node(name).body) for name in names]


def _beside_ours(cases: Sequence[Case]) -> tuple[dict[str, float], list[Goal]]:
    """Every peer by each design of nodestate: above 1, the peer takes longer."""
    across: dict[str, float] = {}
    goals: list[Goal] = []
    for own in (case for case in cases if case.design.startswith(OURS)):
        peers = [case for case in cases if case.nodes == own.nodes and not case.design.startswith(OURS)]
        for name in COMPARED:
            for peer in (case for case in peers if name in case.measures):
                ratio = peer.measures[name].p50 / own.measures[name].p50
                across[f"{name}, {own.nodes:,} nodes: {peer.design} / {own.design}"] = ratio
        for name in ("refresh", "refresh, decoded"):
            followers = [case for case in peers if "refresh" in case.measures and name in case.measures]
            if (
                followers
                and own.design in OWN_WITH_GOALS
                and own.nodes >= GOAL_NODES
                and own.settings["changed"] == GOAL_CHANGED
                and name in own.measures
            ):
                fastest = min(followers, key=lambda case: case.measures[name].p50)
                ratio = fastest.measures[name].p50 / own.measures[name].p50
                what = f"{name}, {own.nodes:,} nodes: {fastest.design}, the fastest peer, / {own.design}"
                goals.append(Goal.at_least(what, ratio, 1.0, "x"))
        with_goal = own.design in OWN_WITH_GOALS and own.nodes == GOAL_NODES
        for nova in (case for case in peers if case.design == NOVA_WITH_NUMA and with_goal):
            ratio = nova.measures["nothing"].p50 / own.measures["refresh"].p50
            what = f"{own.nodes:,} nodes: all host states of Nova / refresh of {own.design}"
            goals.append(Goal.at_least(what, ratio, 2_000.0, "x"))
    return across, goals
