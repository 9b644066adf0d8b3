"""Where the control record lives: in the database if the cell has one, and on every memcached server.

One place decides, by compare-and-swap: the database, else the first memcached server. The others hold copies, so that a
reader finds the record wherever it reads its design. What the cell knows never goes back: of several copies the one
of the highest version counts, and consumers, who hold it in memory, put back a copy that is lost or older with each
renewal. So the loss of memcached is over when a consumer has renewed once (docs/adr/0015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodestate.designs.control import CONTROL, Control
from nodestate.errors import ControlLostError, CorruptItemError, StoreError, StoreFullError
from nodestate.ports import Item, Put, Store, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps, Stores


@dataclass(frozen=True, slots=True)
class Copy:
    """What one place has: the record, or None; ``cas`` of what is there, 0 for nothing; ``error`` if it does not answer."""

    store: Store
    control: Control | None = None
    cas: int = 0
    error: StoreError | None = None


def newest(found: Sequence[Copy]) -> Control | None:
    """The record of the highest version; of several such (clocks of operators may differ) that of the first place, which decides."""
    records = [copy.control for copy in found if copy.control is not None]
    return max(records, key=lambda control: control.version, default=None)


def look(cell: str) -> Steps[Control | None]:
    """What one place has, for a reader that looks at its heads there at the same time."""
    key = keys.control(cell)
    return _record_in((yield Step(fetch=[key])).items.get(key))


class ControlStore:
    """All places of a cell; the first decides."""

    def __init__(self, cell: str, stores: Stores) -> None:
        self._key = keys.control(cell)
        self._stores = stores.everywhere
        assert self._stores, "a cell has a place"

    def read(self) -> list[Copy]:
        """Ask every place; one that does not answer says so in its copy."""
        return [self._copy(store) for store in self._stores]

    def put_back(self, control: Control, found: Sequence[Copy]) -> None:
        """Write the record wherever it is lost, older, or another of the same version. Best effort: who fails is asked again next
        time.
        """
        for copy in found:
            if copy.error is None and (
                copy.control is None or (copy.control.version <= control.version and copy.control != control)
            ):
                self._put(copy, control)

    def begin(self, control: Control, found: Sequence[Copy]) -> bool:
        """Write the first record of a cell where it is decided; False where another consumer was faster, or it failed."""
        return self._put(found[0], control)

    def change(self, found: Sequence[Copy], control: Control, *, force: bool = False) -> bool:
        """Replace what was ``found`` by ``control`` where it is decided; False where somebody else was faster.

        ``force``: decided by the first place that answers, if the one that decides does not. Raises ``StoreError`` where that
        place does not answer or has no room (the outcome may be unknown: read again), and ``ControlLostError`` where it
        has no record, or not the newest: consumers put it back.
        """
        deciding = next((copy for copy in found if copy.error is None), found[0]) if force else found[0]
        if deciding.error is not None:
            raise deciding.error
        if deciding.control is None or deciding.control != newest(found):
            raise ControlLostError(deciding.store.name)
        if not self._put(deciding, control, or_raise=True):
            return False
        self.put_back(control, [copy for copy in found if copy is not deciding])
        return True

    def _copy(self, store: Store) -> Copy:
        try:
            item = store.fetch([self._key]).get(self._key)
        except StoreError as error:
            return Copy(store, error=error)
        return Copy(store, _record_in(item), item.cas if item is not None else 0)

    def _put(self, copy: Copy, control: Control, *, or_raise: bool = False) -> bool:
        value = CONTROL.pack(control)
        write = Write(Put.CAS, self._key, value, copy.cas) if copy.cas else Write(Put.ADD, self._key, value)
        try:
            [written] = copy.store.write([write])
        except StoreError:
            if or_raise:
                raise
            return False
        if or_raise and written.status is WriteStatus.FULL:
            raise StoreFullError(copy.store.name, self._key, len(value))
        return written.status is WriteStatus.STORED


def _record_in(item: Item | None) -> Control | None:
    try:
        return CONTROL.unpack(item.value) if item is not None else None
    except CorruptItemError:
        return None
