"""The scheduler's library imports no broker, no database and no command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FOREIGN = ("kombu", "amqp", "pymemcache", "sqlalchemy", "alembic", "click", "rich", "structlog", "asyncio")


def imported_after(script: str) -> set[str]:
    """The foreign packages that a new process has imported after a script."""
    told = f"{script}\nimport sys, json; print(json.dumps([name for name in {FOREIGN!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)  # noqa: S603
    return set(json.loads(done.stdout))


def test_importing_nodestate_imports_no_drivers() -> None:
    """A scheduler starts in milliseconds, and contains no driver that it does not use."""
    assert imported_after("import nodestate") == set()


@pytest.mark.parametrize(
    ("settings", "design", "expected"),
    [
        ("store='memcached://localhost:1'", "snapshot", {"pymemcache"}),
        ("store='memcached://localhost:1'", "journal", {"pymemcache"}),
        ("sql='sqlite://'", "sql", {"sqlalchemy"}),
    ],
)
def test_reader_imports_only_the_driver_of_its_design(settings: str, design: str, expected: set[str]) -> None:
    """And no other."""
    script = f"import nodestate; nodestate.Reader(nodestate.Config({settings}), design={design!r})"
    assert imported_after(script) - {"asyncio"} == expected
