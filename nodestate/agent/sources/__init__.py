"""Sources of state: the Protocol through which an agent reads nodes, and the readings that a source gives.

``host`` reads this machine, and ``libvirt`` reads a hypervisor with its virtual machines. ``simulated`` is a fleet in
memory whose nodes change by themselves. ``static_fleet`` is a fleet in memory whose nodes change only by orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class FullState(NamedTuple):
    """A node's full state. The agent publishes the difference from the node's last state."""

    node: str
    """The node's name."""
    state: Mapping[str, Any]
    """The state, with the fields of an event's ``state``."""


class StatePatch(NamedTuple):
    """A change of a node since the source's last reading of the node."""

    node: str
    """The node's name."""
    patch: Mapping[str, Any]
    """An RFC 7396 merge patch of the state."""


class NodeGone(NamedTuple):
    """A node that is gone for good. The agent publishes a leave."""

    node: str
    """The node's name."""


class NodeSilent(NamedTuple):
    """A node that does not answer its source. The agent publishes nothing of the node until its state is read again."""

    node: str
    """The node's name."""


Reading = FullState | StatePatch | NodeGone | NodeSilent
"""One fact that a source has found out about one node."""


class NodeResources(NamedTuple):
    """The part of a node's present state that admission needs."""

    status: str
    """``up``, ``draining``, ``maintenance`` or ``down``."""
    inventory: Mapping[str, Mapping[str, float]]
    """By resource class: total, and the other fields of an inventory that are not the default."""
    usage: Mapping[str, int]
    """By resource class, the used amount."""
    allocations: Mapping[str, Mapping[str, Any]]
    """By instance, its allocation."""
    taints: Sequence[str] = ()
    """The node's taints."""


class StateSource(Protocol):
    """Reads the state of one or several nodes.

    The first ``poll`` gives every node's full state. A source of many nodes gives only changes after that, so that
    polls stay cheap.
    """

    @property
    def name(self) -> str:
        """Name of the source, and of its files on this machine. All its nodes share one incarnation."""

    @property
    def every_s(self) -> float:
        """Seconds between two polls."""

    def nodes(self) -> Sequence[str]:
        """Return the names of the nodes that the source knows now."""

    def poll(self, now: float) -> Iterable[Reading]:
        """Return the readings since the last poll; at the first call, every node's full state.

        Args:
            now: monotonic seconds.

        Raises:
            SourceUnavailableError: if the source can't be read. The agent polls again later, and publishes no
                heartbeats of the source's nodes meanwhile.
        """

    def close(self) -> None:
        """Release connections and files."""


@runtime_checkable
class AdmittingSource(Protocol):
    """A ``StateSource`` that can also carry out orders. ``Admission`` decides which orders it carries out.

    ``build`` and ``end`` change the node at once, and return the reading that shows the change. The agent publishes
    these readings only after ``save``, so ``poll`` must not give them again.

    ``resources_of``, ``build`` and ``end`` raise ``SourceUnavailableError`` or ``OrderFailedError`` if they fail;
    nothing has changed then.
    """

    def resources_of(self, node: str) -> NodeResources:
        """Return the node's present resources and allocations."""

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        """Give the instance this allocation, which replaces any allocation that the instance has on the node."""

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """Remove the instance's allocation. The instance must have one on the node."""

    def save(self) -> None:
        """Store all changes since the last call, so that they survive a restart of the agent.

        Raises ``SourceUnavailableError`` if they cannot be stored; all of these changes are undone then.
        """


__all__ = [
    "AdmittingSource",
    "FullState",
    "NodeGone",
    "NodeResources",
    "NodeSilent",
    "Reading",
    "StatePatch",
    "StateSource",
]
