"""Where an agent reads state from: one small Protocol, and what comes out of it.

``host`` is this machine, ``libvirt`` its virtual machines, ``simulated`` a fleet that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Whole(NamedTuple):
    """A node's whole state. The agent finds out what changed."""

    node: str
    state: Mapping[str, Any]


class Part(NamedTuple):
    """What changed, as an RFC 7396 merge patch of what this source said before."""

    node: str
    patch: Mapping[str, Any]


class Gone(NamedTuple):
    """The node will not come back."""

    node: str


Reading = Whole | Part | Gone


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


__all__ = ["Gone", "Part", "Reading", "StateSource", "Whole"]
