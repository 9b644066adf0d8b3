"""Order ids: ids that sort by time, for claims, for orders and the allocations that they build, and for reservations.

An order id is twelve hexadecimal digits of milliseconds since 1970, a dash, and twelve random digits. So the later of
two ids is the larger one when they are compared as text. Every allocation that a scheduler ordered has up to two ids in
its hints::

    order   the order that built the allocation as it is; each boot, migration and resize has a new id, larger than the
            instance's last one, whichever scheduler gives the order
    boot    the ``order`` of the instance's first boot, which names its lifetime; left out if it equals ``order``

Two schedulers that never exchanged a message therefore agree on two questions. Which of two allocations of an instance
is authoritative: the one of the later lifetime, and within one lifetime the one of the later order. And whether two
allocations belong to the same lifetime: to end a lifetime means to end all its allocations, on whatever nodes they are
by then. The authoritative allocation is ended only by its user's explicit ``End``, never by clean-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from nodestate.ports import Clock
from nodestate.ports.ids import IdSource

_ORDER_ID: Final = re.compile(r"([0-9a-f]{12})-[0-9a-f]{12}")
_LAST_MS: Final = 0xFFFF_FFFF_FFFF
"""The latest time that twelve hexadecimal digits can hold."""


def new_order_id(clock: Clock, ids: IdSource, after: str = "") -> str:
    """Make an order id that is larger than ``after``, also if another clock, ahead of this one, made ``after``.

    Args:
        clock: The time that the id begins with, unless ``after`` is later.
        ids: The source of the random digits.
        after: An earlier order id; any other text is ignored.
    """
    now_ms = int(clock.time() * 1000)
    before = _ORDER_ID.fullmatch(after)
    if before is not None:
        now_ms = max(now_ms, min(int(before[1], 16) + 1, _LAST_MS))
    return f"{now_ms:012x}-{ids.order_suffix()}"


def order_id_of(hints: Mapping[str, Any]) -> str:
    """The id of the order that built the allocation with these hints; empty if no scheduler ordered it."""
    return str(hints.get("order", ""))


def precedence_of(hints: Mapping[str, Any]) -> tuple[str, str]:
    """The sort key of an allocation with these hints: of an instance's allocations the one with the largest key is
    authoritative.
    """
    return lifetime_id_of(hints), order_id_of(hints)


def lifetime_id_of(hints: Mapping[str, Any]) -> str:
    """The id of the lifetime that an allocation with these hints belongs to; empty if no scheduler booted it."""
    return str(hints.get("boot") or hints.get("order", ""))
