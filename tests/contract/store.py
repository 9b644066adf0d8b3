"""What every Store promises, as tests: subclass ``StoreContract`` and give it a ``server``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from nodestate.errors import ItemTooLargeError, StoreUnavailableError
from nodestate.keys import MAX_KEY_BYTES
from nodestate.ports import MAX_TTL_S, Item, Put, Status, Store, Write, Written

MANY = 10_000
NEVER_GIVEN = 2**64 - 1
SMALL, CHUNKED = 50_000, 700_000  # memcached keeps values over 512 KiB in several chunks


class Server(Protocol):
    """A store's other side, as the tests need it."""

    def connect(self) -> Store:
        """A connection of its own, closed by the test."""

    def stop(self) -> None:
        """Answer nobody; what is stored may be lost."""

    def start(self) -> None:
        """Answer again."""

    def restart(self) -> None:
        """Lose everything; CAS ids start anew."""

    def flush(self) -> None:
        """Lose everything."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""


class StoreContract:
    """Subclasses give the fixtures ``server`` (empty) and ``full_server`` (few MB, refuses instead of evicting)."""

    @pytest.fixture
    def store(self, server: Server) -> Iterator[Store]:
        store = server.connect()
        yield store
        store.close()

    @pytest.fixture
    def full_store(self, full_server: Server) -> Iterator[Store]:
        store = full_server.connect()
        yield store
        store.close()

    # -- outcomes

    def test_what_was_added_is_fetched(self, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1")])
        assert written.status is Status.STORED
        assert store.fetch(["a", "b"]) == {"a": Item(b"1", written.cas, None)}

    def test_add_leaves_what_is_there(self, store: Store) -> None:
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.ADD, "a", b"2")]) == [Written(Status.CONFLICT)]
        assert store.fetch(["a"]) == {"a": Item(b"1", first.cas, None)}

    def test_cas_replaces_only_what_it_saw(self, store: Store) -> None:
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        [second] = store.write([Write(Put.CAS, "a", b"2", first.cas)])
        assert second.status is Status.STORED
        assert second.cas != first.cas
        assert store.write([Write(Put.CAS, "a", b"3", first.cas)]) == [Written(Status.CONFLICT)]
        assert store.fetch(["a"]) == {"a": Item(b"2", second.cas, None)}

    def test_the_id_of_a_write_serves_the_next_without_a_fetch(self, store: Store) -> None:
        """An owner rewrites its head for hours; a fetch each time would be a round trip and a race."""
        [written] = store.write([Write(Put.ADD, "a", b"0")])
        for value in (b"1", b"2", b"3"):
            [written] = store.write([Write(Put.CAS, "a", value, written.cas)])
            assert written.status is Status.STORED
        assert store.fetch(["a"]) == {"a": Item(b"3", written.cas, None)}

    @pytest.mark.parametrize("cas", [0, 1, NEVER_GIVEN])
    def test_cas_on_nothing_is_missing(self, store: Store, cas: int) -> None:
        assert store.write([Write(Put.CAS, "a", b"1", cas)]) == [Written(Status.MISSING)]
        assert store.fetch(["a"]) == {}

    @pytest.mark.parametrize("cas", [0, NEVER_GIVEN])
    def test_an_id_that_was_never_given_conflicts(self, store: Store, cas: int) -> None:
        """0 stands for an id that is not known: it must not pass for 'any'."""
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.CAS, "a", b"2", cas)]) == [Written(Status.CONFLICT)]
        assert store.fetch(["a"])["a"].value == b"1"

    def test_delete_says_whether_something_was_there(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.write([Write(Put.DELETE, "a")]) == [Written(Status.STORED)]
        assert store.write([Write(Put.DELETE, "a")]) == [Written(Status.MISSING)]
        assert store.fetch(["a"]) == {}

    def test_writes_are_carried_out_in_order(self, store: Store) -> None:
        """The head comes last in its call: whoever sees it must find what it names."""
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
            Status.STORED,
            Status.MISSING,
            Status.CONFLICT,
            Status.MISSING,
            Status.STORED,
            Status.STORED,
            Status.STORED,
        ]
        fetched = store.fetch(["b", "a"])
        assert fetched["a"] == Item(b"4", outcomes[5].cas, None)
        assert fetched["b"] == Item(b"5", outcomes[6].cas, None)

    def test_of_two_writers_with_the_same_id_one_wins(self, server: Server, store: Store) -> None:
        other = server.connect()
        store.write([Write(Put.ADD, "a", b"0")])
        seen, seen_by_other = store.fetch(["a"])["a"], other.fetch(["a"])["a"]
        assert seen == seen_by_other
        [won] = other.write([Write(Put.CAS, "a", b"other", seen_by_other.cas)])
        [lost] = store.write([Write(Put.CAS, "a", b"ours", seen.cas)])
        assert (won.status, lost.status) == (Status.STORED, Status.CONFLICT)
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
        assert {written.status for written in store.write(writes)} == {Status.STORED}
        fetched = store.fetch(["a", "missing", "b", "c"])
        assert {key: item.value for key, item in fetched.items()} == {"a": value, "b": b"next", "c": value}
        assert all(type(item.value) is bytes for item in fetched.values())

    def test_nothing_asked_is_nothing_done(self, store: Store) -> None:
        assert store.fetch([]) == {}
        assert store.write([]) == []

    def test_a_key_asked_twice_is_answered(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        assert store.fetch(["a", "a", "b", "b", "a"])["a"].value == b"1"

    def test_the_longest_key_is_a_key(self, store: Store) -> None:
        first, second = "k" * (MAX_KEY_BYTES - 1) + "1", "k" * (MAX_KEY_BYTES - 1) + "2"
        store.write([Write(Put.ADD, first, b"1"), Write(Put.ADD, second, b"2")])
        assert {key: item.value for key, item in store.fetch([second, first]).items()} == {first: b"1", second: b"2"}
        assert store.write([Write(Put.DELETE, first)]) == [Written(Status.STORED)]

    def test_large_batches_keep_their_order(self, store: Store) -> None:
        """A cell's first commit writes every node: no number of writes or keys may dead-lock or mix them up."""
        keys = [f"key-{number:05}" for number in range(MANY)]
        added = store.write([Write(Put.ADD, key, key.encode() * 90) for key in keys])
        assert {written.status for written in added} == {Status.STORED}
        store.write([Write(Put.DELETE, key) for key in keys[::7]])
        fetched = store.fetch(keys)
        assert set(fetched) == set(keys) - set(keys[::7])
        for number, key in enumerate(keys):
            if number % 7:
                assert fetched[key] == Item(key.encode() * 90, added[number].cas, None)
        again = store.write([Write(Put.CAS, key, b"2", written.cas) for key, written in zip(keys, added, strict=True)])
        for number, written in enumerate(again):
            assert written.status is (Status.STORED if number % 7 else Status.MISSING)

    def test_a_hundred_thousand_keys_are_one_call(self, store: Store) -> None:
        keys = [f"{number:0{MAX_KEY_BYTES}}" for number in range(10 * MANY)]
        store.write([Write(Put.ADD, keys[0], b"first"), Write(Put.ADD, keys[-1], b"last")])
        assert {key: item.value for key, item in store.fetch(keys).items()} == {keys[0]: b"first", keys[-1]: b"last"}

    def test_megabytes_flow_both_ways_in_one_call(self, store: Store) -> None:
        """More than any socket buffer takes, with values of one and of several chunks."""
        value = b"\r\nEN\r\n" * (store.max_value_bytes // 6)
        writes = [Write(Put.ADD, f"large-{number}", value[: len(value) - number]) for number in range(20)]
        assert {written.status for written in store.write(writes)} == {Status.STORED}
        fetched = store.fetch([write.key for write in writes])
        assert {key: item.value for key, item in fetched.items()} == {write.key: write.value for write in writes}

    def test_the_largest_value_fits_under_the_longest_key(self, store: Store) -> None:
        key, value = "k" * MAX_KEY_BYTES, b"x" * store.max_value_bytes
        [written] = store.write([Write(Put.ADD, key, value)])
        assert written.status is Status.STORED
        [written] = store.write([Write(Put.CAS, key, value, written.cas)])
        assert written.status is Status.STORED
        assert store.fetch([key])[key].value == value

    def test_too_large_an_item_is_refused_before_anything_is_written(self, store: Store) -> None:
        [old] = store.write([Write(Put.ADD, "a", b"old")])
        value = b"x" * (store.max_value_bytes + MAX_KEY_BYTES + 1)
        with pytest.raises(ItemTooLargeError) as caught:
            store.write([Write(Put.ADD, "b", b"1"), Write(Put.CAS, "a", value, old.cas)])
        assert (caught.value.server, caught.value.key) == (store.name, "a")
        assert caught.value.size_bytes == len(value) > caught.value.limit_bytes >= store.max_value_bytes
        assert store.fetch(["a", "b"]) == {"a": Item(b"old", old.cas, None)}

    @pytest.mark.parametrize("size", [SMALL, CHUNKED])
    def test_a_full_server_keeps_what_it_has(self, full_store: Store, size: int) -> None:
        """Not so with memcached's ``set`` and ``ms``: they remove the old value first, even if its id is wrong."""
        keys = ["added", "replaced", "fenced"]
        old = dict(zip(keys, full_store.write([Write(Put.ADD, key, b"old") for key in keys]), strict=True))
        value = b"x" * size
        for number in range(1_000):
            [written] = full_store.write([Write(Put.ADD, f"filler-{number}", value)])
            if written.status is Status.FULL:
                break
            assert written.status is Status.STORED
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
        assert outcomes == [Written(Status.FULL)] * 3 + [Written(Status.STORED)]
        assert full_store.fetch([*keys, "filler-0"]) == {key: Item(b"old", old[key].cas, None) for key in keys}
        [written] = full_store.write([Write(Put.CAS, "replaced", value, old["replaced"].cas)])
        assert written.status is Status.STORED

    # -- time

    def test_time_to_live_is_told_and_renewed(self, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=100)])
        assert store.fetch(["a"])["a"].ttl_s in (99, 100)
        [written] = store.write([Write(Put.CAS, "a", b"1", written.cas, ttl_s=1_000)])
        assert store.fetch(["a"])["a"].ttl_s in (999, 1_000)
        store.write([Write(Put.CAS, "a", b"1", written.cas)])
        assert store.fetch(["a"])["a"].ttl_s is None

    def test_more_than_a_month_is_a_month(self, store: Store) -> None:
        """memcached reads a larger number as a date, long past: the item would be gone at once."""
        store.write([Write(Put.ADD, "a", b"1", ttl_s=10 * MAX_TTL_S)])
        assert store.fetch(["a"])["a"].ttl_s in (MAX_TTL_S - 1, MAX_TTL_S)

    def test_an_expired_item_is_gone(self, server: Server, store: Store) -> None:
        [written] = store.write([Write(Put.ADD, "a", b"1", ttl_s=2)])
        store.write([Write(Put.ADD, "b", b"2", ttl_s=100)])
        server.wait(2.1)
        assert set(store.fetch(["a", "b"])) == {"b"}
        assert store.write([Write(Put.CAS, "a", b"2", written.cas)]) == [Written(Status.MISSING)]
        assert store.write([Write(Put.DELETE, "a")]) == [Written(Status.MISSING)]
        [written] = store.write([Write(Put.ADD, "a", b"3")])
        assert written.status is Status.STORED

    # -- loss and outage

    def test_a_flush_loses_everything(self, server: Server, store: Store) -> None:
        [before] = store.write([Write(Put.ADD, "a", b"1")])
        server.flush()
        assert store.fetch(["a"]) == {}
        assert store.write([Write(Put.CAS, "a", b"2", before.cas)]) == [Written(Status.MISSING)]
        [after] = store.write([Write(Put.ADD, "a", b"2")])
        assert after.cas > before.cas

    def test_after_a_restart_an_old_id_may_fit_a_new_item(self, server: Server, store: Store) -> None:
        """The trap that the epoch in a head's key is for: ids are no proof of identity across a restart."""
        [before] = store.write([Write(Put.ADD, "a", b"before")])
        server.restart()
        other = server.connect()
        other.write([Write(Put.ADD, "a", b"after")])
        [written] = store.write([Write(Put.CAS, "a", b"zombie", before.cas)])
        assert written.status is Status.STORED
        assert other.fetch(["a"])["a"].value == b"zombie"
        other.close()

    def test_an_outage_is_an_error_and_no_miss(self, server: Server, store: Store) -> None:
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
        assert written.status is Status.STORED

    def test_a_closed_store_reconnects(self, store: Store) -> None:
        store.write([Write(Put.ADD, "a", b"1")])
        store.close()
        store.close()
        assert store.fetch(["a"])["a"].value == b"1"
