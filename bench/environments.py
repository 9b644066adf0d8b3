"""Where a design lives while it is measured: the one thing that differs between designs for a scenario.

A place starts what the design needs, says how nodestate reaches it, shows that it lost nothing, counts bytes where it
can, and has a bare client: the least that reading from it can cost. What is not installed is skipped with a line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Protocol

from bench.baseline import Bare, BareMemcached
from bench.counting_store import held_by, said_by
from bench.record import Case, Goal
from bench.scenario import Findings, Settings
from bench.workload import require
from harness.servers import MemcachedServer, ServerMissingError
from nodestate.config import Config, load
from nodestate.designs import DESIGNS
from nodestate.ports import Where
from nodestate.store.memcached import MemcachedStore, ServerStats

CELL: Final = "bench"
PATIENCE_S: Final = 60.0
BRIEF_S: Final = 1.0
BRIEF_RENEW_S: Final = 0.1
"""Runs with fewer seconds give no figures: their owners may vouch at once, which they say when they renew."""
MEMORY_SHARE: Final = 10
"""Memory for the cell, in multiples of the bytes of all states: both designs' copies, the bench's own, and slabs."""
DRIVERS: Final = {"sqlite": "sqlite3", "mariadb": "pymysql", "postgres": "psycopg"}
"""The databases that can be named behind ``sql:``, the usual one first, and the module that each is reached through."""
NAMES: Final = tuple(
    name
    for design, of in DESIGNS.items()
    if of.where is not Where.STORE_B  # the same designs, elsewhere
    for name in ([f"{design}:{db}" for db in DRIVERS] if of.where is Where.SQL else [design])
)
"""All that ``--design`` takes, but for ``sql`` alone."""
USUAL: Final = tuple(design for design, of in DESIGNS.items() if of.where is Where.STORE)
"""What is measured where nobody says what. The goals are about these, too."""
EXTRA: Final = "pip install -e '.[bench]'"


class Place(Protocol):
    """What a scenario knows of it. ``label`` is what figures are shown with, ``slug`` what names are made of."""

    designs: tuple[str, ...]
    label: str
    slug: str
    versions: Mapping[str, str]
    imports: tuple[str, ...]
    """What a process that reads this imports late: to be imported before a clock starts."""
    settings: Mapping[str, str]
    """nodestate's, to reach it."""
    bare: Callable[[], Bare]
    """Connects the bare client. It can be pickled."""

    def kept(self, nodes: int) -> str:
        """Raise ``WrongResultError`` if anything of these was lost; returns what was shown."""

    def sent(self) -> int | None:
        """Bytes that the server has sent, by its own count; nothing where it does not count."""

    def received(self) -> int | None:
        """Bytes that it has read from its clients, ditto."""

    def logged(self) -> int | None:
        """Bytes that it has written to its log on disk, ditto."""

    def held(self) -> Mapping[str, int]:
        """Bytes that it holds: ``stored``, all that nodestate put there, and what else it tells of that."""

    def restart(self) -> None:
        """Kill the server, as a machine does that loses its power, and start it again."""


def canonical(name: str) -> str:
    """The full name of a design and its database. Raises ValueError."""
    full = f"{name}:{next(iter(DRIVERS))}" if name in DESIGNS and DESIGNS[name].where is Where.SQL else name
    if full not in NAMES:
        raise ValueError(f"no design {name!r}; there are {', '.join(dict.fromkeys(('sql', *NAMES)))}")
    return full


def label_of(names: Sequence[str]) -> str:
    """As figures are shown: of ``sql:mariadb`` it is ``sql on mariadb``."""
    return " and ".join(canonical(name).replace(":", " on ") for name in names)


def opened(names: Sequence[str], state_bytes: int) -> AbstractContextManager[Place]:
    """A place of its own for these designs, several of which must be of memcached. Raises ServerMissingError when entered.

    ``state_bytes``: of all nodes.
    """
    design, _, database = canonical(names[0]).partition(":")
    if not database:
        return _in_memcached(names, state_bytes)
    assert len(names) == 1, "a database has one design"
    return _in_database(design, database)


@contextmanager
def _in_memcached(designs: Sequence[str], state_bytes: int) -> Iterator[Place]:
    with memcached_for(state_bytes) as server:
        yield MemcachedPlace(designs, server)


@contextmanager
def _in_database(design: str, database: str) -> Iterator[Place]:
    try:
        from bench.database import opened as database_opened  # noqa: PLC0415 - its drivers may be missing
    except ImportError as error:
        raise ServerMissingError(f"{error}: {EXTRA}") from error
    with database_opened(design, database) as place:
        yield place


def memcached_for(state_bytes: int) -> MemcachedServer:
    """A memcached that needs to evict nothing; a benchmark of one that does would be another benchmark."""
    return MemcachedServer(memory_mb=128 + MEMORY_SHARE * state_bytes // 1_000_000)


class MemcachedPlace:
    """A memcached, with one design in it or several."""

    imports: tuple[str, ...] = ("nodestate.store.memcached",)

    def __init__(self, designs: Sequence[str], server: MemcachedServer) -> None:
        self.designs = tuple(designs)
        self.label = label_of(designs)
        self.slug = "-".join(DESIGNS[design].letter for design in designs)
        self.address = server.address
        self.settings: Mapping[str, str] = {"store": server.url}
        self.bare: Callable[[], Bare] = partial(BareMemcached, server.address)
        self.versions: Mapping[str, str] = {"memcached": self._stats().version}
        self._server = server

    def kept(self, nodes: int) -> str:  # noqa: ARG002 - it does not know what a node is
        """It evicted and refused nothing."""
        stats = self._stats()
        require(stats.evictions == 0, f"memcached evicted {stats.evictions} items: it was given too little memory")
        require(stats.out_of_memory == 0, f"memcached refused {stats.out_of_memory} writes")
        return "memcached evicted and refused nothing"

    def sent(self) -> int | None:
        """See ``Place``."""
        return said_by(self.address)["bytes_written"]

    def received(self) -> int | None:
        """See ``Place``."""
        return said_by(self.address)["bytes_read"]

    def logged(self) -> int | None:
        """It has no log."""
        return None

    def held(self) -> Mapping[str, int]:
        """Items with their headers, the chunks they lie in, the pages with those."""
        held = held_by(self.address)
        return {"stored": held.items, "stored, chunks of slabs": held.chunks, "stored, pages of slabs": held.pages}

    def restart(self) -> None:
        """All keys are gone."""
        self._server.kill()
        self._server.start()

    def _stats(self) -> ServerStats:
        store = MemcachedStore(self.address, timeout_s=PATIENCE_S)
        try:
            return store.stats()
        finally:
            store.close()


def config_for(place: Place, settings: Settings, **others: Any) -> Config:
    """The defaults, but for agents: the fleet has said all it will say, so its owner need not wait to vouch for it."""
    return load(
        {
            **place.settings,
            "cell": CELL,
            "designs": place.designs,
            "read_design": place.designs[0],
            "batch_events": settings.batch_events,
            "prefetch": settings.prefetch,
            "resync_jitter_s": 0.0,
            "heartbeat_s": 0.05,
            **({"renew_s": BRIEF_RENEW_S} if settings.seconds < BRIEF_S else {}),
            **others,
        },
        environ={},
        file=os.devnull,
    )


def bytes_sent(place: Place, call: Callable[[], object]) -> int | None:
    """The bytes that a server sends while ``call`` runs; nothing where it does not count."""
    first, before = place.sent(), place.sent()
    call()
    after = place.sent()
    if first is None or before is None or after is None:
        return None
    return after - before - (before - first)  # less one answer to the question itself


def driver_versions(database: str) -> dict[str, str]:
    """Of what nodestate reaches a database through."""
    driver = DRIVERS[database]
    return {name: version(name) for name in ("sqlalchemy", *([] if driver == "sqlite3" else [driver]))}


@dataclass(slots=True)
class Tour:
    """What came of visiting places one after the other."""

    cases: list[Case] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, None] = field(default_factory=dict)

    def visit(self, names: Sequence[str], state_bytes: int, measure: Callable[[Place], Sequence[Case]]) -> None:
        """Measure designs in a place of their own, or note why there is none."""
        with ExitStack() as held:
            try:
                place = held.enter_context(opened(names, state_bytes))
            except ServerMissingError as error:
                self.skipped[f"{label_of(names)}: {error}"] = None
                return
            self.servers |= place.versions
            self.cases += measure(place)

    def findings(self, across: Mapping[str, float] | None = None, goals: Sequence[Goal] = ()) -> Findings:
        """All of it. Raises ServerMissingError where nothing was measured."""
        if not self.cases:
            raise ServerMissingError("; ".join(self.skipped))
        return Findings(self.cases, across or {}, goals, self.servers, tuple(self.skipped))
