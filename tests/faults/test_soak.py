"""Random faults, one or two at a time, for SOAK_MINUTES minutes; ``make test-all`` runs it for five.

SOAK_SEED repeats the same faults, though not at the same moments within the processes.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from harness.cell import Cell
from harness.keyspace import KeySpace
from harness.proxies import TcpProxy
from harness.servers import MemcachedServer, RabbitServer
from nodestate.errors import BrokerUnavailableError, StoreUnavailableError
from nodestate.model.partitioning import partition_of
from tests.faults.conftest import CellFactory

SHOWN_COUNT = 12
MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))

pytestmark = [
    pytest.mark.service,
    pytest.mark.timeout(0),
    pytest.mark.thorough,
    pytest.mark.skipif(not MINUTES, reason="set SOAK_MINUTES to a number of minutes, or run make test-all"),
]

KINDS = [("journal", kind) for kind in ("epoch", "head", "life", "segment", "checkpoint")]
KINDS += [("snapshot", kind) for kind in ("epoch", "head", "life", "node", "index")]


@dataclass
class RandomFaults:
    """Injects faults into a cell.

    Each fault is a method that injects it and returns a function that ends it, if need be.
    """

    cell: Cell
    memcached: MemcachedServer
    rabbit: RabbitServer
    proxies: list[TcpProxy]
    rng: random.Random
    done: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds to recover, by the names of the faults."""

    def faults(self) -> dict[str, tuple[int, Callable[[], Callable[[], None] | None]]]:
        """Return by name the weight of each fault and the method that injects it."""
        return {
            "consumer killed": (4, self.kill_consumer),
            "consumer frozen": (4, self.freeze_consumer),
            "consumer's requests held": (4, self.hold_requests),
            "consumer's store connections cut": (2, self.cut_requests),
            "consumer's store slow": (2, self.slow_store),
            "memcached restarted": (2, self.restart_memcached),
            "memcached frozen": (2, self.freeze_memcached),
            "memcached flushed": (2, self.flush),
            "a key lost": (4, self.lose_key),
            "a key damaged": (2, self.damage_key),
            "duplicates": (2, self.duplicates),
            "changes lost": (2, self.lose_changes),
            "changes swapped": (2, self.swap_changes),
            "an agent's next life": (2, self.next_life),
            "nodes leave and return": (1, self.leave),
            "rabbit restarted": (1, self.restart_rabbit),
            "rabbit killed": (1, self.kill_rabbit),
            "rabbit frozen": (1, self.freeze_rabbit),
        }

    def kill_consumer(self) -> Callable[[], None]:
        member = self.rng.choice(self.cell.members)
        member.kill()
        return member.start

    def freeze_consumer(self) -> Callable[[], None]:
        member = self.rng.choice([one for one in self.cell.members if one.running])
        member.pause()
        return member.resume

    def hold_requests(self) -> Callable[[], None]:
        proxy = self.rng.choice(self.proxies)
        proxy.hold_at(self.rng.choice([b":log:", b":s:node:", b":head:", b":life:", b":epoch"]), self.rng.randrange(5))
        return proxy.release

    def cut_requests(self) -> None:
        self.rng.choice(self.proxies).cut()

    def slow_store(self) -> Callable[[], None]:
        proxy = self.rng.choice(self.proxies)
        proxy.delay_s = self.rng.choice([0.01, 0.1, 0.5, 1.2])

        def fast() -> None:
            proxy.delay_s = 0.0

        return fast

    def restart_memcached(self) -> Callable[[], None]:
        self.memcached.kill()

        def start() -> None:
            self.memcached.start()

        return start

    def freeze_memcached(self) -> Callable[[], None]:
        self.memcached.pause()
        return self.memcached.resume

    def flush(self) -> None:
        with KeySpace(self.cell.config, self.memcached.address) as space:
            space.flush_all()

    def lose_key(self) -> None:
        with KeySpace(self.cell.config, self.memcached.address) as space:
            space.delete(self._key(space))

    def damage_key(self) -> None:
        with KeySpace(self.cell.config, self.memcached.address) as space:
            space.corrupt(self._key(space))

    def _key(self, space: KeySpace) -> str:
        design, kind = self.rng.choice(KINDS)
        node = self.rng.choice(self.cell.fleet.names)
        return space.key(design, partition_of(node, self.cell.config.partitions), kind, node)

    def duplicates(self) -> None:
        sink = self.cell.fleet.sink

        def resend() -> None:
            sent = list(sink.sent)
            for _ in range(1_000):
                sink.inner.publish(*self.rng.choice(sent), lambda _ok: None)

        self.cell.fleet.call(resend)

    def lose_changes(self) -> Callable[[], None]:
        sink = self.cell.fleet.sink
        sink.lose = lambda _event: self.rng.random() < 0.05

        def stop() -> None:
            sink.lose = None

        return stop

    def swap_changes(self) -> Callable[[], None]:
        sink = self.cell.fleet.sink
        sink.swap = lambda _event: self.rng.random() < 0.1

        def let_go() -> None:
            self.cell.fleet.call(sink.stop_swapping)

        return let_go

    def next_life(self) -> None:
        fleet = self.cell.fleet

        def begin() -> None:
            for name in self.rng.sample(fleet.names, 5):
                fleet.publisher(name, fleet.publishers[name].version.incarnation + 1).report(fleet.state(name))

        fleet.call(begin)

    def leave(self) -> Callable[[], None]:
        fleet = self.cell.fleet
        leavers = self.rng.sample(fleet.names, 5)

        def leave() -> None:
            for name in leavers:
                fleet.publishers[name].leave()

        def come_back() -> None:
            for name in leavers:
                fleet.publishers[name].report(fleet.state(name))

        fleet.call(leave)
        return lambda: fleet.call(come_back)

    def restart_rabbit(self) -> Callable[[], None]:
        self.rabbit.stop()
        return self._start_rabbit

    def kill_rabbit(self) -> Callable[[], None]:
        self.rabbit.kill()
        return self._start_rabbit

    def _start_rabbit(self) -> None:
        self.rabbit.start()

    def freeze_rabbit(self) -> Callable[[], None]:
        self.rabbit.pause()
        return self.rabbit.resume

    # -- rounds

    def round(self) -> str:
        """Inject one or two faults and end them; then the cell must recover. Returns the names of the faults."""
        faults = self.faults()
        names = list(faults)
        chosen = self.rng.choices(names, [faults[name][0] for name in names], k=self.rng.choice([1, 1, 2]))
        chosen = list(dict.fromkeys(chosen))
        if len({name.split()[0] for name in chosen}) < len(chosen):
            chosen = chosen[:1]  # two faults of one server would end each other
        undo = []
        for name in chosen:
            try:
                undo.append(faults[name][1]())
            except AssertionError as error:  # a key that is not there now, or a server that another fault ended
                chosen = [*chosen, f"not {name}: {error}"]
            except (BrokerUnavailableError, StoreUnavailableError) as error:  # another fault ended that server
                chosen = [*chosen, f"not {name}: {error}"]
            time.sleep(self.rng.choice([0.0, 0.05, 0.3, 1.0]))
        time.sleep(self.rng.choice([0.1, 0.5, 1.0, 2.0, 4.0, 7.0]))
        for undoing in undo:
            if undoing is not None:
                undoing()
        began = time.monotonic()
        self.cell.wait_until_well()
        for member in self.cell.members:
            member.wait_for_log("connected")
        self.cell.wait_until_equal()
        self.cell.require_no_violations()
        what = " and ".join(chosen)
        self.done[what].append(time.monotonic() - began)
        return what


@pytest.fixture
def random_faults(cell_of: CellFactory, memcached: MemcachedServer) -> Iterator[RandomFaults]:
    seed = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"\nSOAK_SEED={seed}")  # noqa: T201 - needed to repeat the run
    with ExitStack() as opened:
        rabbit = opened.enter_context(RabbitServer())
        proxies = [opened.enter_context(TcpProxy(("127.0.0.1", memcached.port))) for _ in range(3)]
        settings = [{"NODESTATE_STORE": proxy.url} for proxy in proxies]
        cell = opened.enter_context(
            cell_of(memcached.url, broker=rabbit.url, members=3, member_settings=settings, store_timeout_s=0.5)
        )
        cell.watch()
        yield RandomFaults(cell, memcached, rabbit, proxies, random.Random(seed))


def test_cell_recovers_from_random_faults(random_faults: RandomFaults, record: Callable[[str], None]) -> None:
    """Whichever faults coincide: no read shows an old state as fresh, and afterwards all views equal the agents'
    states.
    """
    until = time.monotonic() + 60 * MINUTES
    rounds = 0
    while time.monotonic() < until:
        what = random_faults.round()
        rounds += 1
        print(f"round {rounds}: {what}: well and equal after {random_faults.done[what][-1]:.1f} s", flush=True)  # noqa: T201 - shows progress
    cell = random_faults.cell
    record(f"{rounds} rounds, {cell.checked_reads()} reads checked, {cell.fleet.changes} changes")
    slowest = sorted(random_faults.done.items(), key=lambda one: -max(one[1]))
    for what, times in slowest[:SHOWN_COUNT]:
        record(f"{what} ({len(times)} times): well and equal after at most {max(times):.1f} s")
