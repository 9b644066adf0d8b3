"""Ages of heads, and ages of the nodes' last signs of life.

By the age of a head, readers and other owners see whether the partition's owner is alive. Clocks of processes differ,
so ages are computed from the time to live that the store reports for an item. A program that can write into the store
may store an earlier value again with any time to live. So a value in memcached also contains its time of writing, by
the server's clock, and counts as at least that old (``latest_write``).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from nodestate.config import Config
from nodestate.ports import Item, Store
from nodestate.store.head import NEVER_HEARD, Head, Term, WrittenMs
from nodestate.store.server_clock import MARGIN_S, TICK_S
from nodestate.store.wire import Codec

FRESH_RENEWALS_COUNT: Final = 5
"""An owner whose last write of the head is at most this many renewals old counts as alive."""
AGE_ROUNDING_S: Final = 2.0
"""The age of a head is overestimated by up to this many seconds.

The store counts the time to live in whole seconds. So the true age lies within a second on either side of the lease
minus the time left. A head must never look younger than it is, so one second is added (``age_ms_of``). The result may
be two seconds too high.
"""


WRITE_TIME_TOLERANCE_S: Final = TICK_S + MARGIN_S
"""Error in seconds by which a time of writing may look too early to another process.

Each process knows the server's clock to within ``TICK_S``, and a timer of the server that is ``MARGIN_S`` late is
normal. Within this tolerance a time of writing makes nothing older: the time to live, or the reader's own knowledge, is
more exact. So a value that another program stored again can look younger than it is by at most this time plus
``TICK_S``.
"""

MAX_WRITE_TIME_AHEAD_S: Final = 10.0
"""A time of writing that lies further ahead, in seconds, tells nothing: the server's clock was set back since.

A smaller difference may come from the clients' estimates of that clock, if the server's timer was late.
"""


class LivenessRecord(msgspec.Struct, frozen=True, array_like=True):
    """The signs of life of the nodes of a partition, as stored."""

    term: Term
    """The term that wrote them."""
    ages_ms: bytes
    """By slot, milliseconds between the node's last sign of life and this write, as little-endian uint32."""
    written_ms: WrittenMs = 0
    """When the ages were true, as in ``Head.written_ms``."""


def _require_whole_ages(record: LivenessRecord) -> None:
    if len(record.ages_ms) % 4:
        raise ValueError(f"{len(record.ages_ms)} bytes of ages, which have 4 bytes each")


LIVENESS: Final = Codec(LivenessRecord, _require_whole_ages, optional=("written_ms",))


def fresh_s(config: Config) -> float:
    """Return the greatest age, in seconds, that the head of a living owner can appear to have."""
    return FRESH_RENEWALS_COUNT * config.renew_s + AGE_ROUNDING_S


def written_ms(store: Store, moment: float) -> int:
    """Return the time of writing that a record must contain: the server's time at which its statements were true.

    Args:
        store: the store into which the record will be written.
        moment: when the statements were true, in monotonic seconds of this process.

    Returns:
        Milliseconds by the server's clock, at least 1; 0 if that clock is unknown.
    """
    server_time = store.server_time_at(moment)
    return max(1, math.floor(server_time * 1000)) if server_time is not None else 0


def latest_write(written_ms: int, store: Store, now: float) -> float:
    """Return the latest moment at which a record can have been written, by the time of writing that it contains.

    Args:
        written_ms: the time of writing, in milliseconds by the server's clock; 0 if it is unknown.
        store: the store that the record was just fetched from.
        now: the present, in monotonic seconds of this process, like the result.

    Returns:
        The moment. Infinity if the time of writing is unknown. Minus infinity if it lies too far in the future: the
        record may then have any age.
    """
    server_now = store.server_time_at(now) if written_ms else None
    if server_now is None:
        return math.inf
    age_s = server_now - written_ms / 1000
    return now - age_s + WRITE_TIME_TOLERANCE_S if age_s >= -MAX_WRITE_TIME_AHEAD_S else -math.inf


def age_ms_of(head: Head, item: Item, store: Store, now: float) -> int:
    """Return an upper bound of the time since a head was written, in milliseconds; ``NEVER_HEARD`` if it is unknown.

    ``now``: the present, in monotonic seconds, at which ``store`` has just returned the head.
    """
    return _age_ms(item, head.lease_s, head.written_ms, store, now)


def ages_now(key: str, record: Item | None, lease_s: int, store: Store, now: float) -> bytes:
    """Return the present ages of the nodes' signs of life: the ages in a stored ``LivenessRecord`` plus its own age.

    Args:
        key: the record's key in the store.
        record: the item at this key; None if there is none.
        lease_s: the time to live with which the record was written, in seconds.
        store: the store that the record was just fetched from.
        now: the present, in monotonic seconds of this process.

    Returns:
        Ages in the form of ``LivenessRecord.ages_ms``, never too low (``AGE_ROUNDING_S``). Empty if the record is
        missing or damaged, or if its own age is unknown.
    """
    life = LIVENESS.find(key, record)
    if life is None or record is None:
        return b""
    age_ms = _age_ms(record, lease_s, life.written_ms, store, now)
    return add_to_ages(life.ages_ms, age_ms) if age_ms < NEVER_HEARD else b""


def _age_ms(item: Item, lease_s: int, written_ms: int, store: Store, now: float) -> int:
    if item.ttl_s is None or item.ttl_s > lease_s:
        return NEVER_HEARD
    age_s = max(lease_s - item.ttl_s + 1, now - latest_write(written_ms, store, now))
    return min(math.ceil(age_s * 1000), NEVER_HEARD) if age_s < math.inf else NEVER_HEARD


def add_to_ages(ages_ms: bytes, elapsed_ms: int) -> bytes:
    """Return the ages after ``elapsed_ms`` more milliseconds. An age of ``NEVER_HEARD`` stays."""
    ages = np.frombuffer(ages_ms, "<u4").astype(np.uint64)
    grown = np.where(ages == NEVER_HEARD, ages, np.minimum(ages + elapsed_ms, NEVER_HEARD - 1))
    return grown.astype("<u4").tobytes()
