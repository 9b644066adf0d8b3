"""The keys of a cell in a memcached, seen from outside: find them as readers do, delete them, damage them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, Self

import xxhash

from harness.waiting import wait_until
from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.errors import CorruptItemError
from nodestate.journal.format import JOURNAL_SECTION, checkpoint_keys
from nodestate.ports import Put, Write, WriteStatus
from nodestate.snapshot.format import SNAPSHOT_SECTION, index_keys
from nodestate.store import keys
from nodestate.store.head import EPOCH, HEAD, Head, term_of
from nodestate.store.memcached import MemcachedStore
from nodestate.store.wire import ENVELOPE_BYTES

TIMEOUT_S: Final = 5.0
FILL_BYTES: Final = (60, 120, 250, 500, 900, 1_800, 4_000, 8_000, 20_000, 60_000, 120_000, 250_000, 500_000)
"""Sizes of values, one for each range of memcached's slab classes: if no such value fits, no class has room."""
FILL_AT_ONCE_BYTES: Final = 32_000
"""Bytes of values that are sent before their replies are read."""


class KeySpace:
    """The keys of one cell on one memcached server."""

    def __init__(self, config: Config, address: str) -> None:
        self._config = config
        self._store = MemcachedStore(address, timeout_s=TIMEOUT_S)
        self._address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def head(self, design: str, partition: int) -> Head | None:
        """Return the current head of a partition, or None if there is none or it is damaged."""
        prefix = self._prefix(design, partition)
        try:
            pointer = self._get(keys.epoch(prefix))
            item = self._get(keys.head(prefix, EPOCH.unpack(pointer))) if pointer else None
            return HEAD.unpack(item) if item else None
        except CorruptItemError:
            return None

    def key(self, design: str, partition: int, kind: str, node: str = "") -> str:
        """Return the key of this kind that readers need now. Raises AssertionError if there is none now.

        Kinds: epoch, head and life of both designs; segment (the oldest one since the checkpoint) and checkpoint (its
        first part) of the journal; node (of this ``node``) and index (its first part) of the snapshot.
        """
        prefix, head = self._prefix(design, partition), self.head(design, partition)
        assert head is not None, f"partition {partition} of {design} has no head"
        if kind == "epoch":
            return keys.epoch(prefix)
        if kind == "head":
            return keys.head(prefix, head.epoch)
        if kind == "life":
            return keys.life(prefix, head.epoch)
        if kind == "node":
            return keys.node(prefix, node)
        if kind == "index":
            parts = index_keys(prefix, head.epoch, SNAPSHOT_SECTION.of(head).index)
            assert parts, "the index is empty"
            return parts[0]
        section = JOURNAL_SECTION.of(head)
        if kind == "checkpoint":
            parts = list(checkpoint_keys(prefix, head.epoch, section.checkpoint))
            assert parts, "the checkpoint is empty"
            return parts[0]
        assert kind == "segment", kind
        offset = section.checkpoint.offset
        assert offset < head.next, "nothing was committed since the checkpoint"
        return keys.segment(prefix, head.epoch, term_of(section.terms, offset), offset)

    def intact(self, design: str, partition: int, kind: str, node: str = "") -> bool:
        """True if the item of this kind that readers need now is there and its checksum is right."""
        if self.head(design, partition) is None:
            return False
        try:
            value = self._get(self.key(design, partition, kind, node))
        except AssertionError:
            return False
        return value is not None and value[2:ENVELOPE_BYTES] == xxhash.xxh3_64_digest(value[ENVELOPE_BYTES:])

    def delete(self, key: str) -> None:
        """Delete one item as soon as it is there: an epoch's signs of life are written with its first renewal."""
        wait_until(
            lambda: self._store.write([Write(Put.DELETE, key)])[0].status is WriteStatus.STORED, f"there is no {key}"
        )

    def corrupt(self, key: str) -> None:
        """Invert one bit of an item as soon as it is there."""

        def inverted() -> bool:
            item = self._store.fetch([key]).get(key)
            if item is None:
                return False
            value = bytearray(item.value)
            value[len(value) // 2] ^= 0x10
            [written] = self._store.write([Write(Put.CAS, key, bytes(value), item.cas, item.ttl_s or 0)])
            return written.status is WriteStatus.STORED

        wait_until(inverted, f"there is no {key}")

    def flush_all(self) -> None:
        """Delete everything on the server."""
        self._store.flush_all()

    def evictions(self) -> int:
        """Return how many items memcached has evicted since its start."""
        return self._store.stats().evictions

    def out_of_memory(self) -> int:
        """Return how many writes memcached has refused for lack of memory since its start."""
        return self._store.stats().out_of_memory

    def fill(self) -> list[str]:
        """Fill the memory that is left with values of every size; returns their keys."""
        host, _, port = self._address.rpartition(":")
        filled: list[str] = []
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection, connection.makefile("rb") as replies:
            for size in sorted(FILL_BYTES, reverse=True):
                room = True
                while room:
                    keys_sent = [f"filler:{size}:{len(filled) + n}" for n in range(max(1, FILL_AT_ONCE_BYTES // size))]
                    request = [f"set {key} 0 0 {size}\r\n".encode() + b"x" * size + b"\r\n" for key in keys_sent]
                    connection.sendall(b"".join(request))
                    stored = [key for key in keys_sent if replies.readline() == b"STORED\r\n"]
                    filled += stored
                    room = len(stored) == len(keys_sent)
        return filled

    def free(self, filled: Sequence[str]) -> None:
        """Delete what ``fill`` stored."""
        self._store.write([Write(Put.DELETE, key) for key in filled])

    def _prefix(self, design: str, partition: int) -> str:
        return keys.prefix(self._config.cell, self._config.partitions, partition, DESIGNS[design].letter)

    def _get(self, key: str) -> bytes | None:
        item = self._store.fetch([key]).get(key)
        return item.value if item else None
