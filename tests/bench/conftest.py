"""Fixtures of the tests of bench: scenarios that use the servers of the test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest
import sqlalchemy as sa

from bench import apply, auth, cold, database_environment, propagation, recovery, replicas, worker
from bench.cold_start import FirstView
from bench.peers import peer_scenario
from bench.scheduling import trace
from harness.profile import by_profile
from harness.servers import MariadbServer, PostgresServer, RabbitServer


@pytest.fixture(autouse=True)
def shared_servers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give scenarios the RabbitMQ and the databases of the test run, which take seconds to start.

    A scenario starts servers of its own otherwise. A database is emptied before each use. RabbitMQ keeps the queues of
    earlier scenarios, so each test measures a fleet of another size, which is part of the cell's name.
    """

    def rabbit() -> AbstractContextManager[RabbitServer]:
        return nullcontext(request.getfixturevalue("rabbit"))

    for module in (apply, auth, propagation, recovery, replicas, trace):
        monkeypatch.setattr(module, "RabbitServer", rabbit)
    servers = {name: partial(emptied_database, request, name) for name in ("mariadb", "postgres")}
    monkeypatch.setattr(database_environment, "MariadbServer", servers["mariadb"])
    monkeypatch.setattr(database_environment, "PostgresServer", servers["postgres"])
    sources = [
        replace(source, server=servers[source.name]) if source.name in servers else source
        for source in peer_scenario.SOURCES
    ]
    monkeypatch.setattr(peer_scenario, "SOURCES", sources)


@contextmanager
def emptied_database(request: pytest.FixtureRequest, fixture: str) -> Iterator[MariadbServer | PostgresServer]:
    """Drop all tables of a database of the test run, and lend the database."""
    server = request.getfixturevalue(fixture)
    tables = sa.MetaData()
    with sa.create_engine(server.url, poolclass=sa.NullPool).begin() as connection:
        tables.reflect(connection)
        tables.drop_all(connection)
    yield server


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of scenarios from a process that has imported bench, as the figures of such a run do not count.

    In the thorough profile each is a new interpreter, and so is each process that is asked for as a fresh one.
    """
    if by_profile(fast=True, thorough=False):
        forking = get_context("forkserver")
        forking.set_forkserver_preload(["bench.command"])
        monkeypatch.setattr(worker, "get_context", lambda _method: forking)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scenarios call functions in this process. One test of each scenario keeps the new processes."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        # This process may have memory left for a view, but a figure must be positive.
        return replace(result, resident_bytes=max(1, result.resident_bytes)) if type(result) is FirstView else result

    for module in (cold, peer_scenario):
        monkeypatch.setattr(module, "run_in_fresh_process", call)


@pytest.fixture
def few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``apply`` move so few events that one round takes a second."""
    monkeypatch.setattr(apply, "EVENTS_MIN", 1_000)
    monkeypatch.setattr(apply, "ROUNDS_MAX", 1)
