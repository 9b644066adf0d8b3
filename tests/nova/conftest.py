"""Fixtures of the tests with Nova. Without Nova, no test of this folder is collected."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from harness.servers import MariadbServer

HAS_NOVA = importlib.util.find_spec("nova") is not None
collect_ignore_glob = [] if HAS_NOVA else ["test_*.py"]

if HAS_NOVA:
    os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
    from nova import monkey_patch

    monkey_patch.patch(backend="threading")  # before any other import of Nova

    from tests.nova.nova_cloud import NovaCloud


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.nova)


@pytest.fixture(scope="session")
def cloud(mariadb: MariadbServer, tmp_path_factory: pytest.TempPathFactory) -> NovaCloud:
    """Nova's databases, with one cell besides cell0 and no host. All tests share them and Nova's configuration."""
    return NovaCloud(tmp_path_factory.mktemp("nova"), mariadb)
