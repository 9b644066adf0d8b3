"""The control record of a cell: which designs its consumers write, and which one its readers read.

One design more, from the operator's first command to the last::

    writes R, reads R --prepare X--> writes R and X, reads R      consumers begin X from what they hold, and keep it up
    writes R and X, reads R --cutover X--> the same, reads X      readers follow at their next refresh
    ... reads X, formerly R --rollback--> ... reads R             at any time; X is kept up, so forward again is a cutover
    writes R and X, reads X --retire R--> writes X, reads X       R is forgotten: its readers see a loss, not an old state

X and R may be of different layouts (numbers of partitions). The last of a layout to be retired leaves something behind::

    ... --retire R--> writes X, reads X, R leaving        consumers keep R up until X is whole, then forget it and its queues
    R leaving --cleared--> writes X, reads X              its queues are deleted, and all of it is forgotten
    R leaving --prepare, of its layout--> not leaving any more

Every step but retiring can be taken back, and taken twice is taken once: whoever was interrupted repeats the command.
The record changes by compare-and-swap alone (``designs.places``), and its version rises with each change, so the
newest of several copies is known. It is the time of the change in seconds since 1970 where that is higher (``dated``): of a change that
was lost with its only place and one made after that, whoever saw the former follows the latter. The functions here are pure: each gives the next record, the same one where there
is nothing to do, or raises ``DesignStepError``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from nodestate.config import Config
from nodestate.designs.stored_design import StoredDesign, display_names
from nodestate.errors import DesignStepError
from nodestate.store.wire import Codec


class Control(msgspec.Struct, frozen=True, array_like=True):
    """``former``: what was read before the last cutover, for a rollback; None where there is nothing to go back to.
    ``said_by``: whose change this is, for people. ``leaving``: retired, the last of their layouts, whose queues may still be
    there.
    """

    version: int
    writes: tuple[StoredDesign, ...]
    reads: StoredDesign
    former: StoredDesign | None = None
    said_by: str = ""
    leaving: tuple[StoredDesign, ...] = ()

    @property
    def layouts(self) -> list[int]:
        """The numbers of partitions that are written, what is read first."""
        return list(dict.fromkeys([self.reads.partitions, *(kept.partitions for kept in self.writes)]))

    def has_left(self, partitions: int) -> bool:
        """Whether a layout is to go: retired, and not taken back into use since."""
        return partitions not in self.layouts and any(kept.partitions == partitions for kept in self.leaving)

    @property
    def names(self) -> dict[StoredDesign, str]:
        """What to call all that the record names."""
        return display_names([*self.writes, *self.leaving])


CONTROL: Final = Codec(Control)


def first(config: Config, wall: float) -> Control:
    """What the settings say: the record of a cell that has none yet, or none any more. What is read is written, whatever
    they say. Its version is the time in seconds since 1970, so that readers which saw a record that was lost follow it.
    """
    reads = config.read_design if config.read_design in config.designs else config.designs[0]
    writes = tuple(StoredDesign(design, config.partitions) for design in config.designs)
    return Control(int(wall), writes, StoredDesign(reads, config.partitions), None, "settings")


def prepared(control: Control, kept: StoredDesign, by: str) -> Control:
    """Consumers write ``kept``, too."""
    if kept in control.writes:
        return control
    leaving = tuple(one for one in control.leaving if one.partitions != kept.partitions)
    return _next(control, by, writes=(*control.writes, kept), leaving=leaving)


def cut_over(control: Control, kept: StoredDesign, by: str) -> Control:
    """Readers read ``kept``."""
    if kept == control.reads:
        return control
    if kept not in control.writes:
        raise DesignStepError(f"{kept} is not written, so nobody could read it", f"nodestate design prepare {kept}")
    return _next(control, by, reads=kept, former=control.reads)


def rolled_back(control: Control, by: str) -> Control:
    """Readers read what they read before the last cutover."""
    if control.former is None:
        return control
    return _next(control, by, reads=control.former, former=None)


def retired(control: Control, kept: StoredDesign, by: str) -> Control:
    """Consumers write ``kept`` no longer."""
    if kept not in control.writes:
        return control
    if kept == control.reads:
        raise DesignStepError(f"readers read {kept}", "nodestate design cutover ANOTHER")
    writes = tuple(one for one in control.writes if one != kept)
    last = all(one.partitions != kept.partitions for one in writes)
    return _next(
        control,
        by,
        writes=writes,
        former=None if control.former == kept else control.former,
        leaving=(*control.leaving, kept) if last else control.leaving,
    )


def require_named(control: Control, kept: StoredDesign) -> None:
    """Refuse to retire what a name without a number means, where that design is written in other layouts alone."""
    others = [str(one) for one in control.writes if one.design == kept.design]
    if others and kept not in (*control.writes, *control.leaving):
        raise DesignStepError(
            f"{kept} is not written: a name without a number is of the layout that is read; what is written is {', '.join(others)}",
            f"nodestate design retire {others[0]}",
        )


def cleared(control: Control, partitions: int, by: str) -> Control:
    """Nothing is left of a layout."""
    leaving = tuple(one for one in control.leaving if one.partitions != partitions)
    return _next(control, by, leaving=leaving) if leaving != control.leaving else control


def dated(after: Control, wall: float) -> Control:
    """The record of a change that is made now."""
    return msgspec.structs.replace(after, version=max(after.version, int(wall)))


def _next(control: Control, by: str, **changes: object) -> Control:
    return msgspec.structs.replace(control, version=control.version + 1, said_by=by, **changes)
