"""The control record of a cell: which designs its consumers write, and which one its readers read.

One design more, from the operator's first command to the last::

    writes R, reads R --prepare X--> writes R and X, reads R      consumers begin X from what they hold, and keep it up
    writes R and X, reads R --cutover X--> the same, reads X      readers follow at their next refresh
    ... reads X, formerly R --rollback--> ... reads R             at any time; X is kept up, so forward again is a cutover
    writes R and X, reads X --retire R--> writes X, reads X       R is forgotten: its readers see a loss, not an old state

Every step but retiring can be taken back, and taken twice is taken once: whoever was interrupted repeats the command.
The record changes by compare-and-swap alone (``designs.places``), and its version rises by one with each change, so the
newest of several copies is known. The functions here are pure: each gives the next record, the same one where there
is nothing to do, or raises ``DesignStepError``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from nodestate.config import DESIGN_NAMES, Config
from nodestate.errors import ConfigError, DesignStepError
from nodestate.wire import Codec


class Control(msgspec.Struct, frozen=True, array_like=True):
    """``former``: what was read before the last cutover, for a rollback; empty where there is nothing to go back to.
    ``said_by``: whose change this is, for people.
    """

    version: int
    writes: tuple[str, ...]
    reads: str
    former: str = ""
    said_by: str = ""


CONTROL: Final = Codec(Control)


def first(config: Config, wall: float) -> Control:
    """What the settings say: the record of a cell that has none yet, or none any more. What is read is written, whatever
    they say. Its version is the time in seconds since 1970, so that readers which saw a record that was lost follow it.
    """
    reads = config.read_design if config.read_design in config.designs else config.designs[0]
    return Control(int(wall), config.designs, reads, "", "settings")


def prepared(control: Control, name: str, by: str) -> Control:
    """Consumers write ``name``, too."""
    _require_known(name)
    if name in control.writes:
        return control
    return _next(control, by, writes=(*control.writes, name))


def cut_over(control: Control, name: str, by: str) -> Control:
    """Readers read ``name``."""
    _require_known(name)
    if name == control.reads:
        return control
    if name not in control.writes:
        raise DesignStepError(f"{name} is not written, so nobody could read it", f"nodestate design prepare {name}")
    return _next(control, by, reads=name, former=control.reads)


def rolled_back(control: Control, by: str) -> Control:
    """Readers read what they read before the last cutover."""
    if not control.former:
        return control
    if control.former not in control.writes:
        raise DesignStepError(
            f"{control.former} was retired, so nobody writes it any more", f"nodestate design prepare {control.former}"
        )
    return _next(control, by, reads=control.former, former="")


def retired(control: Control, name: str, by: str) -> Control:
    """Consumers write ``name`` no longer."""
    _require_known(name)
    if name not in control.writes:
        return control
    if name == control.reads:
        raise DesignStepError(f"readers read {name}", "nodestate design cutover ANOTHER")
    return _next(
        control,
        by,
        writes=tuple(one for one in control.writes if one != name),
        former="" if control.former == name else control.former,
    )


def _next(control: Control, by: str, **changes: object) -> Control:
    return msgspec.structs.replace(control, version=control.version + 1, said_by=by, **changes)


def _require_known(name: str) -> None:
    if name not in DESIGN_NAMES:
        raise ConfigError(f"no design {name!r}; there are {', '.join(DESIGN_NAMES)}")
