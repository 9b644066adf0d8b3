"""The store: key-value items with compare-and-swap, on memcached or in a database."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, cast, runtime_checkable

import msgspec

from nodestate.ports.database import NodeRow, RowQuery

MAX_TTL_S: Final = 30 * 24 * 3600
"""Longest time to live in seconds; memcached reads a larger number as a date."""

Key = str | RowQuery
"""The name of an item or, for a database only, a query for rows."""


def item_keys(keys: Sequence[Key]) -> list[str]:
    """The same keys, for a store that has no rows. Raises ``TypeError`` if one of them is a row query."""
    if set(map(type, keys)) != {str}:
        query = next((key for key in keys if not isinstance(key, str)), None)
        if query is not None:
            raise TypeError(f"only a database answers {query}")
    return cast("list[str]", list(keys))


class Item(msgspec.Struct, frozen=True, gc=False):
    """A stored value."""

    value: bytes
    cas: int
    """Compare-and-swap id; changes with each write of the item."""
    ttl_s: int | None
    """Whole seconds until the item expires; None if it never does."""
    outdated: bool = False
    """True if this process would store the same value in another form: signed, unsigned, or signed with another key."""


class Put(enum.Enum):
    """How a write treats an existing item. There is no plain set: memcached deletes the old value if a set fails."""

    ADD = "add"
    CAS = "cas"
    DELETE = "delete"
    DELETE_ROWS = "delete rows"
    """Delete the rows that the write's ``query`` selects. Databases only."""


class StoreRole(enum.Enum):
    """The server or servers that a design is stored on, by the setting that names them."""

    STORE = "store"
    REPLICA = "replica"
    """The servers of ``store`` again: each partition is on the server after the one of ``STORE``."""
    STORE_B = "store_b"
    SQL = "sql"


class Write(NamedTuple):
    """One write."""

    put: Put
    key: str = ""
    value: bytes = b""
    cas: int = 0
    """For ``Put.CAS`` only: the id that the item must still have."""
    ttl_s: int = 0
    """Seconds to live, counted from ``as_of``, however long the write takes; 0: for ever; at most MAX_TTL_S."""
    rows: tuple[NodeRow, ...] = ()
    """Rows to store in the same transaction if this write is stored, and not at all otherwise. Databases only."""
    query: RowQuery | None = None
    """For ``Put.DELETE_ROWS`` only: the rows to delete; ``key`` is then empty."""
    as_of: float | None = None
    """The moment from which ``ttl_s`` counts, in monotonic seconds of the caller; None: the call.

    Give the moment at which the statements in ``value`` were true, because readers derive their age from the time that
    is left to live. A process may freeze between that moment and the call.
    """


class WriteStatus(enum.Enum):
    """The outcome of a write. All four are expected; failures are exceptions or ``FULL``."""

    STORED = "stored"
    CONFLICT = "conflict"
    """For ADD: the item exists. For CAS: the item has changed."""
    MISSING = "missing"
    """For CAS and DELETE: the item does not exist."""
    FULL = "full"
    """The server had no memory for the item; the old value is unchanged."""


class WriteResult(NamedTuple):
    """The outcome of a write."""

    status: WriteStatus
    cas: int = 0
    """The new compare-and-swap id of a stored item. 0, an id that no item ever has, if the item was not stored or
    another client replaced it before its id could be read.
    """


class Store(Protocol):
    """One memcached server or database, or its double. Every call is one pipelined round trip, whatever its length.

    Methods raise ``StoreUnavailableError`` if the server does not answer (the outcome of the writes of that call is
    then unknown), and ``ItemTooLargeError`` before anything is written. Not safe for several threads.
    """

    @property
    def name(self) -> str:
        """host:port, for messages."""

    @property
    def max_value_bytes(self) -> int:
        """The largest value that an item of this server can hold."""

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """Return the items that exist; keys without an item are absent from the answer.

        If ``values_only``, the items may lack their CAS ids (then 0) and their times to live (then None). Memcached
        answers faster without them.
        """

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """Carry out the writes in order. Returns one result for each."""

    def server_time_at(self, moment: float) -> float | None:
        """The server's clock at a moment of this process (monotonic seconds), in seconds; at most one second too low.

        Returns None before the first call of ``fetch``, and for a database, whose clock an operator may set. The server
        is not asked.
        """

    def close(self) -> None:
        """Close the connection. The next call reconnects."""


@runtime_checkable
class ClaimStore(Store, Protocol):
    """A store with a clock that all schedulers share.

    The schedulers' own clocks may differ; the store's clock does not jump while the store runs.
    """

    def server_time(self) -> float:
        """Seconds by the server's clock, at most one second behind it.

        The values that different clients get are comparable until the server restarts.
        """
