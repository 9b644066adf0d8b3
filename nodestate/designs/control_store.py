"""The stores of the control record: the database if the cell has one, and every memcached server.

One store decides about changes, by compare-and-swap: the database if there is one, otherwise the first memcached
server. Every other store has a copy, so a reader finds the record in the store from which it reads its design.

A copy that is damaged counts as missing, and so does one whose signature is refused (``designs.control_auth``).
Consumers that know the record replace such a copy, and log it.

A copy that this process must not follow may be right for another one (``doubt_about``): it names a design of a later
version of nodestate, or has a version far ahead of this machine's clock, which may be wrong. A process does not follow
such a copy, and does not replace it either. Only an operator does, with ``--force``.

The cell never goes back to an older record. Of several copies, the one with the highest version is used. Consumers keep
the record in memory, and with each renewal they write it to every store whose copy is missing or older. So memcached
may lose the record: after one renewal it has the record again (docs/adr/0015).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from nodestate.designs.control import CONTROL, Control, doubt_about
from nodestate.designs.control_auth import ControlAuth
from nodestate.errors import ControlLostError, CorruptItemError, StoreError, StoreFullError
from nodestate.ports import Clock, Item, Put, Store, SystemClock, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.round_trips import Step, Steps, Stores


@dataclass(frozen=True, slots=True)
class Copy:
    """The copy of the control record in one store."""

    store: Store
    """The store."""
    control: Control | None = None
    """The record; None if the store has none that may be followed, or does not answer."""
    cas: int = 0
    """CAS id of the stored item; 0 if there is none."""
    error: StoreError | None = None
    """Why the store did not answer; None if it did."""
    invalid: str = ""
    """Why the stored record is invalid; empty if it is valid or missing."""
    may_be_right: bool = False
    """True for an invalid record that another version of nodestate, or another clock, may accept."""
    is_refused: bool = False
    """True for an invalid record whose signature is wrong or missing."""
    value: bytes = b""
    """The stored value, with its signature and with fields of later versions; empty if there is none."""
    outdated: bool = False
    """True if the item is outdated, see ``ports.Item``."""


def newest(found: Sequence[Copy]) -> Control | None:
    """Return the record with the highest version; None if no copy has a record."""
    copy = newest_copy(found)
    return copy.control if copy is not None else None


def newest_copy(found: Sequence[Copy]) -> Copy | None:
    """Return the copy with the highest version; None if no copy has a record.

    If copies of that version differ, the copy of the first store is returned, because that store decides. Copies can
    differ because a version is a time in seconds, and the clocks of operators may differ.
    """
    return max(
        (copy for copy in found if copy.control is not None),
        key=lambda copy: copy.control.version if copy.control is not None else 0,
        default=None,
    )


def fetch_record(cell: str, wall: float, auth: ControlAuth) -> Steps[Control | None]:
    """Fetch the control record from one store.

    A generator of round trips (``store.round_trips``), so that a reader fetches the record and the heads of partitions
    in the same round trip.

    Args:
        cell: the cell's name.
        wall: the present time, in seconds since 1970. A version far ahead of it is not followed.
        auth: checks the signature.

    Returns:
        The record; None if the store has none that this process may follow.
    """
    key = keys.control(cell)
    item = (yield Step(fetch=[key])).items.get(key)
    return _judged(key, item, wall, auth)[0] if item is not None else None


class ControlStore:
    """The control record in all stores of a cell. The first store decides."""

    def __init__(self, cell: str, stores: Stores, clock: Clock | None = None, auth: ControlAuth | None = None) -> None:
        # Signs and checks records; by default it does neither.
        self.auth = auth or ControlAuth()
        # Wall-clock time, to recognize versions far in the future.
        self._clock = clock or SystemClock()
        # The record's key, the same in every store.
        self._key = keys.control(cell)
        # All stores of the cell; the first decides.
        self._stores = stores.everywhere
        assert self._stores, "a cell has a store"

    def read(self) -> list[Copy]:
        """Read the copy of every store. The copy of a store that does not answer has an ``error``."""
        return [self._copy(store) for store in self._stores]

    def put_back(
        self, control: Control, found: Sequence[Copy], value: bytes = b"", *, force: bool = False
    ) -> dict[str, StoreError]:
        """Write the record to every store whose copy is missing, invalid, outdated, older, or different in one version.

        Args:
            control: the record.
            found: the copies, as ``read`` returned them. A store that did not answer is skipped, and so is one whose
                copy may be right.
            value: the stored value that ``control`` was read from, which keeps its signature; empty: it is encoded.
            force: replace copies that may be right, too.

        Returns:
            By name of the store, why it could be read but not written. The next renewal tries again.
        """
        errors: dict[str, StoreError] = {}
        value = value or self.auth.seal(self._key, control)
        for copy in found:
            is_same = copy.value == value and not copy.outdated
            if copy.error is not None or is_same or (copy.may_be_right and not force):
                continue
            if copy.control is None or (
                copy.control.version <= control.version and (copy.control != control or copy.outdated)
            ):
                try:
                    self._put(copy, value)
                except StoreError as error:
                    errors[copy.store.name] = error
        return errors

    def begin(self, control: Control, found: Sequence[Copy]) -> bool:
        """Write the first record of a cell to the deciding store.

        Args:
            control: the record.
            found: the copies, as ``read`` returned them.

        Returns:
            True if the record is written. False if another process wrote a record first; the caller reads again.

        Raises:
            StoreError: if the store does not answer, is full, or can be read but not written.
        """
        return self._put(found[0], self.auth.seal(self._key, control))

    def change(self, found: Sequence[Copy], control: Control, *, force: bool = False) -> bool:
        """Replace the record in the deciding store, then in all others.

        Args:
            found: the copies, as ``read`` returned them.
            control: the new record.
            force: if the deciding store does not answer, the first store that answers decides instead. Copies that
                may be right are replaced.

        Returns:
            True if the record is changed. False if another process changed the record since it was read. Nothing was
            written then, and the caller reads again.

        Raises:
            StoreError: if the deciding store does not answer or is full. The change may or may not be stored, so the
                caller reads again.
            ConfigError: if other processes would refuse the change, see ``ControlAuth.require_signer``.
            ControlLostError: if the deciding store has no record, or an older one than another store. Nothing was
                written. Consumers restore the newest record with their next renewal; the caller tries again after that.
        """
        self.auth.require_signer()
        deciding = next((copy for copy in found if copy.error is None), found[0]) if force else found[0]
        if deciding.error is not None:
            raise deciding.error
        known = newest(found)
        is_replaced = force and deciding.may_be_right and known is not None
        if (deciding.control is None or deciding.control != known) and not is_replaced:
            raise ControlLostError(deciding.store.name, deciding.invalid)
        value = self.auth.seal(self._key, control)
        if not self._put(deciding, value):
            return False
        self.put_back(control, [copy for copy in found if copy is not deciding], value, force=force)
        return True

    def _copy(self, store: Store) -> Copy:
        """Read the copy of one store."""
        try:
            item = store.fetch([self._key]).get(self._key)
        except StoreError as error:
            return Copy(store, error=error)
        if item is None:
            return Copy(store)
        control, invalid, fault = _judged(self._key, item, self._clock.time(), self.auth)
        return Copy(
            store,
            control,
            item.cas,
            invalid=invalid,
            may_be_right=fault is _Fault.DOUBTFUL,
            is_refused=fault is _Fault.REFUSED,
            value=item.value,
            outdated=item.outdated,
        )

    def _put(self, copy: Copy, value: bytes) -> bool:
        """Replace one copy by compare-and-swap. Returns True if the record is stored.

        Args:
            copy: the copy to replace, as it was read.
            value: the new record, as it is stored.

        Raises:
            StoreError: if the store fails or is full.
        """
        write = Write(Put.CAS, self._key, value, copy.cas) if copy.cas else Write(Put.ADD, self._key, value)
        [written] = copy.store.write([write])
        if written.status is WriteStatus.FULL:
            raise StoreFullError(copy.store.name, self._key, len(value))
        return written.status is WriteStatus.STORED


class _Fault(enum.Enum):
    """Why a stored record is invalid."""

    DAMAGED = 1
    DOUBTFUL = 2
    """It may be right for another version of nodestate, or by another clock."""
    REFUSED = 3
    """Its signature is wrong or missing."""


def _judged(key: str, item: Item, wall: float, auth: ControlAuth) -> tuple[Control | None, str, _Fault | None]:
    """Return the record in a stored item. If it is invalid: None, the reason, and the kind of the fault."""
    try:
        control = CONTROL.unpack(item.value)
    except CorruptItemError as error:
        DAMAGE.report(key, str(error))
        return None, str(error), _Fault.DAMAGED
    if refusal := auth.refusal(key, control, item.value):
        return None, refusal, _Fault.REFUSED
    if doubt := doubt_about(control, wall):
        DAMAGE.report(key, doubt)
        return None, doubt, _Fault.DOUBTFUL
    return control, "", None
