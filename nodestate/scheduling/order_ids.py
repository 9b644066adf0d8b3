"""Names that tell their order: of claims, of the orders that follow them and the allocations that these build, and of reservations.

Twelve hexadecimal digits of milliseconds since 1970, a dash, and twelve of chance; so of two names the later is the larger
one, as text. Every allocation says two of them among its hints::

    order   who built it as it is: a boot, a move and a resize each give another, larger than the one before, whoever gives it
    boot    the ``order`` of the first of them: the instance's life (left out where both are the same)

So two schedulers that never heard of each other agree which of two allocations of an instance counts (the one of the later life,
and of one life the later order), and whether both are of one life: what ended it, ends it wherever it was moved meanwhile.
Nobody ends what counts, but who was told to end the instance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from nodestate.ports import Clock
from nodestate.ports.ids import IdSource

_NAME: Final = re.compile(r"([0-9a-f]{12})-[0-9a-f]{12}")
_LAST_MS: Final = 0xFFFF_FFFF_FFFF


def new_order_id(clock: Clock, ids: IdSource, after: str = "") -> str:
    """A name that nobody has, larger than ``after``, however this clock stands to that of who gave it."""
    now_ms = int(clock.time() * 1000)
    before = _NAME.fullmatch(after)
    if before is not None:
        now_ms = max(now_ms, min(int(before[1], 16) + 1, _LAST_MS))
    return f"{now_ms:012x}-{ids.order_suffix()}"


def order_id_of(hints: Mapping[str, Any]) -> str:
    """Which order built what has these hints; empty where none of a scheduler did."""
    return str(hints.get("order", ""))


def precedence_of(hints: Mapping[str, Any]) -> tuple[str, str]:
    """Of two allocations of an instance the one with the larger of these counts."""
    return lifetime_id_of(hints), order_id_of(hints)


def lifetime_id_of(hints: Mapping[str, Any]) -> str:
    """Of which life an allocation with these hints is; empty where no scheduler booted it."""
    return str(hints.get("boot") or hints.get("order", ""))
