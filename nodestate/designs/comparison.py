"""Comparison of node states that should be equal: of two designs, or of a view with the versions that agents report.

Two views are read one after the other while events arrive, so a node may differ only because one view is older. A node
that differs is therefore compared again in later views::

    (equal) --differences--> suspect --persisting: equal now, or the side that was behind caught up--> cleared
                             suspect --persisting: still different--> suspect

A node that is still suspect after many comparisons is different. The functions are pure. The caller reads the views,
and decides how often to compare.
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
"""The right side has an older version of the node than the left side."""
NEWER: Final = "newer"
"""The right side has a newer version of the node than the left side."""
DIFFERENT: Final = "different"
"""Both sides have the same version of the node, but different states. A delay cannot explain that."""
KINDS: Final = (MISSED, REDUNDANT, OLDER, NEWER, DIFFERENT)

Records = Mapping[str, NodeRecord]
"""The records of one side, by name of the node."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between the two sides in one node."""

    node: str
    """Name of the node."""
    kind: str
    """One of ``KINDS``."""
    left: Version
    """The version of the left side; ``NEVER`` if it lacks the node."""
    right: Version
    """The version of the right side; ``NEVER`` if it lacks the node."""


Differences = Mapping[str, Difference]
"""Differences, by name of the node."""


def differences(left: Records, right: Records) -> Differences:
    """Return the nodes in which the two sides differ. A tombstone on one side equals no record on the other side."""
    found = (_difference(name, left.get(name), right.get(name)) for name in left.keys() | right.keys())
    return {difference.node: difference for difference in found if difference is not None}


def persisting(suspects: Differences, left: Records, right: Records) -> Differences:
    """Return the suspects that still differ in later records of both sides.

    A suspect is cleared if the two sides are equal now. It is also cleared if both sides now have at least the newest
    version that one of them had when they differed. The side that was behind then lost nothing, and was only read
    earlier. A suspect whose sides differ in the same version (``DIFFERENT``) is cleared only if they are equal now.

    Args:
        suspects: the result of ``differences`` or of an earlier call.
        left: later records of the left side.
        right: later records of the right side.

    Returns:
        The remaining suspects, each with its present kind, and with the versions from when it became a suspect.
    """
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
    """Return the nodes of which a view is behind the nodes' agents: of kind ``missed``, ``older`` or ``different``.

    A view that has a newer version than the agent reported is correct. A node whose agent did not answer is not
    compared.

    Args:
        census: the version of each node, as its agent reported it before the view was read. By name of the node.
        records: the records of the view.
        states: the state of each node in the census, by name of the node; None to compare only versions.
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
    """Return the sorted names of the nodes that differ, by kind of difference.

    Each of ``kinds`` is a key of the result, even if no node differs in that way.
    """
    return {kind: sorted(name for name, difference in found.items() if difference.kind == kind) for kind in kinds}


def _difference(name: str, left: NodeRecord | None, right: NodeRecord | None) -> Difference | None:
    """Return the difference between two records of a node; None if they are equal. None is a node without a record."""
    versions = _version(left), _version(right)
    if versions[0] == versions[1]:
        return None if left is None or right is None or _same(left, right) else Difference(name, DIFFERENT, *versions)
    if versions[1] == NEVER:
        return Difference(name, MISSED, *versions) if left is not None and not left.gone else None
    if versions[0] == NEVER:
        return Difference(name, REDUNDANT, *versions) if right is not None and not right.gone else None
    return Difference(name, OLDER if versions[1] < versions[0] else NEWER, *versions)


def _version(record: NodeRecord | None) -> Version:
    """Return the version of a record; ``NEVER`` if there is no record."""
    return record.version if record is not None else NEVER


def _caught_up(before: Difference, now: Difference) -> bool:
    """True if both sides now have at least the newest version that one of them had before."""
    return min(now.left, now.right) >= max(before.left, before.right)


def _same(left: NodeRecord, right: NodeRecord) -> bool:
    """True if two records of the same version have the same state. The order of keys in a map does not matter."""
    return (left.gone, left.status, left.classes, left.columns) == (
        right.gone,
        right.status,
        right.classes,
        right.columns,
    ) and (left.body == right.body or left.state() == right.state())
