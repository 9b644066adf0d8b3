"""The messages between the processes of an outage run. All times are of the monotonic clock of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from nodestate.model import Version

BUSY: Final = "busy"
"""Zone of the nodes on which instances are booted, and the first word of their names."""
REPORT_EVERY_S: Final = 0.25
"""How often a process sends its log."""


class Command(Enum):
    """A request of the main process to a worker."""

    PAUSE = auto()
    """To agents: let no node change by itself."""
    VERSIONS = auto()
    """To agents: send ``NodeVersions``."""
    STATES = auto()
    """To agents: send ``NodeStates``."""
    DRAIN = auto()
    """To schedulers: boot and reserve nothing more, and end all instances."""


class NodeVersions(NamedTuple):
    """The version that each node has at its agent."""

    versions: Mapping[str, Version]


class NodeStates(NamedTuple):
    """The version and the state that each node has at its agent."""

    states: Mapping[str, tuple[Version, Mapping[str, Any]]]


class Confirm(NamedTuple):
    """The broker confirmed a version of a node."""

    at: float
    node: str
    version: Version


class InstanceChange(NamedTuple):
    """An agent built or ended an instance."""

    at: float
    node: str
    instance: str
    built: bool


class BootSample(NamedTuple):
    """One boot."""

    began: float
    ended: float
    reason: str
    """Why the boot failed; empty if it succeeded."""


class ReservationSample(NamedTuple):
    """One call of ``reserve`` or of ``confirm``."""

    began: float
    ended: float
    call: str
    reason: str
    """Why the call failed; empty if it succeeded."""


class ReadSample(NamedTuple):
    """One read of a reader."""

    began: float
    ended: float
    as_of: float
    """The moment for which the whole view vouches; for a refused read, of the view that was refused."""
    refused: str
    """Why the read was refused; empty if it was not."""
    shown: Mapping[str, Version | None] = {}
    """Busy nodes whose version changed since the last read; None for nodes that the view names as incomplete."""
    incomplete: int = 0
    """Number of nodes and partitions that the view names as incomplete."""


class WorkerLog(NamedTuple):
    """The samples of one process since its last log."""

    until: float
    """All that began before this moment is in this log or an earlier one."""
    confirms: Sequence[Confirm] = ()
    changes: Sequence[InstanceChange] = ()
    overfull: Sequence[str] = ()
    """Sentences on nodes that were over their capacity."""
    events: int = 0
    """Number of events that agents published, without heartbeats."""
    boots: Sequence[BootSample] = ()
    reservations: Sequence[ReservationSample] = ()
    reads: Sequence[ReadSample] = ()
