"""Redis, with a value for each node, a set of their names, and a stream of all changes with their bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Final

import hiredis  # noqa: F401 - redis-py uses it if it is installed, and is slower without a message otherwise
import redis

from bench.peers.interfaces import Opener, Row, Server, packed, unpacked

__all__ = ["Redis"]

NAMES: Final = "names"
STREAM: Final = "changes"
NODE: Final = "node:"
STREAM_ENTRIES_COUNT: Final = 50_000
"""Approximate length of the stream; a reader that falls behind by more must read all nodes again."""
READ_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 30.0


def _connect(url: str) -> redis.Redis:
    # RESP2, whose replies have the same shape in every version of redis-py; RESP3 was not faster.
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_read_size=READ_BYTES, protocol=2)


class _RedisReader:
    """A reader that holds all nodes and the id of the last entry of the stream that it has read."""

    def __init__(self, url: str) -> None:
        self._redis = _connect(url)
        self._rows: dict[str, Row] = {}
        self._seen: bytes = b"0-0"

    def cold(self) -> None:
        """Read the id of the last entry of the stream, then all names and values."""
        # The id is read first. So a change that comes before the values are read is read twice, but never missed.
        with self._redis.pipeline(transaction=False) as both:
            last, names = both.xrevrange(STREAM, count=1).smembers(NAMES).execute()
        texts = [name.decode() for name in names]
        values = self._redis.mget([NODE + text for text in texts]) if texts else []
        self._rows = {text: unpacked(text, value) for text, value in zip(texts, values, strict=True)}
        if last:
            self._seen = last[0][0]

    def refresh(self) -> None:
        """Read the entries of the stream after the last one read."""
        for _, entries in self._redis.xread({STREAM: self._seen}):
            for self._seen, fields in entries:
                name = fields[b"n"].decode()
                self._rows[name] = unpacked(name, fields[b"v"])

    def names(self) -> Iterable[str]:
        """Return the names of all nodes read."""
        return self._rows

    def node(self, name: str) -> Row:
        """Return a node as it was read last. Raises KeyError if there is no such node."""
        return self._rows[name]

    def close(self) -> None:
        self._redis.close()


class Redis:
    """The Redis peer, through redis-py with hiredis."""

    def __init__(self, server: Server) -> None:
        self.clients: Mapping[str, str] = {"redis-py": version("redis"), "hiredis": version("hiredis")}
        self.openers: Mapping[str, Opener] = {"redis xread": partial(_RedisReader, server.url)}
        self._redis = _connect(server.url)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the nodes in one transaction."""
        with self._redis.pipeline(transaction=True) as commands:
            commands.sadd(NAMES, *(row.name for row in rows))
            commands.mset({NODE + row.name: packed(row) for row in rows})
            for row in rows:
                commands.xadd(STREAM, {"n": row.name, "v": packed(row)}, maxlen=STREAM_ENTRIES_COUNT, approximate=True)
            commands.execute()

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
