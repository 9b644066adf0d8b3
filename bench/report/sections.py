"""The sections of measurements, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.report import consumer_sections, fault_sections, reader_sections, scheduler_sections, trace_section
from bench.report.document import Section
from bench.report.records import Records

Build = Callable[[Records], Section]

BUILD: Final[tuple[Build, ...]] = (
    reader_sections.refreshing,
    reader_sections.starting,
    reader_sections.growing,
    reader_sections.propagating,
    consumer_sections.applying,
    consumer_sections.storing,
    consumer_sections.amplifying,
    fault_sections.recovering,
    fault_sections.contending,
    fault_sections.comparing_peers,
    scheduler_sections.deciding,
    scheduler_sections.racing,
    scheduler_sections.reserving,
    trace_section.packing,
)


def measured(records: Records) -> list[Section]:
    """Return all sections of measurements."""
    return [build(records) for build in BUILD]
