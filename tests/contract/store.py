"""The contracts of stores, as tests: subclass one of the contracts and give it a ``server``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, cast

import msgspec
import pytest

from nodestate.errors import DatabaseFullError, ItemTooLargeError, StoreUnavailableError
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.ports import MAX_TTL_S, ClaimStore, Item, NodeRow, Put, RowQuery, Store, Write, WriteResult, WriteStatus
from nodestate.scheduling.claims import CLOCK_S
from nodestate.store import keys
from nodestate.store.keys import MAX_KEY_BYTES
from nodestate.store.wire import unpack_found_rows, unpack_record

MANY = 10_000
NEVER_GIVEN = 2**64 - 1
SMALL, CHUNKED = 50_000, 700_000  # memcached keeps values over 512 KiB in several chunks


class Server(Protocol):
    """The server behind a store, as the tests control it."""

    def connect(self) -> Store:
        """Open a connection that the test closes."""

    def stop(self) -> None:
        """Stop answering. Items may be lost."""

    def start(self) -> None:
        """Answer again."""

    def restart(self) -> None:
        """Stop and start. memcached loses everything, and its CAS ids start again; a database loses nothing."""

    def flush(self) -> None:
        """Lose everything."""

    def wait(self, seconds: float) -> None:
        """Wait."""


class DatabaseServer(Server, Protocol):
    """The database behind a store."""

    def backup(self) -> Any:
        """The present contents."""

    def restore(self, backup: Any) -> None:
        """Replace all contents by a backup, while connections are open."""


class StoreContract:
    """The contract of all stores.

    Subclasses have the fixtures ``server`` (empty) and ``full_server`` (a few MB, refuses instead of evicting).
    """

    many = MANY

    @pytest.fixture
    def full_store(self, full_server: Server) -> Iterator[Store]:
        store = full_server.connect()
        yield store
        store.close()

    @pytest.fixture
    def store(self, server: Server) -> Iterator[Store]:
        store = server.connect()
        yield store
        store.close()

    # -- outcomes

    def test_added_items_are_fetched(self, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1")])
        assert written.status is WriteStatus.STORED
        assert store.fetch(["a", "b"]) == {"a": Item(b"1", written.cas, None)}

    def test_items_are_fetched_with_their_values_only(self, store: Store) -> None:
        """A reader of many values asks for no CAS ids and times to live; both kinds of fetch may follow each other."""
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=60), Write(Put.ADD, "c", b"VA 3\r\n")])[:1]
        found = store.fetch(["a", "b", "c"], values_only=True)
        assert {key: item.value for key, item in found.items()} == {"a": b"1", "c": b"VA 3\r\n"}
        again = store.fetch(["a"])["a"]
        assert (again.value, again.cas) == (b"1", written.cas)
        assert again.ttl_s in (59, 60)

    def test_add_keeps_an_existing_item(self, store: Store) -> None:
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.ADD, "a", b"2")]) == [WriteResult(WriteStatus.CONFLICT)]
        assert store.fetch(["a"]) == {"a": Item(b"1", first.cas, None)}

    def test_cas_replaces_only_the_item_that_it_read(self, store: Store) -> None:
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        [second] = store.write([Write(Put.CAS, "a", b"2", first.cas)])
        assert second.status is WriteStatus.STORED
        assert second.cas != first.cas
        assert store.write([Write(Put.CAS, "a", b"3", first.cas)]) == [WriteResult(WriteStatus.CONFLICT)]
        assert store.fetch(["a"]) == {"a": Item(b"2", second.cas, None)}

    def test_cas_id_of_a_write_can_be_used_for_the_next_write(self, store: Store) -> None:
        """An owner rewrites its head for hours; a fetch each time would be a round trip and a race."""
        [written] = store.write([Write(Put.ADD, "a", b"0")])
        for value in (b"1", b"2", b"3"):
            [written] = store.write([Write(Put.CAS, "a", value, written.cas)])
            assert written.status is WriteStatus.STORED
        assert store.fetch(["a"]) == {"a": Item(b"3", written.cas, None)}

    @pytest.mark.parametrize("cas", [0, 1, NEVER_GIVEN])
    def test_cas_of_a_missing_item_is_missing(self, store: Store, cas: int) -> None:
        assert store.write([Write(Put.CAS, "a", b"1", cas)]) == [WriteResult(WriteStatus.MISSING)]
        assert store.fetch(["a"]) == {}

    @pytest.mark.parametrize("cas", [0, NEVER_GIVEN])
    def test_cas_id_that_was_never_given_conflicts(self, store: Store, cas: int) -> None:
        """0 stands for an unknown id, and must not match every item."""
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.CAS, "a", b"2", cas)]) == [WriteResult(WriteStatus.CONFLICT)]
        assert store.fetch(["a"])["a"].value == b"1"

    def test_delete_says_if_an_item_existed(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.DELETE, "a")]) == [WriteResult(WriteStatus.STORED)]
        assert store.write([Write(Put.DELETE, "a")]) == [WriteResult(WriteStatus.MISSING)]
        assert store.fetch(["a"]) == {}

    def test_writes_are_carried_out_in_order(self, store: Store) -> None:
        """The head is the last write of its call: a reader that sees it must find its contents."""
        outcomes = store.write(
            [
                Write(Put.ADD, "a", b"1"),
                Write(Put.DELETE, "b"),
                Write(Put.ADD, "a", b"2"),
                Write(Put.CAS, "b", b"3", 1),
                Write(Put.DELETE, "a"),
                Write(Put.ADD, "a", b"4"),
                Write(Put.ADD, "b", b"5"),
            ]
        )
        assert [outcome.status for outcome in outcomes] == [
            WriteStatus.STORED,
            WriteStatus.MISSING,
            WriteStatus.CONFLICT,
            WriteStatus.MISSING,
            WriteStatus.STORED,
            WriteStatus.STORED,
            WriteStatus.STORED,
        ]
        fetched = store.fetch(["b", "a"])
        assert fetched["a"] == Item(b"4", outcomes[5].cas, None)
        assert fetched["b"] == Item(b"5", outcomes[6].cas, None)

    def test_one_of_two_writers_with_the_same_cas_id_wins(self, server: Server, store: Store) -> None:
        other = server.connect()
        store.write([Write(Put.ADD, "a", b"0")])
        seen, seen_by_other = store.fetch(["a"])["a"], other.fetch(["a"])["a"]
        assert seen == seen_by_other
        [won] = other.write([Write(Put.CAS, "a", b"other", seen_by_other.cas)])
        [lost] = store.write([Write(Put.CAS, "a", b"ours", seen.cas)])
        assert (won.status, lost.status) == (WriteStatus.STORED, WriteStatus.CONFLICT)
        assert store.fetch(["a"]) == {"a": Item(b"other", won.cas, None)}
        other.close()

    # -- shapes and sizes

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\r\n",
            b"EN\r\n",
            b"MN\r\n",
            b"HD\r\n",
            b"HD c1 f1\r\n",
            b"VA 1 c1 t-1\r\nx\r\n",
            b"END\r\nERROR\r\nSERVER_ERROR out of memory storing object\r\n",
            b"\0\n\r" + bytes(range(256)) * 300,
        ],
        ids=lambda value: repr(value[:12]),
    )
    def test_values_are_opaque(self, store: Store, value: bytes) -> None:
        writes = [Write(Put.ADD, "a", value), Write(Put.ADD, "b", b"next"), Write(Put.ADD, "c", value)]
        assert {written.status for written in store.write(writes)} == {WriteStatus.STORED}
        fetched = store.fetch(["a", "missing", "b", "c"])
        assert {key: item.value for key, item in fetched.items()} == {"a": value, "b": b"next", "c": value}
        assert all(type(item.value) is bytes for item in fetched.values())

    def test_empty_calls_do_nothing(self, store: Store) -> None:
        assert store.fetch([]) == {}
        assert store.write([]) == []

    def test_key_may_be_fetched_twice_in_one_call(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.fetch(["a", "a", "b", "b", "a"])["a"].value == b"1"

    def test_longest_key_is_accepted(self, store: Store) -> None:
        first, second = "k" * (MAX_KEY_BYTES - 1) + "1", "k" * (MAX_KEY_BYTES - 1) + "2"
        store.write([Write(Put.ADD, first, b"1"), Write(Put.ADD, second, b"2")])
        assert {key: item.value for key, item in store.fetch([second, first]).items()} == {first: b"1", second: b"2"}
        assert store.write([Write(Put.DELETE, first)]) == [WriteResult(WriteStatus.STORED)]

    def test_large_batches_keep_their_order(self, store: Store) -> None:
        """A cell's first commit writes every node: no number of writes or keys may dead-lock or mix them up."""
        keys = [f"key-{number:05}" for number in range(self.many)]
        added = store.write([Write(Put.ADD, key, key.encode() * 90) for key in keys])
        assert {written.status for written in added} == {WriteStatus.STORED}
        store.write([Write(Put.DELETE, key) for key in keys[::7]])
        fetched = store.fetch(keys)
        assert set(fetched) == set(keys) - set(keys[::7])
        for number, key in enumerate(keys):
            if number % 7:
                assert fetched[key] == Item(key.encode() * 90, added[number].cas, None)
        again = store.write([Write(Put.CAS, key, b"2", written.cas) for key, written in zip(keys, added, strict=True)])
        for number, written in enumerate(again):
            assert written.status is (WriteStatus.STORED if number % 7 else WriteStatus.MISSING)

    def test_any_number_of_keys_may_be_fetched_in_one_call(self, store: Store) -> None:
        keys = [f"{number:0{MAX_KEY_BYTES}}" for number in range(10 * self.many)]
        store.write([Write(Put.ADD, keys[0], b"first"), Write(Put.ADD, keys[-1], b"last")])
        assert {key: item.value for key, item in store.fetch(keys).items()} == {keys[0]: b"first", keys[-1]: b"last"}

    def test_megabytes_flow_both_ways_in_one_call(self, store: Store) -> None:
        """More than any socket buffer holds, with values of one and of several chunks."""
        value = b"\r\nEN\r\n" * (store.max_value_bytes // 6)
        writes = [Write(Put.ADD, f"large-{number}", value[: len(value) - number]) for number in range(20)]
        assert {written.status for written in store.write(writes)} == {WriteStatus.STORED}
        fetched = store.fetch([write.key for write in writes])
        assert {key: item.value for key, item in fetched.items()} == {write.key: write.value for write in writes}

    def test_largest_value_fits_with_the_longest_key(self, store: Store) -> None:
        key, value = "k" * MAX_KEY_BYTES, b"x" * store.max_value_bytes
        [written] = store.write([Write(Put.ADD, key, value)])
        assert written.status is WriteStatus.STORED
        [written] = store.write([Write(Put.CAS, key, value, written.cas)])
        assert written.status is WriteStatus.STORED
        assert store.fetch([key])[key].value == value

    def test_too_large_item_is_refused_before_anything_is_written(self, store: Store) -> None:
        [old] = store.write([Write(Put.ADD, "a", b"old")])
        value = b"x" * (store.max_value_bytes + MAX_KEY_BYTES + 1)
        with pytest.raises(ItemTooLargeError) as caught:
            store.write([Write(Put.ADD, "b", b"1"), Write(Put.CAS, "a", value, old.cas)])
        assert (caught.value.server, caught.value.key) == (store.name, "a")
        assert caught.value.size_bytes == len(value) > caught.value.limit_bytes >= store.max_value_bytes
        assert store.fetch(["a", "b"]) == {"a": Item(b"old", old.cas, None)}

    # -- time

    def test_time_to_live_is_reported_and_renewed(self, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=100)])
        assert store.fetch(["a"])["a"].ttl_s in (99, 100)
        [written] = store.write([Write(Put.CAS, "a", b"1", written.cas, ttl_s=1_000)])
        assert store.fetch(["a"])["a"].ttl_s in (999, 1_000)
        store.write([Write(Put.CAS, "a", b"1", written.cas)])
        assert store.fetch(["a"])["a"].ttl_s is None

    def test_time_to_live_counts_from_the_moment_that_the_writer_names(self, store: Store) -> None:
        """I5: a process may freeze between packing a statement and the call; the age of the statement goes on."""
        moment = time.monotonic() - 30
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=100, as_of=moment)])
        assert store.fetch(["a"])["a"].ttl_s in (68, 69, 70)
        store.write([Write(Put.CAS, "a", b"1", written.cas, ttl_s=100)])
        assert store.fetch(["a"])["a"].ttl_s in (99, 100)

    def test_time_to_live_of_more_than_a_month_is_a_month(self, store: Store) -> None:
        """memcached reads a larger number as a date long ago: the item would be lost at once."""
        store.write([Write(Put.ADD, "a", b"1", ttl_s=10 * MAX_TTL_S)])
        assert store.fetch(["a"])["a"].ttl_s in (MAX_TTL_S - 1, MAX_TTL_S)

    def test_expired_item_does_not_exist(self, server: Server, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=2)])
        store.write([Write(Put.ADD, "b", b"2", ttl_s=100)])
        server.wait(2.1)
        assert set(store.fetch(["a", "b"])) == {"b"}
        assert store.write([Write(Put.CAS, "a", b"2", written.cas)]) == [WriteResult(WriteStatus.MISSING)]
        assert store.write([Write(Put.DELETE, "a")]) == [WriteResult(WriteStatus.MISSING)]
        [written] = store.write([Write(Put.ADD, "a", b"3")])
        assert written.status is WriteStatus.STORED

    # -- loss and outage

    def test_outage_is_an_error_and_no_miss(self, server: Server, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        server.stop()
        with pytest.raises(StoreUnavailableError) as caught:
            store.fetch(["a"])
        assert caught.value.server == store.name
        with pytest.raises(StoreUnavailableError):
            store.write([Write(Put.ADD, "b", b"2")])
        server.start()
        store.fetch(["a"])
        [written] = store.write([Write(Put.ADD, "b", b"2")])
        assert written.status is WriteStatus.STORED

    def test_closed_store_reconnects(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        store.close()
        store.close()
        assert store.fetch(["a"])["a"].value == b"1"


class MemcachedContract(StoreContract):
    """The contract of memcached and its double beyond ``StoreContract``: they refuse single writes, and may lose
    everything.
    """

    @pytest.mark.parametrize("size", [SMALL, CHUNKED])
    def test_full_server_keeps_its_items(self, full_store: Store, size: int) -> None:
        """memcached's ``set`` and ``ms`` would not: they remove the old value first, even if its id is wrong."""
        keys = ["added", "replaced", "fenced"]
        old = dict(zip(keys, full_store.write([Write(Put.ADD, key, b"old") for key in keys]), strict=True))
        value = b"x" * size
        for number in range(1_000):
            [written] = full_store.write([Write(Put.ADD, f"filler-{number}", value)])
            if written.status is WriteStatus.FULL:
                break
            assert written.status is WriteStatus.STORED
        else:
            pytest.fail("the server was never full")
        outcomes = full_store.write(
            [
                Write(Put.ADD, "added", value),
                Write(Put.CAS, "replaced", value, old["replaced"].cas),
                Write(Put.CAS, "fenced", value, NEVER_GIVEN),
                Write(Put.DELETE, "filler-0"),
            ]
        )
        assert outcomes == [WriteResult(WriteStatus.FULL)] * 3 + [WriteResult(WriteStatus.STORED)]
        assert full_store.fetch([*keys, "filler-0"]) == {key: Item(b"old", old[key].cas, None) for key in keys}
        [written] = full_store.write([Write(Put.CAS, "replaced", value, old["replaced"].cas)])
        assert written.status is WriteStatus.STORED

    def test_flush_loses_everything(self, server: Server, store: Store) -> None:
        [before] = store.write([Write(Put.ADD, "a", b"1")])
        server.flush()
        assert store.fetch(["a"]) == {}
        assert store.write([Write(Put.CAS, "a", b"2", before.cas)]) == [WriteResult(WriteStatus.MISSING)]
        [after] = store.write([Write(Put.ADD, "a", b"2")])
        assert after.cas > before.cas

    def test_cas_id_from_before_a_restart_matches_no_item(self, server: Server, store: Store) -> None:
        """memcached counts its ids from 1 again, so a client that was paused could overwrite a new item.

        The keys of claims contain no epoch that would prevent that.
        """
        befores = [store.write([Write(Put.ADD, key, b"before")])[0].cas for key in "abc"]
        server.restart()
        other = server.connect()
        afters = [other.write([Write(Put.ADD, key, b"after")])[0].cas for key in "abc"]
        assert not set(befores) & set(afters)
        for key, before in zip("abc", befores, strict=True):
            assert store.write([Write(Put.CAS, key, b"zombie", before)]) == [WriteResult(WriteStatus.CONFLICT)]
        assert {key: item.value for key, item in other.fetch("abc").items()} == dict.fromkeys("abc", b"after")
        [written] = store.write([Write(Put.CAS, "a", b"ours", afters[0])])
        assert written.status is WriteStatus.STORED, "clients of one run of the server have different ids"
        other.close()


class ClaimStoreContract:
    """The contract of stores that keep claims beyond ``StoreContract``: one clock for all clients.

    Subclasses have the fixture ``server`` (empty), whose connections are ``ports.ClaimStore``.
    """

    @pytest.fixture
    def store(self, server: Server) -> Iterator[ClaimStore]:
        store = claim_store(server)
        yield store
        store.close()

    def test_clock_never_goes_back_between_calls(self, store: ClaimStore) -> None:
        """An expired claim must not become valid again."""
        times = []
        for number in range(50):
            times.append(store.server_time())
            store.write([Write(Put.ADD, f"k{number}", b"1")])
            store.fetch([f"k{number}"])
        assert times == sorted(times)

    def test_clock_counts_seconds(self, server: Server, store: ClaimStore) -> None:
        """Deadlines use it: a claim of 30 s must be valid for 30 s."""
        began = time.monotonic()
        before = store.server_time()
        server.wait(1.25)
        passed_s = store.server_time() - before
        assert 1.2 <= passed_s < max(1.25, time.monotonic() - began) + 0.5

    def test_all_clients_have_the_same_clock_to_the_second(self, server: Server, store: ClaimStore) -> None:
        """Whenever they connected. A claim is valid that much longer than its deadline says (``claims.CLOCK_S``)."""
        others = []
        for _ in range(4):
            others.append(claim_store(server))
            others[-1].server_time()
            server.wait(0.3)
        began = time.monotonic()
        times = [each.server_time() for each in (store, *others)]
        asking_s = time.monotonic() - began
        assert max(times) - min(times) < CLOCK_S + asking_s
        for other in others:
            other.close()

    def test_client_has_the_same_clock_to_the_second_after_a_reconnect(self, server: Server, store: ClaimStore) -> None:
        """A broken connection is no restart of the server."""
        began = time.monotonic()
        before = store.server_time()
        store.close()
        server.wait(0.3)
        passed_s = store.server_time() - before
        assert 0.3 - CLOCK_S < passed_s < max(0.3, time.monotonic() - began) + CLOCK_S

    def test_clock_at_a_moment_is_at_most_a_second_behind(self, server: Server, store: ClaimStore) -> None:
        """Times of writing are times of this clock (``Head.written_ms``)."""
        store.fetch(["a"])
        other = claim_store(server)
        other.fetch(["a"])
        moment = time.monotonic()
        times = [one.server_time_at(moment) for one in (store, other)]
        now = other.server_time()
        assert all(one is not None and -CLOCK_S <= now - one <= time.monotonic() - moment + CLOCK_S for one in times)
        earlier = store.server_time_at(moment - 5.0)
        assert earlier is not None
        assert store.server_time_at(moment) == pytest.approx(earlier + 5.0)
        other.close()

    def test_clock_of_a_server_that_does_not_answer_is_unknown(self, server: Server) -> None:
        """A deadline by another clock would mean nothing."""
        server.stop()
        late = claim_store(server)
        with pytest.raises(StoreUnavailableError):
            late.server_time()
        late.close()


def claim_store(server: Server) -> ClaimStore:
    """Typed as a ``ClaimStore`` without ``isinstance``, which would read ``max_value_bytes`` and so call the server."""
    return cast("ClaimStore", server.connect())


PLACE, OTHER_PLACE = keys.prefix("cell1", 8, 0, keys.DATABASE), keys.prefix("cell1", 8, 1, keys.DATABASE)
EPOCH, OTHER_EPOCH = 0x7FFF_FFFF_FFFF_FFFF, 0x8


def node_row(slot: int, offset: int = 0, *, place: str = PLACE, epoch: int = EPOCH, **state: Any) -> NodeRow:
    """A row as a commit writes it."""
    fields = {"kind": "report", "node": f"node-{slot}", "incarnation": 1_763_787_600, "generation": offset + 1}
    event = parse_event(msgspec.msgpack.encode({**fields, "reported_at": 1_763_787_600.5, "state": state}))
    record = fold(None, event).record
    assert record is not None
    return NodeRow(place, epoch, slot, offset, record)


def with_rows(*rows: NodeRow, key: str = "head", put: Put = Put.ADD, cas: int = 0) -> Write:
    return Write(put, key, b"head", cas, 0, rows)


def asked(store: Store, question: RowQuery) -> tuple[int, dict[int, NodeRecord]]:
    """The latest commit and the records by slot in the answer to a row query."""
    found = unpack_found_rows(store.fetch([question])[question].value)
    assert len(dict(found.rows)) == len(found.rows), "a slot was returned twice"
    return found.newest, {slot: unpack_record(raw) for slot, raw in found.rows}


def records(*rows: NodeRow) -> dict[int, NodeRecord]:
    return {row.slot: row.record for row in rows}


ALL = RowQuery.since(PLACE, EPOCH, 0)


class DatabaseContract(StoreContract):
    """The contract of databases and their double beyond ``StoreContract``: nothing is lost, a call is one transaction,
    and writes have rows.
    """

    many = 1_000

    @pytest.fixture
    def server(self) -> DatabaseServer:
        raise NotImplementedError  # a subclass's; here so that the tests below have its type

    def test_no_value_is_dated_by_a_clock_that_an_operator_may_set(self, store: Store) -> None:
        store.fetch(["a"])
        assert store.server_time_at(time.monotonic()) is None

    def test_everything_survives_a_restart(self, server: DatabaseServer, store: Store) -> None:
        """An item from before the restart can be replaced after it by its id."""
        rows = (node_row(0), node_row(1))
        [written] = store.write([with_rows(*rows)])
        server.restart()
        assert asked(retried(store), ALL) == (0, records(*rows))
        assert store.fetch(["head"])["head"].cas == written.cas
        [again] = store.write([Write(Put.CAS, "head", b"2", written.cas)])
        assert again.status is WriteStatus.STORED

    def test_cas_id_is_never_used_again(self, server: DatabaseServer, store: Store) -> None:
        """Not for a key that was deleted and added, nor after the database was set back to a backup: an owner that
        wrote in the meantime must not overwrite an item that it has not read.
        """
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        backup = server.backup()
        seen = {first.cas}
        written = first
        for _ in range(5):
            [written] = store.write([Write(Put.CAS, "a", b"2", written.cas)])
            seen.add(written.cas)
        store.write([Write(Put.DELETE, "a")])
        [added] = store.write([Write(Put.ADD, "a", b"3")])
        server.restore(backup)
        assert retried(store).fetch(["a"])["a"] == Item(b"1", first.cas, None)
        assert store.write([Write(Put.CAS, "a", b"4", written.cas)]) == [WriteResult(WriteStatus.CONFLICT)]
        assert store.write([Write(Put.CAS, "a", b"4", added.cas)]) == [WriteResult(WriteStatus.CONFLICT)]
        [after] = store.write([Write(Put.CAS, "a", b"4", first.cas)])
        assert after.status is WriteStatus.STORED
        assert after.cas not in seen | {added.cas}
        assert len(seen) == 6

    def test_full_database_rolls_the_whole_call_back(self, full_server: DatabaseServer, full_store: Store) -> None:
        """No part of the call is stored, and all items from before it exist."""
        [old] = full_store.write([with_rows(node_row(0, zone="old"))])
        large = {"namespaces": {"x": "y" * 20_000}}
        for number in range(1, 1_000):
            head = full_store.fetch(["head"])["head"]
            row = node_row(1, number, **large)
            filler = Write(Put.ADD, f"filler-{number}", random.Random(number).randbytes(100_000))
            try:
                full_store.write([with_rows(row, put=Put.CAS, cas=head.cas), filler])
            except DatabaseFullError as error:
                assert error.server == full_store.name  # noqa: PT017  which of the calls fails is not the contract
                break
        else:
            pytest.fail("the database was never full")
        newest, found = asked(full_store, ALL)
        assert full_store.fetch(["head", f"filler-{number}"]).keys() == {"head"}
        assert (newest, found.keys()) == (number - 1, {0, 1}), "the row is not of the last call that found room"
        assert full_store.fetch(["head"])["head"].cas == head.cas != old.cas
        fillers = [Write(Put.DELETE, f"filler-{n}") for n in range(1, number)]
        assert {written.status for written in full_store.write(fillers)} == {WriteStatus.STORED}
        for _ in range(100):  # MariaDB gives the room back in its own time
            with suppress(DatabaseFullError):
                [written] = full_store.write([with_rows(row, put=Put.CAS, cas=head.cas)])
                assert written.status is WriteStatus.STORED
                return
            full_server.wait(0.1)
        pytest.fail("what was deleted left no room")

    # -- rows

    def test_rows_are_stored_only_with_their_write(self, store: Store) -> None:
        """A commit is its head and its rows: an owner that does not move the head stores no row."""
        row = node_row(0, 0, usage={"VCPU": 4}, zone="\u00e4\u4e2d")
        [written] = store.write([with_rows(row)])
        assert asked(store, ALL) == (0, records(row))
        assert store.write([with_rows(node_row(0, 1, zone="zombie's"), node_row(1, 1))]) == [
            WriteResult(WriteStatus.CONFLICT)
        ]
        wrong = with_rows(node_row(0, 1, zone="zombie's"), put=Put.CAS, cas=written.cas + 1)
        assert store.write([wrong]) == [WriteResult(WriteStatus.CONFLICT)]
        missing = with_rows(node_row(0, 1), key="no-head", put=Put.CAS, cas=written.cas)
        assert store.write([missing]) == [WriteResult(WriteStatus.MISSING)]
        assert asked(store, ALL) == (0, records(row))

    def test_each_write_of_a_call_has_its_own_rows(self, store: Store) -> None:
        """Partitions commit together: one that lost its head does not affect the rows of the others."""
        store.write([Write(Put.ADD, "head-1", b"taken")])
        rows = [node_row(0, place=PLACE), node_row(0, place=OTHER_PLACE), node_row(5, place=PLACE)]
        outcomes = store.write(
            [with_rows(rows[0], key="head-0"), with_rows(rows[1], key="head-1"), with_rows(rows[2], key="head-2")]
        )
        assert [outcome.status for outcome in outcomes] == [
            WriteStatus.STORED,
            WriteStatus.CONFLICT,
            WriteStatus.STORED,
        ]
        assert asked(store, ALL) == (0, records(rows[0], rows[2]))
        assert asked(store, RowQuery.since(OTHER_PLACE, EPOCH, 0)) == (-1, {})

    def test_row_replaces_the_row_in_its_slot(self, store: Store) -> None:
        [first] = store.write([with_rows(*[node_row(slot, zone="old") for slot in range(3)])])
        new = node_row(1, 1, zone="new")
        store.write([with_rows(new, put=Put.CAS, cas=first.cas)])
        assert asked(store, ALL) == (1, records(node_row(0, zone="old"), new, node_row(2, zone="old")))
        assert asked(store, RowQuery.since(PLACE, EPOCH, 1)) == (1, records(new))

    def test_later_write_of_a_call_wins_a_slot(self, store: Store) -> None:
        first, second = node_row(0, 0, zone="first"), node_row(0, 1, zone="second")
        store.write([with_rows(first, key="a"), with_rows(second, key="b")])
        assert asked(store, ALL) == (1, records(second))

    def test_row_query_returns_rows_of_its_partition_and_epoch_only(self, store: Store) -> None:
        """Rows of other partitions and cells must not be returned, whatever their slots and commits are."""
        own = [node_row(slot, slot) for slot in range(6)]
        others = [node_row(slot, slot, place=OTHER_PLACE, zone="other") for slot in range(6)]
        former = [node_row(slot, slot, epoch=OTHER_EPOCH, zone="former") for slot in range(6)]
        store.write([with_rows(*own, *others, *former)])
        assert asked(store, RowQuery.since(PLACE, EPOCH, 4)) == (5, records(*own[4:]))
        assert asked(store, RowQuery.since(PLACE, EPOCH, 6)) == (-1, {})
        assert asked(store, RowQuery.between(PLACE, EPOCH, 1, 3)) == (2, records(*own[1:3]))
        assert asked(store, RowQuery.between(PLACE, EPOCH, 6, 100)) == (-1, {})
        assert asked(store, RowQuery.since(PLACE, OTHER_EPOCH, 4)) == (5, records(*former[4:]))
        assert asked(store, RowQuery.between(OTHER_PLACE, EPOCH, 0, 2)) == (1, records(*others[:2]))
        assert asked(store, RowQuery.since(keys.prefix("cell2", 8, 0, "d"), EPOCH, 0)) == (-1, {})

    def test_prefixes_are_compared_by_every_letter(self, store: Store) -> None:
        """MariaDB's default would find ``Cell1`` for ``cell1``."""
        places = [keys.prefix(cell, 8, 0, "d") for cell in ("cell1", "Cell1", "CELL1", "cell1_", "cell1-")]
        store.write([with_rows(*[node_row(0, place=place, zone=place) for place in places])])
        heads = ["Head", "HEAD", "head"]
        store.write([Write(Put.ADD, key, key.encode()) for key in heads[:2]])
        for place in places:
            assert asked(store, RowQuery.since(place, EPOCH, 0)) == (0, records(node_row(0, zone=place)))
        assert {key: item.value for key, item in store.fetch(heads).items()} == {
            "Head": b"Head",
            "HEAD": b"HEAD",
            "head": b"head",
        }

    def test_one_call_has_row_queries_of_several_partitions(self, store: Store) -> None:
        """With heads in the same call, as in a refresh: sixteen partitions need as many round trips as one."""
        places = [keys.prefix("cell1", 40, number, "d") for number in range(40)]
        rows = [node_row(slot, slot, place=place, zone=place) for place in places for slot in range(3)]
        store.write([with_rows(*rows)])
        questions = [
            RowQuery.since(place, EPOCH, 1) if number % 2 else RowQuery.between(place, EPOCH, 0, 1 + number % 4)
            for number, place in enumerate(places)
        ]
        found = store.fetch(["absent", *questions, "head"])
        assert found.keys() == {"head", *questions}
        for number, (place, question) in enumerate(zip(places, questions, strict=True)):
            slots = (1, 2) if number % 2 else range(min(3, 1 + number % 4))
            expected = {slot: node_row(slot, slot, zone=place).record for slot in slots}
            answer = unpack_found_rows(found[question].value)
            assert {slot: unpack_record(raw) for slot, raw in answer.rows} == expected
            assert answer.newest == max(slots)

    def test_rows_of_an_epoch_are_deleted_by_a_query(self, store: Store) -> None:
        """As a new epoch does with the one before it; rows of other epochs and partitions stay."""
        own = [node_row(slot) for slot in range(3)]
        others = [node_row(slot, place=OTHER_PLACE, epoch=OTHER_EPOCH) for slot in range(3)]
        former = [node_row(slot, epoch=epoch) for epoch in (OTHER_EPOCH, EPOCH - 1) for slot in range(3)]
        store.write([with_rows(*own, *others, *former)])
        delete = Write(Put.DELETE_ROWS, query=RowQuery.of_epoch(PLACE, OTHER_EPOCH))
        assert store.write([delete]) == [WriteResult(WriteStatus.STORED)]
        assert store.write([delete]) == [WriteResult(WriteStatus.MISSING)]
        assert asked(store, ALL) == (0, records(*own))
        assert asked(store, RowQuery.since(OTHER_PLACE, OTHER_EPOCH, 0)) == (0, records(*others))
        assert asked(store, RowQuery.since(PLACE, OTHER_EPOCH, 0)) == (-1, {})
        assert asked(store, RowQuery.since(PLACE, EPOCH - 1, 0)) == (0, records(*former[3:]))

    def test_thousands_of_rows_are_one_commit(self, store: Store) -> None:
        """More than one statement can write, of sizes from small to large."""
        rows = [node_row(slot, 0, namespaces={"x": "y" * (slot % 500)}) for slot in range(2_500)]
        [written] = store.write([with_rows(*rows)])
        assert written.status is WriteStatus.STORED
        assert asked(store, ALL) == (0, records(*rows))
        again = [row._replace(offset=1) for row in rows[::7]]
        store.write([with_rows(*again, put=Put.CAS, cas=written.cas)])
        assert asked(store, RowQuery.since(PLACE, EPOCH, 1)) == (1, records(*again))
        assert asked(store, RowQuery.between(PLACE, EPOCH, 1_000, 2_000)) == (1, records(*rows[1_000:2_000]))

    def test_node_with_only_a_name_is_a_row(self, store: Store) -> None:
        """A tombstone, and a node that is only known to be incomplete: their columns are as empty as possible."""
        heartbeat = {"kind": "heartbeat", "node": "n" * 200, "incarnation": 1, "generation": 1, "reported_at": 0.0}
        unknown = fold(None, parse_event(msgspec.msgpack.encode(heartbeat))).record
        gone = fold(
            node_row(0).record,
            parse_event(
                msgspec.msgpack.encode({**heartbeat, "kind": "leave", "node": "node-0", "incarnation": 1_763_787_601})
            ),
        ).record
        assert unknown is not None
        assert gone is not None
        rows = [NodeRow(PLACE, EPOCH, 0, 0, unknown), NodeRow(PLACE, EPOCH, 1, 0, gone)]
        store.write([with_rows(*rows)])
        assert asked(store, ALL) == (0, records(*rows))


def retried(store: Store) -> Store:
    """A connection that has noticed that the server was down: the first write after that may fail."""
    with suppress(StoreUnavailableError):
        store.write([Write(Put.DELETE, "nothing")])
    return store
