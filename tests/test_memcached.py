"""The memcached adapter beyond the store contract: the protocol, its failures, and the facts about memcached that it
relies on.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.servers import MemcachedServer
from harness.waiting import PATIENCE_S
from nodestate.errors import ConfigError, ItemTooLargeError, StoreUnavailableError
from nodestate.findings.finding import OK, WARN
from nodestate.findings.store_checks import start_finding, write_probe
from nodestate.ports import Item, Put, Write, WriteResult, WriteStatus
from nodestate.store import keys
from nodestate.store import memcached_protocol as protocol
from nodestate.store.memcached import MemcachedStore
from nodestate.testing import MemoryServer, MemoryStore

# -- replies as they come -------------------------------------------------------------------------


def _pieces(reply: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(reply), *(cut % len(reply) for cut in cuts)})
    return (reply[start:end] for start, end in itertools.pairwise(edges))


VALUES = st.one_of(st.none(), st.binary(max_size=40), st.sampled_from([b"EN\r\n", b"\r\n", b"VA 1 c1 t-1\r\nx\r\n"]))


@given(st.lists(VALUES, min_size=1, max_size=8), st.lists(st.integers(0, 10_000)))
def test_reply_to_a_fetch_may_arrive_in_any_pieces(values: list[bytes | None], cuts: list[int]) -> None:
    """TCP keeps no boundaries: a line, a number or a CR LF may be split anywhere."""
    reply, expected = b"", {}
    for number, value in enumerate(values):
        if value is None:
            reply += b"EN\r\n"
            continue
        ttl_s = None if number % 2 else number
        reply += b"VA %d c%d t%d\r\n%s\r\n" % (len(value), number, -1 if ttl_s is None else ttl_s, value)
        expected[str(number)] = Item(value, number, ttl_s)
    keys = [str(number) for number in range(len(values))]
    assert protocol.parse_items(keys, _pieces(reply, cuts)) == expected


@given(
    st.lists(st.sampled_from([Put.ADD, Put.CAS, Put.DELETE]), min_size=1, max_size=8), st.lists(st.integers(0, 10_000))
)
def test_reply_to_writes_may_arrive_in_any_pieces(puts: list[Put], cuts: list[int]) -> None:
    reply, expected = b"", []
    for number, put in enumerate(puts, 1):
        reply += b"HD\r\n" if put is Put.DELETE else b"STORED\r\nHD c%d f77\r\n" % number
        expected.append(WriteResult(WriteStatus.STORED, 0 if put is Put.DELETE else number))
    writes = [Write(put, "k") for put in puts]
    assert protocol.parse_outcomes(writes, protocol.read_lines(writes, _pieces(reply, cuts)), 77) == expected


@pytest.mark.parametrize("seen", [b"HD c9 f78", b"HD c9 f177", b"EN"])
def test_cas_id_of_another_writer_is_not_used_as_ours(seen: bytes) -> None:
    """Another client may write between our write and the read of its id.

    With that id we would overwrite its value unseen.
    """
    assert protocol.parse_outcomes([Write(Put.ADD, "k")], [b"STORED", seen], 77) == [WriteResult(WriteStatus.STORED, 0)]


# -- a server that answers as it likes ------------------------------------------------------------

SETTINGS = b"STAT item_size_max 1048576\r\nSTAT cas_enabled yes\r\nEND\r\n"
STATS = b"STAT pid 1\r\nSTAT uptime 5\r\nSTAT time 1763787605\r\nEND\r\n"


@contextlib.contextmanager
def scripted(*replies: bytes) -> Iterator[str]:
    """The address of a server that answers the questions of a connect, then one request with each reply, and then
    closes.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for reply in (SETTINGS, STATS, *replies):
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"VA 10 c1 t-1\r\nshort",
        b"VA 2 c1\r\nab\r\n",
        b"VA x c1 t-1\r\nab\r\n",
        b"HD\r\n",
        b"ERROR\r\n",
        b"CLIENT_ERROR bad command line format\r\n",
        b"SERVER_ERROR out of memory writing get response\r\n",
        b"EN\r\nEN\r\n",
    ],
)
def test_wrong_reply_to_a_fetch_is_an_outage(reply: bytes) -> None:
    """It must not count as a miss, because a miss makes an owner rebuild its partition."""
    with scripted(reply) as address, contextlib.closing(MemcachedStore(address, timeout_s=5.0)) as store:
        with pytest.raises(StoreUnavailableError) as caught:
            store.fetch(["a"])
        assert caught.value.server == address
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"STORED\r\n",
        b"STORED\r\nHD c",
        b"HD\r\nHD c1 f1\r\n",
        b"SERVER_ERROR object too large for cache\r\nEN\r\n",
        b"CLIENT_ERROR bad data chunk\r\nERROR\r\nEN\r\n",
        b"STORED\r\nEN\r\nEN\r\n",
    ],
)
def test_wrong_reply_to_a_write_is_an_unknown_outcome(reply: bytes) -> None:
    with (
        scripted(reply) as address,
        contextlib.closing(MemcachedStore(address, timeout_s=5.0)) as store,
        pytest.raises(StoreUnavailableError),
    ):
        store.write([Write(Put.ADD, "a", b"1")])


def test_idle_connection_that_the_server_closed_is_reopened() -> None:
    """memcached with -o idle_timeout closes idle connections, which loses no request."""
    with scripted(b"EN\r\n") as address:
        store = MemcachedStore(address, timeout_s=5.0)
        assert store.fetch(["a"]) == {}
    with pytest.raises(StoreUnavailableError, match="refused"):
        store.fetch(["a"])


@pytest.mark.parametrize("key", ["", "two words", "line\r\nflush_all", "tab\t", "naïve", "k" * 251])
def test_invalid_key_is_never_sent(key: str) -> None:
    store = MemcachedStore("127.0.0.1:1", timeout_s=1.0)
    with pytest.raises(AssertionError, match="keys"):
        store.fetch(["a", key])
    with pytest.raises(AssertionError, match="keys"):
        store.write([Write(Put.DELETE, key)])


@pytest.mark.parametrize("address", ["", "host", "host:", ":11211", "host:name"])
def test_address_must_be_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError):
        MemcachedStore(address, timeout_s=1.0)


# -- a real server --------------------------------------------------------------------------------


@pytest.fixture
def store(memcached: MemcachedServer) -> Iterator[MemcachedStore]:
    with contextlib.closing(MemcachedStore(memcached.address, timeout_s=0.3)) as store:
        yield store


def _freeze(server: MemcachedServer) -> None:
    """Stop the process and wait until it has stopped: a thread that is running when the signal is sent stops a little
    later.
    """
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as probe, contextlib.suppress(TimeoutError):
        while True:
            probe.sendall(b"mn\r\n")
            probe.recv(10)


@pytest.mark.service
def test_frozen_server_times_out_and_its_late_reply_is_not_used(
    memcached: MemcachedServer, store: MemcachedStore
) -> None:
    """The reply to the call that timed out arrives later, and must not be taken for the reply to the next call."""
    store.write([Write(Put.ADD, "a", b"1"), Write(Put.ADD, "b", b"2")])
    _freeze(memcached)
    with pytest.raises(StoreUnavailableError, match=r"no reply within 0\.3 s"):
        store.fetch(["a"])
    memcached.resume()
    assert {key: item.value for key, item in store.fetch(["b"]).items()} == {"b": b"2"}


@pytest.mark.service
def test_write_to_a_frozen_server_may_take_effect_later(memcached: MemcachedServer, store: MemcachedStore) -> None:
    """This is why an owner reads before it writes again, and why the head is written by CAS."""
    [first] = store.write([Write(Put.ADD, "a", b"1")])
    _freeze(memcached)
    with pytest.raises(StoreUnavailableError):
        store.write([Write(Put.CAS, "a", b"2", first.cas)])
    memcached.resume()
    deadline = time.monotonic() + PATIENCE_S
    while (item := store.fetch(["a"])["a"]).value != b"2":
        assert time.monotonic() < deadline
    assert store.write([Write(Put.CAS, "a", b"3", first.cas)]) == [WriteResult(WriteStatus.CONFLICT)]
    assert item.cas != first.cas


@pytest.mark.service
def test_frozen_server_does_not_block_a_call_larger_than_the_socket_buffers(
    memcached: MemcachedServer, store: MemcachedStore
) -> None:
    assert store.fetch(["a"]) == {}
    _freeze(memcached)
    with pytest.raises(StoreUnavailableError, match="no reply within"):
        store.write([Write(Put.ADD, f"k{number}", b"x" * 1_000_000) for number in range(40)])
    memcached.resume()


@pytest.mark.service
def test_interrupted_call_leaves_no_unread_reply(store: MemcachedStore) -> None:
    """Ctrl-C in the middle of a reply, caught further up: the next call must not read the rest of that reply."""
    store.write([Write(Put.ADD, f"k{number}", b"x" * 1_000_000) for number in range(10)])

    class Interrupting(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch([Interrupting("k0"), *(f"k{number}" for number in range(1, 10))])
    assert store.fetch(["none"]) == {}
    assert len(store.fetch(["k1"])["k1"].value) == 1_000_000


@pytest.mark.service
@pytest.mark.parametrize("item_max", ["512k", "1m", "4m"])
@pytest.mark.parametrize("key", ["k", "k" * 250])
def test_size_limit_is_exactly_the_servers(
    memcached_factory: Callable[..., MemcachedServer], item_max: str, key: str
) -> None:
    """The server must accept every value that passes our check: it rejects a value only after it has read all of it."""
    server = memcached_factory(item_max=item_max)
    with contextlib.closing(MemcachedStore(server.address, timeout_s=5.0)) as store:
        largest = store.max_value_bytes + 250 - len(key)
        [written] = store.write([Write(Put.ADD, key, b"x" * largest)])
        assert written.status is WriteStatus.STORED
        with pytest.raises(ItemTooLargeError) as caught:
            store.write([Write(Put.CAS, key, b"x" * (largest + 1), written.cas)])
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (largest + 1, largest)
        assert store.stats().too_large == 0
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"add z%s 1 0 %d\r\n%s\r\n" % (key[1:].encode(), largest + 1, b"x" * (largest + 1)))
        assert raw.recv(100) == b"SERVER_ERROR object too large for cache\r\n"
    server.close()


@contextlib.contextmanager
def interrupted(port: int, meanwhile: Callable[[], None]) -> Iterator[str]:
    """The address of a proxy to the server on which ``meanwhile`` happens between a write and the read of its id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def forward() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as server:
                while request := client.recv(65536):
                    write, cut, look = request.partition(b"mg ")
                    server.sendall(write)
                    client.sendall(server.recv(65536))
                    if cut:
                        meanwhile()
                        server.sendall(cut + look)
                        client.sendall(server.recv(65536))

        thread = threading.Thread(target=forward)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.service
@pytest.mark.parametrize("their_write", [Put.CAS, Put.DELETE])
def test_write_that_was_replaced_at_once_is_stored_without_an_id(
    memcached: MemcachedServer, store: MemcachedStore, their_write: Put
) -> None:
    """The id that can be read then belongs to another client's write.

    A CAS with it would overwrite a value that was never read.
    """

    def meanwhile() -> None:
        ours = store.fetch(["a"])["a"]
        [theirs] = store.write([Write(their_write, "a", b"theirs", ours.cas)])
        assert theirs.status is WriteStatus.STORED

    with (
        interrupted(memcached.port, meanwhile) as address,
        contextlib.closing(MemcachedStore(address, timeout_s=5.0)) as ours,
    ):
        assert ours.write([Write(Put.ADD, "a", b"ours")]) == [WriteResult(WriteStatus.STORED, 0)]
    assert [item.value for item in store.fetch(["a"]).values()] == ([b"theirs"] if their_write is Put.CAS else [])


@pytest.mark.service
def test_localhost_is_found_on_either_of_its_addresses(memcached: MemcachedServer) -> None:
    with contextlib.closing(MemcachedStore(f"localhost:{memcached.port}", timeout_s=5.0)) as store:
        assert store.fetch(["a"]) == {}


@pytest.mark.service
def test_server_without_compare_and_swap_is_a_config_error(
    memcached_factory: Callable[..., MemcachedServer],
) -> None:
    server = memcached_factory(extra=["-C"])
    store = MemcachedStore(server.address, timeout_s=5.0)
    with pytest.raises(ConfigError, match="without -C"):
        store.fetch(["a"])
    server.close()


@pytest.mark.service
@pytest.mark.parametrize("mode", ["maxconns_fast", "no_maxconns_fast"])
def test_a_server_that_is_out_of_connections_is_named_as_such(
    mode: str, memcached_factory: Callable[..., MemcachedServer]
) -> None:
    """Regression: the error was "does not answer: b'stats'", and the doctor's "does not answer:
    'rejected_connections'".
    """
    server = memcached_factory(extra=["-c", "40", "-o", mode])
    with contextlib.ExitStack() as held:

        def connect(timeout_s: float) -> MemcachedStore:
            store = held.enter_context(contextlib.closing(MemcachedStore(server.address, timeout_s=timeout_s)))
            store.fetch(["a"])
            return store

        def fill() -> None:
            for _ in range(60):
                connect(0.2)

        first = connect(5.0)
        with pytest.raises(StoreUnavailableError, match="no connection left") as caught:
            fill()
        assert "raise memcached's -c" in str(caught.value)
        assert first.stats().rejected_connections > 0
    server.close()


@pytest.mark.service
def test_stats_have_the_figures_that_doctor_needs(memcached_factory: Callable[..., MemcachedServer]) -> None:
    server = memcached_factory(memory_mb=32, item_max="2m", no_evict=True)
    with contextlib.closing(MemcachedStore(server.address, timeout_s=5.0)) as store:
        store.write([Write(Put.ADD, "a", b"1")])
        stats = store.stats()
    assert stats.version.startswith("1.")
    assert (stats.limit_bytes, stats.item_max_bytes) == (32 * 1024**2, 2 * 1024**2)
    assert stats.no_evict
    assert (stats.items, stats.evictions, stats.out_of_memory, stats.connections) == (1, 0, 0, 1)
    assert 0 < stats.used_bytes < 200
    server.close()


@pytest.mark.service
@pytest.mark.parametrize("flags", ["C1", "ME"])
def test_meta_set_on_a_full_server_removes_the_old_value(
    memcached_factory: Callable[..., MemcachedServer], flags: str
) -> None:
    """This is why the adapter does not use ``ms``: it removes the old value even in add mode and even if the CAS id is
    wrong. If memcached changed that, ``ms`` with the ``c`` flag would save the read of the id after each write.
    """
    server = memcached_factory(memory_mb=8, no_evict=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as raw:

        def ask(request: bytes) -> bytes:
            raw.sendall(request)
            return raw.recv(1_000)

        assert ask(b"ms first 3 c\r\nold\r\nms kept 3 c\r\nold\r\n") == b"HD c1\r\nHD c2\r\n"
        number, value = 0, b"x" * 50_000
        while ask(b"add filler%d 0 0 50000\r\n%s\r\n" % (number, value)) == b"STORED\r\n":
            number += 1
        reply = ask(b"ms kept 50000 %s\r\n%s\r\n" % (flags.encode(), value))
        assert reply == b"SERVER_ERROR out of memory storing object\r\n"
        kept = ask(b"mg kept v\r\n")
    server.close()
    if kept != b"EN\r\n":
        pytest.skip("this memcached keeps it")


def test_the_doctor_sees_that_a_full_server_takes_no_writes() -> None:
    """A server that was started with -M can be read as before."""
    full = MemoryStore(MemoryServer(max_bytes=1, no_evict=True))
    assert not write_probe(full, "cell1")
    empty = MemoryServer()
    assert write_probe(MemoryStore(empty), "cell1")
    assert MemoryStore(empty).fetch([keys.probe("cell1")]) == {}


def test_the_doctor_warns_of_a_server_that_has_just_started_only_if_the_cell_is_older() -> None:
    """Regression: the doctor of a new cell, whose memcached starts with it, warned of a restart."""
    new = [start_finding("store m", 14, changed_at, 1_000.0) for changed_at in (0, 985, 999)]
    assert {finding.level for finding in new} == {OK}
    assert {finding.advice for finding in new} == {""}
    assert new[0].says.startswith("it started 14 s ago with nothing in it, as in a new cell; ")
    restarted = start_finding("store m", 14, 400, 1_000.0)
    assert restarted.level == WARN
    assert restarted.says.endswith("and the cell is older: its control record was last changed 10 min ago")
    assert "look for its cause in memcached's log" in restarted.advice


def test_unused_and_unconnected_stores_hold_no_socket(recwarn: Any) -> None:
    """A store that was never used, or that could not connect, holds no socket."""
    store = MemcachedStore("127.0.0.1:1", timeout_s=1.0)
    with pytest.raises(StoreUnavailableError):
        store.fetch(["a"])
    del store
    assert not recwarn.list
