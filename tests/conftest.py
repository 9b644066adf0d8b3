"""Fixtures of all tests: real servers, cell names, and the Hypothesis profile of the run."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, NoReturn

import pytest
import structlog

from harness.certificates import CertificateAuthority
from harness.processes import forked_processes
from harness.profile import by_profile, load_profiles
from harness.servers import (
    MariadbServer,
    MemcachedServer,
    PostgresServer,
    RabbitServer,
    RedisServer,
    ServerMissingError,
)

pytest_plugins = ["harness.run_cost"]

load_profiles()

MemcachedFactory = Callable[..., MemcachedServer]


def skip_or_fail(error: ServerMissingError) -> NoReturn:
    """Skip the test; fail it if the environment variable CI is "true", so that a green run has asked every server."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    """Undo the logging of a command that ran in this process, so that the next test sees all log entries."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    """Fork processes of nodestate from one that has imported it; in the thorough profile each is a new interpreter."""
    with by_profile(fast=forked_processes, thorough=nullcontext)():
        yield


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """One RabbitMQ for the whole run. All tests share it, so a test names its exchanges and queues after its ``cell``.

    A test that stops or kills the server must start it again, also if the test fails.
    """
    try:
        server = RabbitServer()
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """A function that returns its argument, and closes it at the end of the test."""
    with ExitStack() as stack:

        def keep(thing: Any) -> Any:
            stack.callback(thing.close)
            return thing

        yield keep


@pytest.fixture(scope="session")
def memcached_factory() -> Iterator[MemcachedFactory]:
    """Start a new memcached at each call, with MemcachedServer's arguments.

    All of them end with the run at the latest.
    """
    with ExitStack() as servers:

        def make(**limits: Any) -> MemcachedServer:
            try:
                return servers.enter_context(MemcachedServer(**limits))
            except ServerMissingError as error:
                skip_or_fail(error)

        yield make


@pytest.fixture
def memcached(memcached_factory: MemcachedFactory) -> Iterator[MemcachedServer]:
    """A new, empty memcached for one test. Its start takes about 20 ms, so no test shares one."""
    server = memcached_factory()
    yield server
    server.close()


@pytest.fixture(scope="session")
def authority() -> Iterator[CertificateAuthority]:
    """One authority for the whole run, which signs the certificates of servers and clients."""
    try:
        made = CertificateAuthority()
    except ServerMissingError as error:
        skip_or_fail(error)
    yield made
    made.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """One MariaDB without tables for the whole run. A test that stops it must start it again, as with ``rabbit``."""
    try:
        # Durable against the death of the process, as tests need it, though not against a loss of power.
        server = MariadbServer(extra=["--innodb-flush-log-at-trx-commit=2"])
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL without tables for the whole run. A test that stops it must start it again, as with ``rabbit``."""
    try:
        server = PostgresServer(extra=["-c", "fsync=off"])  # as above
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of one Redis for the whole run, as the setting ``broker`` takes it."""
    if importlib.util.find_spec("redis") is None:
        skip_or_fail(ServerMissingError("the client is not installed: pip install 'nodestate[redis]'"))
    try:
        server = RedisServer()
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield f"{server.url}/0"


@pytest.fixture
def cell() -> str:
    """A cell name that no other test has: no other test uses its keys, exchanges and queues."""
    return f"t-{uuid.uuid4().hex[:12]}"
