"""Counts the bytes that a consumer writes to memcached or a database, by kind of key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from nodestate.ports import Item, Key, NodeRow, Put, Store, Write, WriteResult, WriteStatus
from nodestate.store.wire import pack_record

KINDS: Final = {
    "node": "items",
    "log": "segments",
    "head": "heads",
    "epoch": "heads",
    "life": "signs of life",
    "ckpt": "checkpoints",
    "index": "indexes",
}
"""The kind of a key in figures, by the word for it in ``nodestate.store.keys``. Rows are written with the key of a
head."""
STAMPS_BYTES: Final = 4 * 8 + 4 + 8 + 1
"""Bytes of a row beside its texts and its record: epoch, incarnation, generation, offset; slot; time; the flag
``gone``."""


class CountingStore:
    """A ``ports.Store`` around another that adds up the bytes of keys and values written, by kind of key."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        # Bytes of keys and values written, by kind.
        self.written_bytes: Counter[str] = Counter()
        # Keys deleted that existed, by kind.
        self.deleted: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """The name of the inner store."""
        return self._inner.name

    @property
    def max_value_bytes(self) -> int:
        """The limit of the inner store."""
        return self._inner.max_value_bytes

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        return self._inner.fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``. Refused writes count as well, because their bytes were sent."""
        written = self._inner.write(writes)
        for write, outcome in zip(writes, written, strict=True):
            kind = "other" if write.put is Put.DELETE_ROWS else KINDS.get(write.key.split(":", 5)[4], "other")
            if write.put not in (Put.DELETE, Put.DELETE_ROWS):
                self.written_bytes[kind] += len(write.key) + len(write.value)
                if write.rows:
                    self.written_bytes["rows"] += sum(map(_row_bytes, write.rows))
            elif outcome.status is WriteStatus.STORED:
                self.deleted[kind] += 1
        return written

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._inner.server_time_at(moment)

    def close(self) -> None:
        """See ``ports.Store``."""
        self._inner.close()

    def clear(self) -> None:
        """Set all counts to zero."""
        self.written_bytes.clear()
        self.deleted.clear()


def _row_bytes(row: NodeRow) -> int:
    record = row.record
    return len(row.prefix) + len(record.name) + len(record.status) + len(pack_record(record)) + STAMPS_BYTES
