"""etcd: a key for each node. What changed is read by revision, in one of two ways: a range of the keys whose last
change is newer, for which etcd looks at all keys, or a watch, which follows its log.

The messages and stubs are those that aetcd ships, on gRPC's blocking channel: fewer steps than its asyncio client.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import grpc
from aetcd import rpc

from bench.peers.interfaces import Opener, Row, Server, packed, unpacked

__all__ = ["Etcd"]

PREFIX: Final = b"nodes/"
PREFIX_END: Final = b"nodes0"
TXN_OPERATIONS_COUNT: Final = 100
"""etcd takes 128 in one transaction, and 1.5 MiB."""
TIMEOUT_S: Final = 30.0
UNLIMITED: Final = [("grpc.max_receive_message_length", -1)]
"""gRPC's own limit of 4 MiB would cut a read of all nodes into pages."""


class _Range:
    """Holds all nodes and the revision they are as of. Reads what is newer by a range."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=UNLIMITED)
        self._kv = rpc.KVStub(self._channel)
        self._rows: dict[str, Row] = {}
        self._revision = 0

    def cold(self) -> None:
        self._read(rpc.RangeRequest(key=PREFIX, range_end=PREFIX_END))

    def refresh(self) -> None:
        self._read(rpc.RangeRequest(key=PREFIX, range_end=PREFIX_END, min_mod_revision=self._revision + 1))

    def _read(self, request: Any) -> None:
        reply = self._kv.Range(request, TIMEOUT_S)
        self._take(reply.kvs)
        self._revision = reply.header.revision

    def _take(self, found: Iterable[Any]) -> None:
        for one in found:
            name = one.key[len(PREFIX) :].decode()
            self._rows[name] = unpacked(name, one.value)

    def names(self) -> Iterable[str]:
        """The nodes that are held."""
        return self._rows

    def node(self, name: str) -> Row:
        """A node as it was read last; raises KeyError."""
        return self._rows[name]

    def close(self) -> None:
        self._channel.close()


class _Watch(_Range):
    """The same, but what is newer comes by a watch that stays open; a refresh asks for the revision to wait for."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._events: Iterator[Any] = iter(())

    def cold(self) -> None:
        super().cold()
        create = rpc.WatchCreateRequest(key=PREFIX, range_end=PREFIX_END, start_revision=self._revision + 1)
        self._asked.put(rpc.WatchRequest(create_request=create))
        self._events = rpc.WatchStub(self._channel).Watch(iter(self._asked.get, None))

    def refresh(self) -> None:
        # Serializable would be answered by the member's own state, which may lag: this is a read as good as a range's.
        nothing = rpc.RangeRequest(key=PREFIX, count_only=True)
        revision = self._kv.Range(nothing, TIMEOUT_S).header.revision
        while self._revision < revision:
            reply = next(self._events)
            self._take(event.kv for event in reply.events)
            if reply.events:
                self._revision = reply.events[-1].kv.mod_revision

    def close(self) -> None:
        self._asked.put(None)
        super().close()


class Etcd:
    """etcd over gRPC."""

    def __init__(self, server: Server) -> None:
        self.clients: Mapping[str, str] = {"aetcd": version("aetcd"), "grpcio": version("grpcio")}
        self.openers: Mapping[str, Opener] = {
            "etcd range": partial(_Range, server.address),
            "etcd watch": partial(_Watch, server.address),
        }
        self._channel = grpc.insecure_channel(server.address)
        self._kv = rpc.KVStub(self._channel)

    def write(self, rows: Sequence[Row]) -> None:
        """Transactions of as many as etcd takes."""
        for at in range(0, len(rows), TXN_OPERATIONS_COUNT):
            puts = [
                rpc.RequestOp(request_put=rpc.PutRequest(key=PREFIX + row.name.encode(), value=packed(row)))
                for row in rows[at : at + TXN_OPERATIONS_COUNT]
            ]
            self._kv.Txn(rpc.TxnRequest(success=puts), TIMEOUT_S)

    def close(self) -> None:
        """Give the connection back."""
        self._channel.close()
