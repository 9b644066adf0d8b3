"""What the fault tests share: a whole cell at the push of a button, and a place for times to converge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from harness.cell import Cell
from harness.servers import RabbitServer

RECORD: Final = "record"

CellFactory = Callable[..., Cell]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a measured figure for the end of the run. Figures are printed, not asserted: two busy cores say little."""
    return lambda text: request.node.user_properties.append((RECORD, text))


@pytest.fixture
def cell_of(tmp_path: Path, cell: str, rabbit: RabbitServer, record: Callable[[str], None]) -> CellFactory:
    """Compose a cell over the run's RabbitMQ (or another broker) and the given store."""

    def compose(store: str, *, broker: str | None = None, **options: Any) -> Cell:
        return Cell(tmp_path, record, cell=cell, broker=broker or rabbit.url, store=store, **options)

    return compose


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was recorded, in whichever process."""
    records = [
        (report.nodeid.rpartition("::")[2], text)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == RECORD
    ]
    if records:
        terminalreporter.section("times to converge")
        for name, text in records:
            terminalreporter.write_line(f"{name}: {text}")
