"""The results of a selection: chosen nodes, and why these or none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remaining:
    """How many nodes were left after a filter."""

    filter: str
    nodes: int


@dataclass(frozen=True, slots=True)
class Lack:
    """A resource class that no node had enough of: how much was ``wanted``, and the most that was ``free`` on one of those
    that the filters before ``resources`` had left.
    """

    resource: str
    wanted: int
    free: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an instance goes, with the next best; ``node`` is None where it fits nowhere, and ``remaining`` then says why:
    which filter left how many nodes, from all of them on, ``unknown`` what was named that is nowhere, ``lacks`` what
    no node had enough of.
    """

    instance: str
    node: str | None
    alternates: tuple[str, ...] = ()
    remaining: tuple[Remaining, ...] = ()
    unknown: str = ""
    lacks: tuple[Lack, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why nodes rank as they do: the filters as in ``Choice``, and the best nodes with the weight of each weigher, by its
    multiplier.
    """

    remaining: tuple[Remaining, ...]
    best: tuple[tuple[str, dict[str, float]], ...]
