"""A design in a layout. The control record, commands and readers name it in the form ``snapshot@16``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nodestate.config import DESIGN_NAMES
from nodestate.errors import ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT


class StoredDesign(NamedTuple):
    """A design in a layout of ``partitions`` partitions.

    A design that is written in two layouts is stored twice, under different keys and from different queues.
    """

    design: str
    """Name of the design."""
    partitions: int
    """Number of partitions of the layout."""

    def __str__(self) -> str:
        return f"{self.design}@{self.partitions}"


def parse_stored_design(text: str, partitions: int) -> StoredDesign:
    """Parse a name such as ``snapshot@16`` or ``snapshot``.

    Args:
        text: the name.
        partitions: number of partitions to use if the name has none.

    Raises:
        ConfigError: if there is no such design, or the number of partitions is out of range.
    """
    design, at, count = text.partition("@")
    if design not in DESIGN_NAMES:
        raise ConfigError(f"no design {design!r}; give one of {', '.join(DESIGN_NAMES)}")
    if at and not (count.isascii() and count.isdigit() and 1 <= int(count) <= BUCKETS_COUNT):
        raise ConfigError(f"{text!r} names no design in a layout; give {design}@N, with N from 1 to {BUCKETS_COUNT}")
    return StoredDesign(design, int(count) if at else partitions)


def display_names(every: Iterable[StoredDesign]) -> dict[StoredDesign, str]:
    """Return a name to display for each design.

    If all are in one layout, it is the name of the design. Otherwise it has the number of partitions: ``snapshot@16``.
    """
    every = list(every)
    one_layout = len({stored.partitions for stored in every}) <= 1
    return {stored: stored.design if one_layout else str(stored) for stored in every}
