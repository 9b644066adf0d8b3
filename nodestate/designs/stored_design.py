"""What a cell keeps its nodes in: a design, in a layout of so many partitions. In words: ``snapshot@16``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nodestate.config import DESIGN_NAMES
from nodestate.errors import ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT


class StoredDesign(NamedTuple):
    """The same design in two layouts is kept twice: under other keys, from other queues."""

    design: str
    partitions: int

    def __str__(self) -> str:
        return f"{self.design}@{self.partitions}"


def parse_stored_design(text: str, partitions: int) -> StoredDesign:
    """What ``snapshot@16`` or ``snapshot`` means, the latter in a layout of so many ``partitions``. Raises ``ConfigError``."""
    design, at, count = text.partition("@")
    if design not in DESIGN_NAMES:
        raise ConfigError(f"no design {design!r}; there are {', '.join(DESIGN_NAMES)}")
    if at and not (count.isascii() and count.isdigit() and 1 <= int(count) <= BUCKETS_COUNT):
        raise ConfigError(f"{text!r}: want {design}@N, with 1 to {BUCKETS_COUNT} partitions")
    return StoredDesign(design, int(count) if at else partitions)


def display_names(every: Iterable[StoredDesign]) -> dict[StoredDesign, str]:
    """What to call each of these: by its design alone where all are of one layout."""
    every = list(every)
    one_layout = len({kept.partitions for kept in every}) <= 1
    return {kept: kept.design if one_layout else str(kept) for kept in every}
