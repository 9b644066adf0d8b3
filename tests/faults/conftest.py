"""What the fault tests share: a whole cell at the push of a button, and a place for times to converge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cell import CellUnderTest
from tests.services.servers import RabbitServer

_RECORDS: list[tuple[str, str]] = []

CellFactory = Callable[..., CellUnderTest]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a measured figure for the end of the run. Figures are printed, not asserted: two busy cores say little."""
    return lambda text: _RECORDS.append((request.node.name, text))


@pytest.fixture
def cell_of(tmp_path: Path, cell: str, rabbit: RabbitServer, record: Callable[[str], None]) -> CellFactory:
    """Compose a cell over the run's RabbitMQ (or another broker) and the given store."""

    def compose(store: str, *, broker: str | None = None, **options: Any) -> CellUnderTest:
        return CellUnderTest(tmp_path, record, cell=cell, broker=broker or rabbit.url, store=store, **options)

    return compose


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was recorded."""
    if _RECORDS:
        terminalreporter.section("times to converge")
        for name, text in _RECORDS:
            terminalreporter.write_line(f"{name}: {text}")
