"""What memcached holds of a cell, looked at from outside: keys as the head names them, and ways to lose them."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Final, Self

import xxhash

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.errors import CorruptItemError
from nodestate.journal.format import SECTION as JOURNAL_SECTION
from nodestate.journal.format import checkpoint_keys
from nodestate.ports import Put, Write, WriteStatus
from nodestate.snapshot.format import SECTION as SNAPSHOT_SECTION
from nodestate.snapshot.format import index_keys
from nodestate.store import keys
from nodestate.store.head import EPOCH, HEAD, Head, term_of
from nodestate.store.memcached import MemcachedStore
from nodestate.store.wire import ENVELOPE_BYTES

TIMEOUT_S: Final = 5.0
FILL_BYTES: Final = (60, 120, 250, 500, 900, 1_800, 4_000, 8_000, 20_000, 60_000, 120_000, 250_000, 500_000)
"""Sizes of values that together leave no slab class with room."""
FILL_AT_ONCE_BYTES: Final = 32_000

PATIENCE_S: Final = 10.0


class KeySpace:
    """A cell's keys on one server."""

    def __init__(self, config: Config, address: str) -> None:
        self._config = config
        self._store = MemcachedStore(address, timeout_s=TIMEOUT_S)
        self._address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def head(self, design: str, partition: int) -> Head | None:
        """The head that counts, or None where it is not to be had."""
        prefix = self._prefix(design, partition)
        try:
            pointer = self._get(keys.epoch(prefix))
            item = self._get(keys.head(prefix, EPOCH.unpack(pointer))) if pointer else None
            return HEAD.unpack(item) if item else None
        except CorruptItemError:
            return None

    def key(self, design: str, partition: int, kind: str, node: str = "") -> str:
        """The key of this kind that readers need now: epoch, head, life; segment (the oldest since the checkpoint) and
        checkpoint of the journal; node and index of the snapshot. Raises AssertionError where there is none now.
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
            parts = index_keys(prefix, head.epoch, SNAPSHOT_SECTION.decode(head.section).index)
            assert parts, "the index is empty"
            return parts[0]
        section = JOURNAL_SECTION.decode(head.section)
        if kind == "checkpoint":
            parts = checkpoint_keys(prefix, head.epoch, section.checkpoint)
            assert parts, "the checkpoint is empty"
            return parts[0]
        assert kind == "segment", kind
        offset = section.checkpoint.offset
        assert offset < head.next, "nothing was committed since the checkpoint"
        return keys.segment(prefix, head.epoch, term_of(section.terms, offset), offset)

    def whole(self, design: str, partition: int, kind: str, node: str = "") -> bool:
        """True if what stands at this key is there and its checksum fits."""
        if self.head(design, partition) is None:
            return False
        try:
            value = self._get(self.key(design, partition, kind, node))
        except AssertionError:
            return False
        return value is not None and value[2:ENVELOPE_BYTES] == xxhash.xxh3_64_digest(value[ENVELOPE_BYTES:])

    def delete(self, key: str) -> None:
        """Lose one item; it must be there, or come soon: an epoch's signs of life are written with its first renewal."""
        deadline = time.monotonic() + PATIENCE_S
        while self._store.write([Write(Put.DELETE, key)])[0].status is not WriteStatus.STORED:
            assert time.monotonic() < deadline, f"{key} was not there"
            time.sleep(0.05)

    def corrupt(self, key: str) -> None:
        """Turn one bit of an item."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            item = self._store.fetch([key]).get(key)
            if item is None:
                assert time.monotonic() < deadline, f"{key} was not there"
                time.sleep(0.05)
                continue
            value = bytearray(item.value)
            value[len(value) // 2] ^= 0x10
            [written] = self._store.write([Write(Put.CAS, key, bytes(value), item.cas, item.ttl_s or 0)])
            if written.status is WriteStatus.STORED:
                return

    def flush_all(self) -> None:
        """Lose everything."""
        self._store.flush_all()

    def evictions(self) -> int:
        """What a doctor would see."""
        return self._store.stats().evictions

    def out_of_memory(self) -> int:
        """Writes that found no memory."""
        return self._store.stats().out_of_memory

    def fill(self) -> list[str]:
        """Take all memory that is left, for values of every size; returns the keys that took it."""
        host, _, port = self._address.rpartition(":")
        taken: list[str] = []
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection, connection.makefile("rb") as replies:
            for size in sorted(FILL_BYTES, reverse=True):
                room = True
                while room:
                    keys_sent = [f"filler:{size}:{len(taken) + n}" for n in range(max(1, FILL_AT_ONCE_BYTES // size))]
                    request = [f"set {key} 0 0 {size}\r\n".encode() + b"x" * size + b"\r\n" for key in keys_sent]
                    connection.sendall(b"".join(request))
                    stored = [key for key in keys_sent if replies.readline() == b"STORED\r\n"]
                    taken += stored
                    room = len(stored) == len(keys_sent)
        return taken

    def free(self, taken: Sequence[str]) -> None:
        """Give it back."""
        self._store.write([Write(Put.DELETE, key) for key in taken])

    def _prefix(self, design: str, partition: int) -> str:
        return keys.prefix(self._config.cell, self._config.partitions, partition, DESIGNS[design].letter)

    def _get(self, key: str) -> bytes | None:
        item = self._store.fetch([key]).get(key)
        return item.value if item else None
