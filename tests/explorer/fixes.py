"""Fixes that can be taken out, to show that the explorer finds each fault again.

Each entry of ``FIXES`` restores the behaviour before a fix. A name is the row of the fault's report. ``early cutover``
takes out a rule that was always there, to show that the worlds with a switch of designs notice it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.designs import reader
from nodestate.ports import Item, Key, Write, WriteResult
from nodestate.scheduling.orders.boot_tracker import BootTracker
from nodestate.scheduling.orders.deadlines import OrderDeadlines
from nodestate.testing import MemoryStore
from tests.explorer.cell_world import PausingStore

Patch = tuple[Any, str, Callable[..., Any]]
"""A class or module, the name of one of its methods or functions, and what replaces it."""


def _forget_former(self: OwnedPartitions) -> None:
    _drop_all(self)
    self.former.clear()


def _ignore_loss(_self: OwnedPartition) -> bool:
    return False


def _acknowledge_at_once(_self: OwnedPartition, _now: float) -> bool:
    return False


def _write_as_of_now(self: PausingStore, writes: Sequence[Write]) -> list[WriteResult]:
    return _write(self, [write._replace(as_of=None) for write in writes])


def _fetch_as_told(self: MemoryStore, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
    return self.server.fetch(keys, values_only=values_only)


def _deadline_from_now(self: OrderDeadlines, placing: Any) -> float | None:  # noqa: ARG001 - it ignored the claim
    return self._clock.time() + self._answer_timeout_s


def _adopt_where_asked(self: BootTracker, boot: Any) -> bool:
    row = self._fleet.authoritative_row(boot.placing.instance)
    asked = {copy.node for copy in boot.possible_copies}
    return row is not None and self._fleet.names[row] in asked and _adopt_shown(self, boot)


def _switch_at_once(*_: object) -> bool:
    return False


_drop_all = OwnedPartitions.drop_all
_write = PausingStore.write
_adopt_shown = BootTracker._adopt_shown

FIXES: Final[dict[str, tuple[Patch, ...]]] = {
    "V1": ((MemoryStore, "fetch", _fetch_as_told),),
    "V3": ((OwnedPartition, "lose_queue", _ignore_loss),),
    "V4": ((OrderDeadlines, "of", _deadline_from_now),),
    "V8": ((BootTracker, "_adopt_shown", _adopt_where_asked),),
    "V9": ((OwnedPartitions, "drop_all", _forget_former),),
    "early cutover": ((reader, "_must_wait", _switch_at_once),),
    "early acknowledgement": ((OwnedPartition, "withholds", _acknowledge_at_once),),
    "V10": ((PausingStore, "write", _write_as_of_now),),
}
"""By the name of a fault, how its fix is taken out."""


@contextmanager
def without(name: str) -> Iterator[None]:
    """Take a fix out for a while. Processes that are forked meanwhile run without it, too."""
    with ExitStack() as restored:
        for owner, method, replacement in FIXES[name]:
            restored.callback(setattr, owner, method, getattr(owner, method))
            setattr(owner, method, replacement)
        yield
