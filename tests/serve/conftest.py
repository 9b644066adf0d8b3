"""Services of tests stop while the next test runs; each module waits for its own at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.running_service import RunningService


@pytest.fixture(scope="module", autouse=True)
def _all_services_stop() -> Iterator[None]:
    yield
    RunningService.wait_until_stopped()
