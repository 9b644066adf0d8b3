"""Values that a faulty or hostile program left in a store: the inside is wrong, and the checksum is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from nodestate.ports import Item, Put, Write
from nodestate.store.wire import ENVELOPE_BYTES, seal
from nodestate.testing import MemoryServer


def content(raw: bytes) -> Any:
    """The msgpack value inside a stored value."""
    return msgpack.unpackb(raw[ENVELOPE_BYTES:], strict_map_key=False)


def sealed(value: Any) -> bytes:
    """A stored value with a right checksum."""
    return seal(msgpack.packb(value))


def keys_with(server: MemoryServer, part: str) -> list[str]:
    """The keys that contain this text, sorted."""
    return [key for key in server.keys() if part in key]  # noqa: SIM118 - a server is not a dict


def plant(server: MemoryServer, part: str, change: Callable[[Any], Any]) -> str:
    """Replace the content of the first item whose key contains ``part``. Its time to live stays. Returns the key."""
    [key, *_] = keys_with(server, part)
    replace(server, key, sealed(change(content(item_at(server, key).value))))
    return key


def item_at(server: MemoryServer, key: str) -> Item:
    """The item at a key."""
    return server.fetch([key])[key]


def replace(server: MemoryServer, key: str, value: bytes, ttl_s: int | None = None) -> None:
    """Write a value at a key whatever it held, with a time to live: None for the one that is left."""
    before = server.fetch([key]).get(key)
    left_s = (before.ttl_s if before is not None else None) if ttl_s is None else ttl_s
    server.evict(key)
    server.write([Write(Put.ADD, key, value, ttl_s=left_s or 0)])


def with_field(*path: int, value: Any) -> Callable[[Any], Any]:
    """A change of one field of nested arrays: ``with_field(8, 5, 2, value=2**31)``."""

    def change(inside: Any) -> Any:
        if not path:
            return value
        changed = list(inside)
        changed[path[0]] = with_field(*path[1:], value=value)(changed[path[0]])
        return changed

    return change
