"""Where an agent reads state from: one small Protocol, and what comes out of it.

``host`` is this machine, ``libvirt`` its virtual machines, ``simulated`` a fleet that does not exist, ``given`` one of
which nothing is known but what it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class FullState(NamedTuple):
    """A node's whole state. The agent finds out what changed."""

    node: str
    state: Mapping[str, Any]


class StatePatch(NamedTuple):
    """What changed, as an RFC 7396 merge patch of what this source said before."""

    node: str
    patch: Mapping[str, Any]


class NodeGone(NamedTuple):
    """The node will not come back."""

    node: str


class NodeSilent(NamedTuple):
    """The node does not answer: no sign of life of it, until it is read again."""

    node: str


Reading = FullState | StatePatch | NodeGone | NodeSilent


class Room(NamedTuple):
    """What decides on an order: as of now, each field as in a node's state."""

    status: str
    inventory: Mapping[str, Mapping[str, float]]
    usage: Mapping[str, int]
    allocations: Mapping[str, Mapping[str, Any]]


class StateSource(Protocol):
    """Reads the state of one or many nodes. Cost follows change: after the first ``poll``, only what is new."""

    @property
    def name(self) -> str:
        """Names the agent's lives on this machine; one file for all nodes of the source."""

    @property
    def every_s(self) -> float:
        """How often to poll."""

    def nodes(self) -> Sequence[str]:
        """The nodes that are known now."""

    def poll(self, now: float) -> Iterable[Reading]:
        """What is new at ``now`` (seconds, monotonic); every node's whole state at the first call.

        Raises ``SourceUnavailableError``; the agent polls again, and sends no heartbeats of its nodes meanwhile.
        """

    def close(self) -> None:
        """Give back what it holds."""


@runtime_checkable
class AdmittingSource(Protocol):
    """A ``StateSource`` that can also carry out orders. Whether it should is decided by who calls (``admission``).

    ``room``, ``build`` and ``end`` raise ``SourceUnavailableError`` or ``OrderFailedError``, and then did nothing. What
    ``build`` and ``end`` return is not among what ``poll`` gives, and is published only after ``keep``.
    """

    def room(self, node: str) -> Room:
        """What the node has and who has it."""

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        """Give the instance this allocation, in place of the one that it may have."""

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """Take away what the instance has; it has something."""

    def keep(self) -> None:
        """Make what was built and ended since the last call outlive the agent. Raises ``SourceUnavailableError``: then all of
        it is undone.
        """


__all__ = [
    "AdmittingSource",
    "FullState",
    "NodeGone",
    "NodeSilent",
    "Reading",
    "Room",
    "StatePatch",
    "StateSource",
]
