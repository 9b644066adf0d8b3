"""A design in a layout, written ``snapshot@16``: what the control record, commands and readers name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nodestate.config import DESIGN_NAMES
from nodestate.errors import ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT


class StoredDesign(NamedTuple):
    """A design in a layout of ``partitions`` partitions.

    The same design in two layouts is stored twice, under different keys and from different queues.
    """

    design: str
    partitions: int

    def __str__(self) -> str:
        return f"{self.design}@{self.partitions}"


def parse_stored_design(text: str, partitions: int) -> StoredDesign:
    """Parse ``snapshot@16``, or ``snapshot``.

    Args:
        text: the name.
        partitions: the layout that a name without a number belongs to.

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
    """A name for each: the name of the design if all are in one layout, otherwise with the number of partitions."""
    every = list(every)
    one_layout = len({stored.partitions for stored in every}) <= 1
    return {stored: stored.design if one_layout else str(stored) for stored in every}
