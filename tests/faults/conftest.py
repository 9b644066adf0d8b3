"""Fixtures of the fault tests: a whole cell in one call, and a place for the times that recoveries take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from harness.cell import Cell
from harness.profile import by_profile
from harness.servers import RabbitServer

RECORD: Final = "record"
CHANGES_PER_S: Final = by_profile(fast=150.0, thorough=300.0)

CellFactory = Callable[..., Cell]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a measured figure until the end of the run.

    Figures are printed and not asserted: they depend on the machine.
    """
    return lambda text: request.node.user_properties.append((RECORD, text))


@pytest.fixture
def cell_of(tmp_path: Path, cell: str, rabbit: RabbitServer, record: Callable[[str], None]) -> CellFactory:
    """Compose a cell with the given store over the run's RabbitMQ, or over another broker."""

    def compose(store: str, *, broker: str | None = None, **options: Any) -> Cell:
        options.setdefault("rate", CHANGES_PER_S)
        return Cell(tmp_path, record, cell=cell, broker=broker or rabbit.url, store=store, **options)

    return compose


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the recorded figures of all worker processes."""
    records = [
        (report.nodeid.rpartition("::")[2], text)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == RECORD
    ]
    if records:
        terminalreporter.section("figures")
        for name, text in records:
            terminalreporter.write_line(f"{name}: {text}")
