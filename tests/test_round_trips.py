"""Round trips of many partitions side by side: one call per server and round, and failures stay within a server."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nodestate.errors import CorruptItemError, ItemTooLargeError, StoreUnavailableError
from nodestate.ports import Item, Put, Write, WriteResult, WriteStatus
from nodestate.store.round_trips import Reply, Step, Steps, Stores, run, run_one
from nodestate.testing import Fault, FaultyStore, MemoryServer, MemoryStore, script


class CountingStore(MemoryStore):
    """Records the length of each call."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.calls: list[tuple[str, int]] = []

    def fetch(self, keys: Sequence[str], *, values_only: bool = False) -> dict[str, Item]:
        self.calls.append(("fetch", len(keys)))
        return super().fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        self.calls.append(("write", len(writes)))
        return super().write(writes)


def put(key: str, value: bytes) -> Write:
    return Write(Put.ADD, key, value)


def put_then_fetch(key: str, rounds: int) -> Steps[list[bytes]]:
    """In each round, write a key and fetch it in the same step."""
    seen = []
    for n in range(rounds):
        reply = yield Step(write=[put(f"{key}{n}", f"{key}{n}".encode())], fetch=[f"{key}{n}"])
        assert [done.status for done in reply.written] == [WriteStatus.STORED]
        seen.append(reply.items[f"{key}{n}"].value)
    return seen


def test_sixteen_partitions_need_as_many_round_trips_as_one() -> None:
    """The network is batched (house rule 14); each partition gets its own answers."""
    store = CountingStore(MemoryServer())
    results = run({n: (store, put_then_fetch(f"p{n}-", 1 + n % 3)) for n in range(16)})
    assert results == {n: [f"p{n}-{r}".encode() for r in range(1 + n % 3)] for n in range(16)}
    assert store.calls == [("write", 16), ("fetch", 16), ("write", 10), ("fetch", 10), ("write", 5), ("fetch", 5)]


def test_server_that_does_not_answer_fails_only_its_own_partitions() -> None:
    """One server down costs the freshness of its partitions and nothing else."""
    well, ill = MemoryStore(), FaultyStore(MemoryStore(), script(None, None, Fault()))
    stores = Stores([well, ill])
    results = run({n: (stores.of(n), put_then_fetch(f"p{n}-", 2)) for n in range(4)})
    assert [isinstance(results[n], StoreUnavailableError) for n in range(4)] == [False, True, False, True]
    assert results[2] == [b"p2-0", b"p2-1"]


def test_partitions_are_mapped_to_servers_by_their_number_alone() -> None:
    """A map that changed with outages would bring back stale values together with the server (DESIGN.md section 5)."""
    servers = [MemoryStore() for _ in range(3)]
    stores = Stores(servers)
    assert [servers.index(stores.of(n)) for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_partition_may_catch_the_error_of_an_outage() -> None:
    """The error is raised where the step was yielded, so the partition can clean up or try something else."""

    def steps() -> Steps[str]:
        try:
            yield Step(fetch=["a"])
        except StoreUnavailableError:
            yield Step(write=[put("b", b"x")])
            return "went on"
        return "never"

    store = FaultyStore(MemoryStore(), script(Fault()))
    assert run({0: (store, steps())}) == {0: "went on"}


def test_too_large_item_fails_only_the_partition_that_wrote_it() -> None:
    """Sizes are checked before anything is sent, so the writes of the other partitions are still carried out."""
    store = MemoryStore(MemoryServer(max_value_bytes=10))

    def steps(key: str, size: int) -> Steps[WriteStatus]:
        reply = yield Step(write=[put(key, b"x" * size)])
        return reply.written[0].status

    results = run({n: (store, steps(f"k{n}", size)) for n, size in enumerate([1, 11, 10])})
    assert (results[0], results[2]) == (WriteStatus.STORED, WriteStatus.STORED)
    assert isinstance(results[1], ItemTooLargeError)
    assert store.server.keys() == ["k0", "k2"]


def test_expected_error_ends_one_partition_and_a_bug_ends_all() -> None:
    """Expected errors are results; other exceptions must not be ignored."""

    def refuse() -> Steps[None]:
        yield Step(fetch=["a"])
        raise CorruptItemError("torn")

    def bug() -> Steps[None]:
        yield Step(fetch=["a"])
        raise ZeroDivisionError

    store = MemoryStore()
    results = run({0: (store, refuse()), 1: (store, put_then_fetch("k", 1))})
    assert isinstance(results[0], CorruptItemError)
    assert results[1] == [b"k0"]
    with pytest.raises(ZeroDivisionError):
        run({0: (store, bug())})
    with pytest.raises(CorruptItemError):
        run_one(store, refuse())


def test_work_without_steps_makes_no_call() -> None:
    """A generator that yields nothing returns at once."""

    def nothing() -> Steps[int]:
        return 7
        yield Step()

    store = CountingStore(MemoryServer())
    assert run({0: (store, nothing())}) == {0: 7}
    assert store.calls == []
    assert Reply([], {}).items == {}
