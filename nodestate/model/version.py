"""Versions of node states, and the receipt that names one."""

from __future__ import annotations

from typing import Final, NamedTuple


class Version(NamedTuple):
    """The ordered pair that names one state of one node."""

    incarnation: int
    """Which life of the agent wrote the state."""
    generation: int
    """Counter of events within that life; the agent adds 1 for each."""


NEVER: Final = Version(0, 0)
"""Older than the first version of any node."""


class Receipt(NamedTuple):
    """The node and version that a publish produced; ``reader.read(at_least=receipt)`` waits for that version."""

    node: str
    version: Version
