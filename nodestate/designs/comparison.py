"""Comparison of views that should be equal: of two designs, node by node, and of a view with the reports of agents.

Two views are read one after the other while events arrive, so a single difference proves nothing::

    (equal) --differences--> suspect --persisting: equal now, or the older side reached the other--> cleared
                             suspect --persisting: still different--> suspect

A node that is still suspect after many comparisons is different. The functions are pure: the caller reads the views and
decides how often.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodestate.model import NEVER, NodeRecord, Version

MISSED: Final = "missed"
"""The left side has a node that the right side lacks."""
REDUNDANT: Final = "redundant"
"""The right side has a node that the left side lacks."""
OLDER: Final = "older"
"""The right side has an older version than the left."""
NEWER: Final = "newer"
"""The right side has a newer version than the left."""
DIFFERENT: Final = "different"
"""Both sides have the same version with different states. No delay can explain that."""
KINDS: Final = (MISSED, REDUNDANT, OLDER, NEWER, DIFFERENT)

Records = Mapping[str, NodeRecord]


@dataclass(frozen=True, slots=True)
class Difference:
    """How the two sides differ in one node."""

    node: str
    kind: str
    """One of ``KINDS``."""
    left: Version
    """The version of the left side; ``NEVER`` if it lacks the node."""
    right: Version
    """The version of the right side; ``NEVER`` if it lacks the node."""


Differences = Mapping[str, Difference]
"""Differences by name of the node."""


def differences(left: Records, right: Records) -> Differences:
    """The nodes in which two designs' records differ. A tombstone equals a node that never existed."""
    found = (_difference(name, left.get(name), right.get(name)) for name in left.keys() | right.keys())
    return {difference.node: difference for difference in found if difference is not None}


def persisting(suspects: Differences, left: Records, right: Records) -> Differences:
    """The suspects that are still different in later records of both sides."""
    remaining = {}
    for name, before in suspects.items():
        now = _difference(name, left.get(name), right.get(name))
        if now is None or (DIFFERENT not in (before.kind, now.kind) and _caught_up(before, now)):
            continue
        remaining[name] = Difference(name, now.kind, before.left, before.right)
    return remaining


def differences_from_agents(
    census: Mapping[str, Version], records: Records, states: Mapping[str, Mapping[str, Any]] | None = None
) -> Differences:
    """The nodes in which a view is behind the reports of their agents: ``missed``, ``older`` or ``different``.

    A view that is newer than the census is correct. A node whose agent did not answer is not compared.

    Args:
        census: the version of each node, by its agent. The census must be taken before the view is read.
        records: the records of the view.
        states: the state of each node in the census; None to compare versions only.
    """
    found = {}
    for name, version in census.items():
        record = records.get(name)
        have = _version(record)
        if have < version:
            found[name] = Difference(name, MISSED if have == NEVER else OLDER, version, have)
        elif have == version and states is not None and record is not None and record.state() != states[name]:
            found[name] = Difference(name, DIFFERENT, version, have)
    return found


def by_kind(found: Differences, kinds: Iterable[str] = KINDS) -> dict[str, list[str]]:
    """For each kind, the sorted names of the nodes that differ in that way."""
    return {kind: sorted(name for name, difference in found.items() if difference.kind == kind) for kind in kinds}


def _difference(name: str, left: NodeRecord | None, right: NodeRecord | None) -> Difference | None:
    versions = _version(left), _version(right)
    if versions[0] == versions[1]:
        return None if left is None or right is None or _same(left, right) else Difference(name, DIFFERENT, *versions)
    if versions[1] == NEVER:
        return Difference(name, MISSED, *versions) if left is not None and not left.gone else None
    if versions[0] == NEVER:
        return Difference(name, REDUNDANT, *versions) if right is not None and not right.gone else None
    return Difference(name, OLDER if versions[1] < versions[0] else NEWER, *versions)


def _version(record: NodeRecord | None) -> Version:
    return record.version if record is not None else NEVER


def _caught_up(before: Difference, now: Difference) -> bool:
    """True if the side that was behind has reached the other's earlier version.

    It lost nothing then, and was only read earlier.
    """
    return min(now.left, now.right) >= max(before.left, before.right)


def _same(left: NodeRecord, right: NodeRecord) -> bool:
    """True if two records of one version hold the same state. The order of the keys of a map does not matter."""
    return (left.gone, left.status, left.classes, left.columns) == (
        right.gone,
        right.status,
        right.classes,
        right.columns,
    ) and (left.body == right.body or left.state() == right.state())
