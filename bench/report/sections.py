"""The sections that show what was measured, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.report import consumer_sections, fault_sections, reader_sections, scheduler_sections, trace_section
from bench.report.document import Section
from bench.report.records import Records

Build = Callable[[Records], Section]

BUILD: Final[tuple[Build, ...]] = (
    reader_sections.following,
    reader_sections.starting,
    reader_sections.growing,
    reader_sections.propagating,
    consumer_sections.writing,
    consumer_sections.storing,
    consumer_sections.amplifying,
    fault_sections.recovering,
    fault_sections.contending,
    fault_sections.beside,
    scheduler_sections.deciding,
    scheduler_sections.racing,
    scheduler_sections.reserving,
    trace_section.packing,
)


def sections(records: Records) -> list[Section]:
    """All of them."""
    return [build(records) for build in BUILD]
