"""Order ids: the ids of orders, claims and reservations, which sort by time.

An order id is twelve hexadecimal digits of milliseconds since 1970, a dash, and twelve random digits. So of two ids,
the later one is the larger one when they are compared as text. An allocation that a scheduler ordered has one or two
ids in its hints::

    order   the id of the order that built the allocation in its present form. Each boot, migration and resize has a
            new id, larger than the previous ``order`` of the instance, even if another scheduler gave that order.
    boot    the id of the order that first booted the instance. It names the instance's lifetime. The hint is missing
            if it would equal ``order``.

An agent may report any hints. An id that breaks this form, or is later than any scheduler's clock, counts as missing:
the allocation was not ordered by a scheduler. So do the ids of an allocation without a valid tag, if the cell requires
tags (``auth.allocation_tags``).

From these hints alone, without any message, all schedulers agree on two questions:

- Which of several allocations of an instance is authoritative? The allocation of the later lifetime, and within one
  lifetime the allocation of the later order. The authoritative allocation is ended only by its user's explicit ``End``,
  never by clean-up.
- Do two allocations belong to the same lifetime? To end a lifetime is to end all its allocations, even if the instance
  has been migrated to other nodes meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from nodestate.model import MAX_CLOCK_AHEAD_S
from nodestate.ports import Clock
from nodestate.ports.ids import IdSource

_ORDER_ID: Final = re.compile(r"([0-9a-f]{12})-[0-9a-f]{12}")
_TIME_DIGITS: Final = 12
_LAST_MS: Final = 0xFFFF_FFFF_FFFF
"""The latest time that twelve hexadecimal digits can hold."""


def new_order_id(clock: Clock, ids: IdSource, after: str = "") -> str:
    """Make an order id that is larger than ``after``, even if ``after`` comes from a machine whose clock is ahead.

    Args:
        clock: The clock. The id begins with its time, or with the millisecond after ``after`` if that is later.
        ids: The source of the random digits.
        after: The order id that the new one must follow. The text is ignored if it is empty or no order id.
    """
    now_ms = int(clock.time() * 1000)
    before = _ORDER_ID.fullmatch(after)
    if before is not None:
        now_ms = max(now_ms, min(int(before[1], 16) + 1, _LAST_MS))
    return f"{now_ms:012x}-{ids.order_suffix()}"


def order_id_of(hints: Mapping[str, Any]) -> str:
    """Return the id of the order that built an allocation, from the allocation's hints.

    The id is empty if no scheduler ordered the allocation: the hint is missing, or is no order id.
    """
    order = hints.get("order")
    return order if isinstance(order, str) and _ORDER_ID.fullmatch(order) else ""


def precedence_of(hints: Mapping[str, Any]) -> tuple[str, str]:
    """Return a sort key for an allocation, from the allocation's hints.

    Of several allocations of one instance, the allocation with the largest key is authoritative.
    """
    return lifetime_id_of(hints), order_id_of(hints)


def lifetime_id_of(hints: Mapping[str, Any]) -> str:
    """Return the id of the lifetime to which an allocation belongs, from the allocation's hints.

    The id is empty if no scheduler ordered the allocation. A lifetime does not begin after one of its orders, so a hint
    ``boot`` that is later than ``order`` is ignored.
    """
    order, boot = order_id_of(hints), hints.get("boot")
    return boot if isinstance(boot, str) and _ORDER_ID.fullmatch(boot) and boot <= order else order


def without_future_ids(hints: Mapping[str, Any], now: float) -> Mapping[str, Any]:
    """Return the hints of an allocation; without its ids if they are later than any clock of a scheduler.

    Agents report hints, and could name an order that takes precedence over all later ones.

    Args:
        hints: The hints.
        now: Seconds since 1970.
    """
    if order_id_of(hints)[:_TIME_DIGITS] <= f"{int((now + MAX_CLOCK_AHEAD_S) * 1000):0{_TIME_DIGITS}x}":
        return hints
    return without_ids(hints)


def without_ids(hints: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the hints of an allocation without its ids, as if no scheduler had ordered it."""
    return {name: hint for name, hint in hints.items() if name not in ("order", "boot")}
