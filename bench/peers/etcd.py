"""etcd, with a key for each node.

Changes are read by revision in one of two ways: by a range of the keys whose last change is newer, for which etcd
visits all keys, or by a watch, which follows the log. The messages and stubs of aetcd are used with gRPC's blocking
channel, which takes fewer steps than the asyncio client of aetcd.
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
"""Operations of one transaction; etcd accepts 128 operations and 1.5 MiB."""
TIMEOUT_S: Final = 30.0
UNLIMITED: Final = [("grpc.max_receive_message_length", -1)]
"""gRPC's default limit of 4 MiB would be too small for a read of all nodes."""


class _Range:
    """A reader that holds all nodes and their revision, and reads newer keys by a range."""

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
        """Return the names of all nodes read."""
        return self._rows

    def node(self, name: str) -> Row:
        """Return a node as it was read last. Raises KeyError if there is no such node."""
        return self._rows[name]

    def close(self) -> None:
        self._channel.close()


class _Watch(_Range):
    """A reader that receives newer keys by an open watch; each refresh asks for the revision to wait for."""

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
        # A linearizable read, as the range is: a serializable read could return an older revision.
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
    """The etcd peer, over gRPC."""

    def __init__(self, server: Server) -> None:
        self.clients: Mapping[str, str] = {"aetcd": version("aetcd"), "grpcio": version("grpcio")}
        self.openers: Mapping[str, Opener] = {
            "etcd range": partial(_Range, server.address),
            "etcd watch": partial(_Watch, server.address),
        }
        self._channel = grpc.insecure_channel(server.address)
        self._kv = rpc.KVStub(self._channel)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the nodes in transactions of ``TXN_OPERATIONS_COUNT`` operations."""
        for at in range(0, len(rows), TXN_OPERATIONS_COUNT):
            puts = [
                rpc.RequestOp(request_put=rpc.PutRequest(key=PREFIX + row.name.encode(), value=packed(row)))
                for row in rows[at : at + TXN_OPERATIONS_COUNT]
            ]
            self._kv.Txn(rpc.TxnRequest(success=puts), TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
