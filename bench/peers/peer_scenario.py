"""Measures the work of nodestate in other stores (peers), with the same data on the same machine in the same run.

In each round the store takes K changes, a reader refreshes, and the reader refreshes again with nothing changed. Then
the store takes K more changes, and the reader refreshes and decodes the K states. After the rounds new processes read
all nodes. Every store gets the events of the same seeded fleet, one store after the other.
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
"""Least number of rounds if the run has a second or more; a shorter run makes one round."""
WARM_UP_SHARE: Final = 0.2
COLD_SHARE: Final = 0.3
"""Shares of the seconds to measure; the rounds get the rest."""
LOAD_ROWS: Final = 1_000
GOAL_NODES, GOAL_CHANGED = 10_000, 100
OURS: Final = "nodestate"
ALWAYS_MEASURED: Final = ("sql:mariadb", "sql:postgres")
"""Designs of nodestate that are always measured, because the peers include a plain SELECT."""
OWN_WITH_GOALS: Final = tuple(f"{OURS} {design}" for design in DEFAULT_DESIGNS)
COMPARED: Final = ("refresh", "refresh, decoded", "nothing", "cold", "write")

_decode = msgspec.msgpack.Decoder().decode


# -- the stores -----------------------------------------------------------------------------------


class PeerServer(Server, Protocol):
    """A server that ends with its context."""

    @property
    def version(self) -> str:
        """The version that the server reports."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a peer. Its module is imported only when it is used, because its client may be missing."""

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


class PeerMissingError(Exception):
    """Raised when the server or the client of a peer is not installed; the message says what to install."""


class Side(Protocol):
    """One store with one fleet."""

    @property
    def fleet(self) -> SeededFleet:
        """The nodes to store."""

    @property
    def openers(self) -> Mapping[str, Opener]:
        """Each way to read the store, by its label."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of server and clients."""

    @property
    def imports(self) -> Sequence[str]:
        """Modules that its readers import when they connect; importing is not timed."""

    def load(self, report_progress: ReportProgress) -> None:
        """Store every node."""

    def change(self, numbers: Sequence[int]) -> float:
        """Raise the generation of these nodes by one; return the seconds that the store took."""

    def shown(self) -> Sequence[str]:
        """Return sentences on proofs of the store as a whole, at the end."""


class Theirs:
    """A peer. It is given states, so it need not fold events, as nodestate's consumer must."""

    def __init__(self, peer: Peer, fleet: SeededFleet, versions: Mapping[str, str]) -> None:
        self.fleet = fleet
        self.openers = peer.openers
        self.versions = versions
        self.imports: Sequence[str] = ()
        self._peer = peer

    def load(self, report_progress: ReportProgress) -> None:
        """Write all nodes, in portions."""
        for at in range(0, len(self.fleet), LOAD_ROWS):
            report_progress(f"{next(iter(self.openers))}: {len(self.fleet):,} nodes", at / len(self.fleet))
            self.change(range(at, min(at + LOAD_ROWS, len(self.fleet))))

    def change(self, numbers: Sequence[int]) -> float:
        """Write the next state of each node."""
        for number in numbers:
            self.fleet.generations[number] += 1
        rows = [row_of(self.fleet, number) for number in numbers]
        began = time.perf_counter()
        self._peer.write(rows)
        return time.perf_counter() - began

    def shown(self) -> Sequence[str]:
        """Return nothing: only the readers of a peer prove anything."""
        return []


class Ours:
    """One design of nodestate."""

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
        """Commit a change of each node: the consumer decodes, folds and writes the events."""
        return self._cell.change(numbers)

    def shown(self) -> Sequence[str]:
        """Return the proof that nothing was lost."""
        return [self._cell.environment.require_nothing_lost(len(self.fleet))]


@contextmanager
def theirs(source: Source, fleet: SeededFleet) -> Iterator[Theirs]:
    """Run a peer. Raises PeerMissingError if its server or client is not installed."""
    with ExitStack() as held:
        try:
            module = import_module(source.module)
            server = held.enter_context(source.server())
            peer: Peer = getattr(module, source.peer)(server)
        except ServerMissingError as error:
            raise PeerMissingError(f"{source.name}: {error}") from error
        except ImportError as error:
            raise PeerMissingError(f"{source.name}: {error}: pip install -e '.[bench]'") from error
        held.callback(peer.close)
        yield Theirs(peer, fleet, {source.name: server.version, **peer.clients})


@contextmanager
def ours(design: str, fleet: SeededFleet, settings: Settings) -> Iterator[Ours]:
    """Run one design in an environment of its own. Raises PeerMissingError if its server is not installed."""
    with ExitStack() as held:
        try:
            environment = held.enter_context(open_environment([design], len(fleet) * settings.state_bytes))
        except ServerMissingError as error:
            raise PeerMissingError(f"{OURS} {design_label([design])}: {error}") from error
        yield Ours(held.enter_context(SteppedCell(fleet, environment, settings)))


# -- proofs ---------------------------------------------------------------------------------------


def row_of(fleet: SeededFleet, number: int) -> Row:
    """Return a node as its last event left it."""
    version = fleet.version(number)
    return Row(fleet.names[number], *version, fleet.body(number, version.generation))


def require_shown(label: str, reader: Reader, fleet: SeededFleet, numbers: Sequence[int]) -> None:
    """Raise ``WrongResultError`` unless the reader holds these nodes as their last events left them."""
    for number in numbers:
        want = row_of(fleet, number)
        try:
            got = reader.node(want.name)
        except KeyError:
            got = None
        require(got is not None, f"{label} does not show {want.name}")
        assert got is not None
        require(got[:3] == want[:3], f"{label} shows {got[:3]}, the fleet is at {want[:3]}")
        # Decoded states are compared, because a fold may change the order of keys.
        require(_decode(got.body) == _decode(want.body), f"{label} shows {want.name} with a wrong state")


def require_all_shown(label: str, reader: Reader, fleet: SeededFleet) -> int:
    """Require the same of all nodes of the fleet, and no further nodes; return the digest of the nodes."""
    count = sum(1 for _ in reader.names())
    require(count == len(fleet), f"{label} shows {count} nodes of {len(fleet)}")
    require_shown(label, reader, fleet, range(len(fleet)))
    return digest(map(reader.node, reader.names()))


# -- measuring ------------------------------------------------------------------------------------


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every store at every size."""
    cases: list[Case] = []
    versions: dict[str, str] = {}
    skipped: dict[str, None] = {}

    def fleet_of(nodes: int) -> SeededFleet:
        return SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)

    for nodes in settings.nodes:
        sides: list[AbstractContextManager[Side]] = [
            *(
                ours(design, fleet_of(nodes), settings)
                for design in dict.fromkeys((*settings.designs, *ALWAYS_MEASURED))
            ),
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
            except PeerMissingError as error:
                skipped[str(error)] = None
        try:
            found, with_versions = measure_openstack(nodes, settings, report_progress)
        except ServerMissingError as error:
            skipped[f"openstack: {error}"] = None
        else:
            cases += found
            versions |= with_versions
    across, goals = _ratios_to_nodestate(cases)
    return Findings(cases, across, goals, versions, tuple(skipped))


SCENARIO: Final = Scenario("peers", "the same work in other stores, each used in its fastest native way", run)


def measure(side: Side, label: str, opener: Opener, settings: Settings, report_progress: ReportProgress) -> Case:
    """Measure one way to read one store."""
    fleet, changed = side.fleet, min(settings.changed, len(side.fleet))
    picks = random.Random(settings.seed)
    timings = Timings()
    # Objects that exist now belong to the benchmark; the garbage collector of a scheduler would not visit them.
    gc.collect()
    gc.freeze()
    reader = opener()
    try:
        reader.cold()
        require_all_shown(label, reader, fleet)
        for _ in _rounds(settings.seconds * WARM_UP_SHARE, 1, f"{label}: warming up", report_progress):
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
        require(shown == wanted, f"a new reader of {label} shows other states than the reader that refreshed")
        timings.note("cold", ms)
    measures = timings.measures
    return Case(
        label,
        len(fleet),
        {"changed": changed, "state_bytes": len(fleet.body(0, 1)), "change_bytes": settings.change_bytes},
        measures,
        {},
        [
            (
                f"in each of {measures['nothing'].count} rounds the {changed} changed nodes showed version and state "
                "of their last event, twice"
            ),
            f"before and after the rounds all {len(fleet):,} nodes did, and there were no others",
            f"the reader in each of {measures['cold'].count} new processes showed the same nodes",
            *side.shown(),
        ],
    )


def _rounds(seconds: float, least: int, what: str, report_progress: ReportProgress) -> Iterator[None]:
    """Yield once for each round, for at least ``least`` rounds and ``seconds``."""
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


def _ratios_to_nodestate(cases: Sequence[Case]) -> tuple[dict[str, float], list[Goal]]:
    """Return ratios of every peer to each design of nodestate; above 1, the peer takes longer."""
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
