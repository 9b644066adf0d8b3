"""Comparing what should be equal: two designs' views of a cell node by node, and a view with what agents say.

Two views are read one after the other while events keep coming, so a difference proves nothing yet::

    (equal) --differences--> suspect --persisting: equal now, or the one behind got where the other was--> cleared
                             suspect --persisting: still so--> suspect

What is suspect after many looks is a difference. Pure: the caller reads the views and decides how often.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodestate.model import NEVER, NodeRecord, Version

MISSED: Final = "missed"
"""The left side knows a node that the right does not."""
REDUNDANT: Final = "redundant"
"""The right side knows a node that the left does not."""
OLDER: Final = "older"
"""The right side has an older version than the left."""
NEWER: Final = "newer"
"""The right side has a newer version than the left."""
DIFFERENT: Final = "different"
"""Both have the same version, and not the same state: that no delay can explain."""
KINDS: Final = (MISSED, REDUNDANT, OLDER, NEWER, DIFFERENT)

Records = Mapping[str, NodeRecord]


@dataclass(frozen=True, slots=True)
class Difference:
    """How the two sides differ in one node, and the version that each has (``NEVER``: none)."""

    node: str
    kind: str
    left: Version
    right: Version


Differences = Mapping[str, Difference]
"""By name of the node."""


def differences(left: Records, right: Records) -> Differences:
    """Where two designs' records of a cell differ. A node that is gone equals one that was never there."""
    found = (_difference(name, left.get(name), right.get(name)) for name in left.keys() | right.keys())
    return {difference.node: difference for difference in found if difference is not None}


def persisting(suspects: Differences, left: Records, right: Records) -> Differences:
    """Those of ``suspects`` that a later look at both sides does not clear."""
    remaining = {}
    for name, before in suspects.items():
        now = _difference(name, left.get(name), right.get(name))
        if now is None or (DIFFERENT not in (before.kind, now.kind) and _passed(before, now)):
            continue
        remaining[name] = Difference(name, now.kind, before.left, before.right)
    return remaining


def differences_from_agents(
    census: Mapping[str, Version], records: Records, states: Mapping[str, Mapping[str, Any]] | None = None
) -> Differences:
    """Where a view lags behind what agents said of themselves *before* it was read: ``missed`` or ``older``; with
    their ``states`` also ``different``.

    A view that is newer than the census is as it should be, as is a node whose agent did not answer.
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
    """The names of the nodes for each kind, sorted."""
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


def _passed(before: Difference, now: Difference) -> bool:
    """True if the side that was behind has come to where the other was: it lost nothing, it was read earlier."""
    return min(now.left, now.right) >= max(before.left, before.right)


def _same(left: NodeRecord, right: NodeRecord) -> bool:
    """Bodies are compared as values where their bytes differ: the order of a map's keys means nothing."""
    return (left.gone, left.status, left.classes, left.columns) == (
        right.gone,
        right.status,
        right.classes,
        right.columns,
    ) and (left.body == right.body or left.state() == right.state())
