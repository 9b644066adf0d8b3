"""The sections that show what was measured, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.report import others, packing, reading, scheduling, storing
from bench.report.document import Section
from bench.report.shelf import Shelf

Build = Callable[[Shelf], Section]

BUILD: Final[tuple[Build, ...]] = (
    reading.following,
    reading.starting,
    reading.growing,
    reading.propagating,
    storing.writing,
    storing.storing,
    storing.amplifying,
    others.recovering,
    others.contending,
    others.beside,
    scheduling.deciding,
    scheduling.racing,
    scheduling.reserving,
    packing.packing,
)


def sections(shelf: Shelf) -> list[Section]:
    """All of them."""
    return [build(shelf) for build in BUILD]
