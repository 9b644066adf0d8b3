"""Redis: a value for each node, a set of their names, and a stream that carries what changed, bodies included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Final

import hiredis  # noqa: F401 - redis-py takes it where it is there, and says nothing where it is not
import redis

from bench.peers.interfaces import Opener, Row, Server, packed, unpacked

__all__ = ["Redis"]

NAMES: Final = "names"
STREAM: Final = "changes"
NODE: Final = "node:"
STREAM_ENTRIES_COUNT: Final = 50_000
"""What the stream keeps, about: a reader that was away for longer starts anew."""
READ_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 30.0


def _connect(url: str) -> redis.Redis:
    # RESP2, whose replies have one shape in every redis-py; the newer protocol was no faster.
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_read_size=READ_BYTES, protocol=2)


class _RedisReader:
    """Holds all nodes and the id of the last entry seen."""

    def __init__(self, url: str) -> None:
        self._redis = _connect(url)
        self._rows: dict[str, Row] = {}
        self._seen: bytes = b"0-0"

    def cold(self) -> None:
        """The stream's end, all names, all values."""
        # The stream's end first: what comes between it and the values is read twice, not never.
        with self._redis.pipeline(transaction=False) as both:
            last, names = both.xrevrange(STREAM, count=1).smembers(NAMES).execute()
        texts = [name.decode() for name in names]
        values = self._redis.mget([NODE + text for text in texts]) if texts else []
        self._rows = {text: unpacked(text, value) for text, value in zip(texts, values, strict=True)}
        if last:
            self._seen = last[0][0]

    def refresh(self) -> None:
        """What the stream has after the last entry seen."""
        for _, entries in self._redis.xread({STREAM: self._seen}):
            for self._seen, fields in entries:
                name = fields[b"n"].decode()
                self._rows[name] = unpacked(name, fields[b"v"])

    def names(self) -> Iterable[str]:
        """The nodes that are held."""
        return self._rows

    def node(self, name: str) -> Row:
        """A node as it was read last; raises KeyError."""
        return self._rows[name]

    def close(self) -> None:
        self._redis.close()


class Redis:
    """Redis through redis-py, which parses by hiredis."""

    def __init__(self, server: Server) -> None:
        self.clients: Mapping[str, str] = {"redis-py": version("redis"), "hiredis": version("hiredis")}
        self.openers: Mapping[str, Opener] = {"redis xread": partial(_RedisReader, server.url)}
        self._redis = _connect(server.url)

    def write(self, rows: Sequence[Row]) -> None:
        """One transaction."""
        with self._redis.pipeline(transaction=True) as commands:
            commands.sadd(NAMES, *(row.name for row in rows))
            commands.mset({NODE + row.name: packed(row) for row in rows})
            for row in rows:
                commands.xadd(STREAM, {"n": row.name, "v": packed(row)}, maxlen=STREAM_ENTRIES_COUNT, approximate=True)
            commands.execute()

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()
