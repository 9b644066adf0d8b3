"""The results of a selection: the chosen nodes, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remaining:
    """The number of nodes that were left after a filter."""

    filter: str
    """The filter's name; ``all`` for the number before the first filter."""
    nodes: int
    """How many nodes were left."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A resource class of which no node had enough."""

    resource: str
    """The class."""
    wanted: int
    """The amount that the request asks for."""
    free: int
    """The largest free amount on a node that passed the filters before ``resources``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The node for one instance, or the reasons why there is none."""

    instance: str
    """The instance's id."""
    node: str | None
    """The best node; None if no node passes the filters."""
    alternates: tuple[str, ...] = ()
    """The next best nodes."""
    remaining: tuple[Remaining, ...] = ()
    """If there is no node: how many nodes each filter left, in their order."""
    unknown: str = ""
    """If there is no node: the node, zone or instance that the request names and that does not exist; else empty."""
    lacks: tuple[Lack, ...] = ()
    """If there is no node: the resource classes of which no node had enough."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why nodes rank as they do."""

    remaining: tuple[Remaining, ...]
    """How many nodes each filter leaves, in their order."""
    best: tuple[tuple[str, dict[str, float]], ...]
    """The best nodes, each with its weight by every weigher, multiplied by the weigher's multiplier."""
