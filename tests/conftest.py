"""What all tests share: real servers of their own, names of their own, and Hypothesis' two speeds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from harness.servers import (
    MariadbServer,
    MemcachedServer,
    PostgresServer,
    RabbitServer,
    ServerMissingError,
    free_ports,
)

# The default finds the same thing every time, so that red means "this commit" and never "bad luck"; new examples are
# hunted on purpose, with HYPOTHESIS_PROFILE=thorough. No deadline: two busy cores say nothing about the code.
settings.register_profile("fast", max_examples=50, derandomize=True, deadline=None)
settings.register_profile(
    "thorough",
    max_examples=2_000,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

REDIS_START_TIMEOUT_S = 30.0

MemcachedFactory = Callable[..., MemcachedServer]


def _missing(error: ServerMissingError) -> NoReturn:
    """Skip at a desk, fail in CI: a green run there must mean that the servers were really asked."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """One RabbitMQ for the whole run. Tests share it, so they name what they declare after their ``cell``.

    A test that stops or kills it starts it again, whatever else happens.
    """
    try:
        server = RabbitServer()
    except ServerMissingError as error:
        _missing(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def memcached_factory() -> Iterator[MemcachedFactory]:
    """Start a fresh memcached per call, with MemcachedServer's arguments; all are ended with the run at the latest."""
    with ExitStack() as servers:

        def make(**limits: Any) -> MemcachedServer:
            try:
                return servers.enter_context(MemcachedServer(**limits))
            except ServerMissingError as error:
                _missing(error)

        yield make


@pytest.fixture
def memcached(memcached_factory: MemcachedFactory) -> Iterator[MemcachedServer]:
    """A fresh, empty memcached for one test."""
    server = memcached_factory()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """One MariaDB for the whole run, without tables. As with ``rabbit``, who stops it starts it again."""
    try:
        server = MariadbServer()
    except ServerMissingError as error:
        _missing(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run, as ``mariadb``."""
    try:
        server = PostgresServer()
    except ServerMissingError as error:
        _missing(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        pytest.skip("redis-server and the redis package are not both installed; Redis is an option, RabbitMQ the rule")
    [port] = free_ports(1)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:  # noqa: S603 - found on PATH above
        try:
            deadline = time.monotonic() + REDIS_START_TIMEOUT_S
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline, "redis-server does not listen"
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


@pytest.fixture
def cell() -> str:
    """A cell name that no other test has: its keys, exchanges and queues are nobody else's."""
    return f"t-{uuid.uuid4().hex[:12]}"
