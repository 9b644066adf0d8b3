"""The results of a selection: the chosen node for each instance, or the reasons why no node was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodestate.scheduling.selection.node_faults import RecentFault


@dataclass(frozen=True, slots=True)
class Remaining:
    """How many nodes remained after one filter and all filters before it were applied."""

    filter: str
    """The filter's name. The name ``all`` stands for the number of nodes before the first filter."""
    nodes: int
    """The number of nodes that passed this filter and all filters before it."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A requested resource class that no candidate had enough of.

    Candidates are the nodes that passed every filter before the filter ``resources``.
    """

    resource: str
    """The name of the resource class."""
    wanted: int
    """The amount that one instance needs."""
    free: int
    """The largest free amount on a candidate; 0 if no candidate has any."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The node that was chosen for one instance, or the reasons why no node was found."""

    instance: str
    """The instance's id."""
    node: str | None
    """The best node; None if no node passed all filters."""
    alternates: tuple[str, ...] = ()
    """The next best nodes, the best first, at most as many as ``Request.alternates``."""
    remaining: tuple[Remaining, ...] = ()
    """If no node was found, how many nodes remained after each filter, in the order of the filters; else empty."""
    unknown: str = ""
    """A sentence such as ``no node is in zone az9``, if no node was found because the request names a node, zone or
    instance that does not exist; else empty.
    """
    lacks: tuple[Lack, ...] = ()
    """If no node was found, the resource classes that no candidate had enough of; else empty."""
    removed: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """By filter, the nodes that it excluded and no filter before it did."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explanation of a selection: what each filter excluded, and what each weigher gave to the best nodes."""

    remaining: tuple[Remaining, ...]
    """How many nodes remain after each filter, in the order of the filters."""
    best: tuple[tuple[str, dict[str, float]], ...]
    """The best nodes, the best first. Each node comes with a map from the name of each weigher to the points
    that the weigher gave: its weight times its multiplier.
    """
    refused: tuple[RecentFault, ...] = ()
    """The nodes whose rank is lowered because their agent was gone, failed or did not answer, the latest fault first.
    The points of ``refused`` in ``best`` are the loss.
    """
