"""The control record of a cell: which designs its consumers write, and which one its readers read.

The steps of a switch from design R to design X, each taken by a command of the operator::

    writes R, reads R --prepare X--> writes R and X, reads R      consumers begin X from memory, and keep it current
    writes R and X, reads R --cutover X--> writes R and X, reads X    readers follow at their next refresh
    reads X, formerly R --rollback--> reads R                     at any time; X stays current, so another cutover works
    writes R and X, reads X --retire R--> writes X, reads X       R is removed: its readers see a loss, not an old state

X and R may be in different layouts (numbers of partitions). If the retired design was the last one of its layout, it is
listed under ``leaving`` until the layout is removed::

    --retire R--> writes X, reads X, leaving R            consumers keep R current until X is complete, then remove it
    leaving R --cleared--> writes X, reads X              the queues of the layout are deleted, and its epochs removed
    leaving R --prepare a design of R's layout--> R is no longer listed under ``leaving``

Every step except ``retire`` can be reverted. Every step can be repeated without effect, so after an interruption the
operator runs the command again.

The record changes only by compare-and-swap (``designs.control_store``). Each change raises the record's version, so the
newest of several copies is known. The version is max(previous + 1, seconds since 1970), see ``dated``. If a change is
lost with the only store that had it, the next change still gets a higher version. So readers that saw the lost change
follow the next one.

The functions here are pure. Each returns the next record, or the same record if there is nothing to do. A step that is
not allowed raises ``DesignStepError``.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.config import DESIGN_NAMES, Config
from nodestate.designs.stored_design import StoredDesign, display_names
from nodestate.errors import DesignStepError
from nodestate.model import MAX_CLOCK_AHEAD_S
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.store.wire import Codec, seal
from nodestate.text import count_text, time_text

MAX_VERSION: Final = 2**33
"""Versions count seconds since 1970, and this is the year 2242."""
MAX_DESIGNS_COUNT: Final = 64
"""Designs in one list of a record."""
MAX_SAID_BY_CHARS: Final = 1_000
MAX_COMMAND_CHARS: Final = 200
SIGNATURE_CHARS: Final = 136
"""Length of a signature: the id of its key, 8 hexadecimal digits, then 64 bytes as 128 of them."""
FIRST_FIELDS_COUNT: Final = 6
"""Fields that every record has. Later ones are written only as far as they are used, so old records keep their bytes.
"""


class Control(msgspec.Struct, frozen=True, array_like=True):
    """The control record of a cell."""

    version: Annotated[int, Meta(ge=0, le=MAX_VERSION)]
    """Rises with each change."""
    writes: Annotated[tuple[StoredDesign, ...], Meta(min_length=1, max_length=MAX_DESIGNS_COUNT)]
    """The designs that consumers write."""
    reads: StoredDesign
    """The design that readers read."""
    former: StoredDesign | None = None
    """The design that readers read before the last cutover, to which a rollback returns; None if there is none."""
    said_by: Annotated[str, Meta(max_length=MAX_SAID_BY_CHARS)] = ""
    """Name of the operator or consumer that made the last change. For people."""
    leaving: Annotated[tuple[StoredDesign, ...], Meta(max_length=MAX_DESIGNS_COUNT)] = ()
    """Retired designs that were the last of their layouts, and whose queues and epochs may still exist.

    Consumers write such a design until the design that readers read is complete.
    """
    command: Annotated[str, Meta(max_length=MAX_COMMAND_CHARS)] = ""
    """The command that made the last change, without ``nodestate design``. For people."""
    changed_at: Annotated[float, Meta(ge=0)] = 0.0
    """When the last change was made by the clock of its author, in seconds since 1970; 0 if that is not known."""
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARS)] = ""
    """The operators' signature (``designs.control_auth``); empty if the record is not signed."""

    @property
    def key_id(self) -> str:
        """The id of the key that the signature names; empty if the record is not signed."""
        return self.signature[:8]

    def with_signature(self, signature: str) -> Control:
        """Return this record with another signature."""
        return msgspec.structs.replace(self, signature=signature)

    @property
    def layouts(self) -> list[int]:
        """The layouts that consumers write, each named by its number of partitions.

        The layout that readers read is first. Layouts that consumers write only until they are removed are not listed.
        """
        return list(dict.fromkeys([self.reads.partitions, *(stored.partitions for stored in self.writes)]))

    def has_retired(self, partitions: int) -> bool:
        """True if the layout of ``partitions`` partitions is retired, and its queues and epochs may still exist."""
        return partitions not in self.layouts and any(stored.partitions == partitions for stored in self.leaving)

    @property
    def names(self) -> dict[StoredDesign, str]:
        """The name to display for each design in the record."""
        return display_names([*self.writes, *self.leaving])


def _require_consistent(control: Control) -> None:
    named = (*control.writes, control.reads, *((control.former,) if control.former else ()), *control.leaving)
    for stored in named:
        if not 1 <= stored.partitions <= BUCKETS_COUNT:
            raise ValueError(
                f"a layout of {count_text(stored.partitions, 'partition')}: there are 1 to {BUCKETS_COUNT}"
            )
    if control.reads not in control.writes:
        raise ValueError("readers read a design that consumers do not write")
    if len(set(control.writes)) != len(control.writes):
        raise ValueError("a design is written twice")
    for text, meaning in ((control.said_by, "the name of its author"), (control.command, "its command")):
        if not text.isprintable():
            raise ValueError(f"{meaning} is {text!a:.80}")
    if not math.isfinite(control.changed_at):
        raise ValueError(f"it was changed at {control.changed_at}")


class ControlCodec(Codec[Control]):
    """Encodes and decodes control records."""

    def pack(self, record: Control) -> bytes:
        """Encode a record as a stored value."""
        return seal(self.payload(record))

    def payload(self, record: Control) -> bytes:
        """Encode a record without the checksum. Later fields at the end are left out if they have their defaults."""
        fields = list(msgspec.structs.astuple(record))
        while len(fields) > FIRST_FIELDS_COUNT and not fields[-1]:
            fields.pop()
        return msgspec.msgpack.encode(fields)


CONTROL: Final = ControlCodec(Control, _require_consistent)


def doubt_about(control: Control, wall: float) -> str:
    """Return why a decoded record must not be followed, although it may be right; empty if there is no reason.

    A design that this version does not know may be one of a later version. A version far in the future may be right if
    the clock of this machine is wrong.

    Args:
        control: the record.
        wall: the present time, in seconds since 1970.
    """
    for stored in (*control.writes, *control.leaving, control.former or control.reads):
        if stored.design not in DESIGN_NAMES:
            return f"version {control.version} names the design {stored.design!a:.40}, which this version does not know"
    if control.version > wall + MAX_CLOCK_AHEAD_S:
        return (
            f"version {control.version} counts seconds since 1970, and is {control.version - wall:,.0f} s ahead of the "
            "clock of this machine"
        )
    return ""


def record_from_settings(config: Config, wall: float) -> Control:
    """Make the first control record of a cell from its settings.

    If the settings do not write the design ``read_design``, readers read the first design that is written.

    Args:
        config: settings of the cell.
        wall: seconds since 1970. This becomes the record's version. So if an earlier record was lost, readers that saw
            it follow this one.
    """
    reads = config.read_design if config.read_design in config.designs else config.designs[0]
    writes = tuple(StoredDesign(design, config.partitions) for design in config.designs)
    return Control(int(wall), writes, StoredDesign(reads, config.partitions), None, "settings")


def prepared(control: Control, stored: StoredDesign, by: str) -> Control:
    """Return the record after ``prepare``: consumers also write ``stored``. ``by`` is the operator's name."""
    if stored in control.writes:
        return control
    leaving = tuple(one for one in control.leaving if one.partitions != stored.partitions)
    return _next(control, by, writes=(*control.writes, stored), leaving=leaving)


def cut_over(control: Control, stored: StoredDesign, by: str) -> Control:
    """Return the record after ``cutover``: readers read ``stored``. ``by`` is the operator's name.

    Raises ``DesignStepError`` if consumers do not write ``stored``.
    """
    if stored == control.reads:
        return control
    if stored not in control.writes:
        raise DesignStepError(
            f"consumers do not write {stored}, so readers cannot read it", f"nodestate design prepare {stored}"
        )
    return _next(control, by, reads=stored, former=control.reads)


def rolled_back(control: Control, by: str) -> Control:
    """Return the record after ``rollback``: readers read the design that they read before the last cutover."""
    if control.former is None:
        return control
    return _next(control, by, reads=control.former, former=None)


def retired(control: Control, stored: StoredDesign, by: str) -> Control:
    """Return the record after ``retire``: consumers no longer write ``stored``. ``by`` is the operator's name.

    Raises ``DesignStepError`` if readers read ``stored``.
    """
    if stored not in control.writes:
        return control
    if stored == control.reads:
        raise DesignStepError(f"readers read {stored}", "nodestate design cutover ANOTHER")
    writes = tuple(one for one in control.writes if one != stored)
    last = all(one.partitions != stored.partitions for one in writes)
    return _next(
        control,
        by,
        writes=writes,
        former=None if control.former == stored else control.former,
        leaving=(*control.leaving, stored) if last else control.leaving,
    )


def require_named(control: Control, stored: StoredDesign) -> None:
    """Check the operator's choice of a design to retire.

    Raises ``DesignStepError`` if the design is not written in the given layout, but is written in another one. Without
    this check, retiring it would silently do nothing.
    """
    others = [str(one) for one in control.writes if one.design == stored.design]
    if others and stored not in (*control.writes, *control.leaving):
        raise DesignStepError(
            f"consumers do not write {stored}: a name without a number means the layout that is read. They write "
            f"{', '.join(others)}",
            f"nodestate design retire {others[0]}",
        )


def cleared(control: Control, partitions: int, by: str) -> Control:
    """Return the record after the queues and epochs of a retired layout were removed.

    Args:
        control: the record before.
        partitions: the layout, named by its number of partitions.
        by: name of the operator.
    """
    leaving = tuple(one for one in control.leaving if one.partitions != partitions)
    return _next(control, by, leaving=leaving) if leaving != control.leaving else control


def author_text(control: Control) -> str:
    """Return who made the last change of a record, when and by which command, and with which key it is signed."""
    parts = [f"by {control.said_by}"]
    if control.command:
        parts.append(f"'nodestate design {control.command}'")
    if control.changed_at:
        parts.append(time_text(control.changed_at))
    parts.append(f"signed with key {control.key_id}" if control.signature else "not signed")
    return ", ".join(parts)


def renewed(control: Control, by: str) -> Control:
    """Return the record after ``sign``: the same designs in a new version, which is then signed with the newest key."""
    return _next(control, by)


def dated(after: Control, wall: float, command: str = "") -> Control:
    """Return the record ``after`` with the version, the command and the time of a change that is made now.

    Args:
        after: the record, as one of the functions above returned it: its version is one above the last version.
        wall: the present time, in seconds since 1970.
        command: the command that makes the change.
    """
    version = max(after.version, int(wall))
    return msgspec.structs.replace(after, version=version, command=command[:MAX_COMMAND_CHARS], changed_at=wall)


def _next(control: Control, by: str, **changes: object) -> Control:
    """Return the record with these changes, with the next version, and without the signature of the one before."""
    return msgspec.structs.replace(
        control, version=control.version + 1, said_by=by, command="", changed_at=0.0, signature="", **changes
    )
