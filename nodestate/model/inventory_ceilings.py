"""Ceilings on inventories: the largest capacity of a resource class that a node may report.

A node reports its own inventory. A node that reports too much looks better than all others, and gets all instances. So
the operator sets the largest capacity that a node can have. Schedulers place nothing on a node that reports more.

A ceiling depends on the node's name and on nothing else that the node reports. The name is the only field of a report
that a node cannot choose, because its signing key belongs to the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final, NamedTuple

from nodestate.model.limits import MAX_AMOUNT, MAX_RATIO, NODE_NAME_CHARACTERS

CEILING_PATTERN: Final = rf"([*?{NODE_NAME_CHARACTERS}]+/)?[A-Z0-9_]+=[0-9]{{1,18}}"
"""The rule for one ceiling, as a regular expression that must match the whole text."""
NO_CEILING: Final = 2**63 - 1
"""The ceiling of a resource class for which the operator sets none."""
assert MAX_AMOUNT * MAX_RATIO < NO_CEILING, "no capacity is above it"


class _Ceiling(NamedTuple):
    """One ceiling."""

    nodes: re.Pattern[str]
    """Matches the names of the nodes that it is for."""
    resource: str
    """The resource class."""
    capacity: int
    """The largest capacity that a node may report."""


class InventoryCeilings:
    """The ceilings on the capacities that the nodes of a cell may report.

    A capacity is (total - reserved) * allocation_ratio, in the unit of its resource class.

    Args:
        texts: the ceilings. ``VCPU=512`` is for all nodes; ``gpu-*/VCPU=1024`` is for the nodes whose name matches the
            pattern. If several ceilings fit a node and a resource class, the first one counts.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._ceilings = [_parse(text) for text in texts]
        """All ceilings, in the order of the setting."""
        self.classes = tuple(dict.fromkeys(one.resource for one in self._ceilings))
        """The resource classes that have a ceiling."""

    def of(self, node: str, resource: str) -> int:
        """Return the ceiling for a node and a resource class; ``NO_CEILING`` if there is none."""
        return next(
            (one.capacity for one in self._ceilings if one.resource == resource and one.nodes.match(node)), NO_CEILING
        )


def _parse(text: str) -> _Ceiling:
    """Return the ceiling in a text that matches ``CEILING_PATTERN``."""
    place, _, capacity = text.partition("=")
    pattern, _, resource = place.rpartition("/")
    return _Ceiling(re.compile(translate(pattern or "*")), resource, int(capacity))
