"""Ages: of a head, by which readers and other owners see whether its owner lives, and of the nodes' last signs of life.

Clocks of processes differ, so ages are computed from the time to live that the store reports for an item.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from nodestate.config import Config
from nodestate.ports import Item
from nodestate.store.head import NEVER_HEARD, Head, Term
from nodestate.store.wire import Codec

FRESH_RENEWALS_COUNT: Final = 5
"""An owner whose last write of the head is at most this many renewals old counts as alive."""
AGE_ROUNDING_S: Final = 2.0
"""The age of a head is overestimated by up to this many seconds.

The store counts the time to live in whole seconds, so the true age lies within a second on either side of lease minus
time left. Ages must never look younger than they are, so one second is added (``age_ms_of``), and the sum may be two
too high.
"""


class LivenessRecord(msgspec.Struct, frozen=True, array_like=True):
    """The signs of life of the nodes of a partition, as stored."""

    term: Term
    """The term that wrote them."""
    ages_ms: bytes
    """By slot, milliseconds between the node's last sign of life and this write, as little-endian uint32."""


def _require_whole_ages(record: LivenessRecord) -> None:
    if len(record.ages_ms) % 4:
        raise ValueError(f"{len(record.ages_ms)} bytes of ages, which have 4 bytes each")


LIVENESS: Final = Codec(LivenessRecord, _require_whole_ages)


def fresh_s(config: Config) -> float:
    """The greatest age, in seconds, that the head of a living owner can appear to have."""
    return FRESH_RENEWALS_COUNT * config.renew_s + AGE_ROUNDING_S


def age_ms_of(head: Head, item: Item) -> int:
    """An upper bound of the time since a head was written, in milliseconds. ``NEVER_HEARD`` if it is unknown."""
    if item.ttl_s is None or item.ttl_s > head.lease_s:
        return NEVER_HEARD
    return (head.lease_s - item.ttl_s + 1) * 1000


def ages_now(key: str, record: Item | None, lease_s: int) -> bytes:
    """The ages in a stored ``LivenessRecord``, plus the time since it was written (rounded up to a second).

    Returns no bytes if the record is missing or damaged, or if it was written with another lease, which makes its age
    unknown. ``key`` is the record's key.
    """
    if record is None or record.ttl_s is None or record.ttl_s > lease_s:
        return b""
    life = LIVENESS.find(key, record)
    return add_to_ages(life.ages_ms, (lease_s - record.ttl_s + 1) * 1000) if life is not None else b""


def add_to_ages(ages_ms: bytes, elapsed_ms: int) -> bytes:
    """The same ages after ``elapsed_ms`` milliseconds."""
    ages = np.frombuffer(ages_ms, "<u4").astype(np.uint64)
    grown = np.where(ages == NEVER_HEARD, ages, np.minimum(ages + elapsed_ms, NEVER_HEARD - 1))
    return grown.astype("<u4").tobytes()
