"""Sources of state: the Protocol that an agent reads nodes through, and the readings that it returns.

``host`` reads this machine, ``libvirt`` a hypervisor with its virtual machines. ``simulated`` is a fleet in memory
whose nodes change by themselves, ``static_fleet`` one whose nodes change only by orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class FullState(NamedTuple):
    """A node's full state. The agent publishes what changed since the last reading."""

    node: str
    """The node's name."""
    state: Mapping[str, Any]
    """The state, with the fields of an event's ``state``."""


class StatePatch(NamedTuple):
    """A change of a node since this source's last reading of it."""

    node: str
    """The node's name."""
    patch: Mapping[str, Any]
    """An RFC 7396 merge patch of the state."""


class NodeGone(NamedTuple):
    """The node is gone for good."""

    node: str
    """The node's name."""


class NodeSilent(NamedTuple):
    """The node does not answer. The agent publishes no heartbeat of it until the source has a state of it again."""

    node: str
    """The node's name."""


Reading = FullState | StatePatch | NodeGone | NodeSilent
"""One thing that a source found out about one node."""


class NodeResources(NamedTuple):
    """The part of a node's state that admission needs, as of now."""

    status: str
    """``up``, ``draining``, ``maintenance`` or ``down``."""
    inventory: Mapping[str, Mapping[str, float]]
    """By resource class: total, reserved and allocation ratio."""
    usage: Mapping[str, int]
    """By resource class, the used amount."""
    allocations: Mapping[str, Mapping[str, Any]]
    """By instance, its allocation."""


class StateSource(Protocol):
    """Reads the state of one or many nodes. After the first ``poll`` it gives only changes, so polls stay cheap."""

    @property
    def name(self) -> str:
        """Names the files of this source on this machine: one incarnation for all its nodes."""

    @property
    def every_s(self) -> float:
        """Seconds between two polls."""

    def nodes(self) -> Sequence[str]:
        """Names of the nodes that are known now."""

    def poll(self, now: float) -> Iterable[Reading]:
        """The readings that are new at ``now`` (monotonic seconds); the first call gives every node's full state.

        Raises ``SourceUnavailableError`` if the source can't be read. The agent then polls again later, and sends no
        heartbeats of the source's nodes meanwhile.
        """

    def close(self) -> None:
        """Release connections and files."""


@runtime_checkable
class AdmittingSource(Protocol):
    """A ``StateSource`` that can also carry out orders. ``Admission`` decides whether it should, and calls it.

    ``resources_of``, ``build`` and ``end`` raise ``SourceUnavailableError`` or ``OrderFailedError``, and then have
    changed nothing. The readings that ``build`` and ``end`` return are not given by ``poll`` again, and are published
    only after ``save``.
    """

    def resources_of(self, node: str) -> NodeResources:
        """The node's resources and allocations as of now."""

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        """Give the instance this allocation, replacing the one that it may have."""

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """Remove the instance's allocation. It must have one."""

    def save(self) -> None:
        """Store everything that was built and ended since the last call, so that it survives the agent.

        Raises ``SourceUnavailableError`` if that fails; then all of it is undone.
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
