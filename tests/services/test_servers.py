"""The servers that other tests use do what their methods say: a fault test on a broker that loses messages is
worthless.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import kombu
import psutil
import pytest

from harness.servers import (
    MemcachedServer,
    RabbitServer,
    ServerFailedError,
    ServerMissingError,
    find_program,
    free_ports,
    memcached,
    rabbitmq,
)
from harness.servers.programs import PORT_MAX, PORT_MIN
from harness.waiting import PATIENCE_S

pytestmark = pytest.mark.service


def ask(server: MemcachedServer, request: bytes, timeout_s: float = 2.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout_s) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


class TestMemcached:
    def test_restarted_server_keeps_its_address_and_loses_its_items(self, memcached: MemcachedServer) -> None:
        address = memcached.address
        assert ask(memcached, b"set k 0 0 1\r\nv\r\n") == b"STORED\r\n"

        memcached.restart()

        assert memcached.address == address
        assert memcached.url == f"memcached://{address}"
        assert ask(memcached, b"get k\r\n") == b"END\r\n"

    def test_killed_server_refuses_connections_and_can_be_started_again(self, memcached: MemcachedServer) -> None:
        memcached.kill()
        with pytest.raises(ConnectionRefusedError):
            ask(memcached, b"version\r\n")

        memcached.start()
        assert ask(memcached, b"version\r\n").startswith(b"VERSION ")

    def test_paused_server_keeps_its_items_and_answers_no_request(self, memcached: MemcachedServer) -> None:
        """The fault "timed out, outcome unknown": the kernel still accepts the bytes."""
        ask(memcached, b"set k 0 0 1\r\nv\r\n")

        memcached.pause()
        with pytest.raises(TimeoutError):
            ask(memcached, b"get k\r\n", timeout_s=0.2)

        memcached.resume()
        assert ask(memcached, b"get k\r\n") == b"VALUE k 0 1\r\nv\r\nEND\r\n"

    def test_paused_server_can_be_stopped(self, memcached: MemcachedServer) -> None:
        memcached.pause()
        memcached.stop()
        assert not memcached.running

    def test_server_runs_with_the_limits_that_it_was_given(
        self, memcached_factory: Callable[..., MemcachedServer]
    ) -> None:
        server = memcached_factory(memory_mb=32, item_max="2m", no_evict=True, extra=("-o", "no_lru_crawler"))

        settings = ask(server, b"stats settings\r\n").decode().split("\r\n")

        assert "STAT maxbytes 33554432" in settings
        assert "STAT item_size_max 2097152" in settings
        assert "STAT evictions off" in settings
        assert "STAT lru_crawler no" in settings
        server.close()

    def test_error_of_a_server_that_does_not_start_contains_its_log(self) -> None:
        with (
            pytest.raises(ServerFailedError, match=r"MemcachedServer at .* ended:\n.*no-such-option"),
            MemcachedServer(extra=("--no-such-option",)),
        ):
            pass

    def test_error_names_the_package_of_a_server_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (memcached, rabbitmq):
            monkeypatch.setattr(module, "find_program", lambda *_: None)
            monkeypatch.setattr(module, "docker_answers", lambda: False)
        with pytest.raises(ServerMissingError, match="apt-get install memcached"):
            MemcachedServer()
        with pytest.raises(ServerMissingError, match="apt-get install rabbitmq-server"):
            RabbitServer()


class TestRabbit:
    @pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.thorough)])
    def test_persistent_message_in_a_durable_queue_survives_the_end_of_the_server(
        self, rabbit: RabbitServer, cell: str, end: str
    ) -> None:
        """Tests of I6 kill this broker, so it must itself lose nothing that it confirmed."""
        url = rabbit.url
        with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
            queue = connection.SimpleQueue(cell)
            queue.put({"n": 1}, delivery_mode="persistent")
            queue.close()

        getattr(rabbit, end)()
        assert not rabbit.running
        rabbit.start()

        assert rabbit.url == url
        with kombu.Connection(url) as connection:
            queue = connection.SimpleQueue(cell)
            message = queue.get(timeout=PATIENCE_S)
            assert message.payload == {"n": 1}
            message.ack()
            queue.close()

    def test_closed_node_leaves_no_process_and_no_file(
        self, rabbit: RabbitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By default Erlang's port mapper outlives its node; and one folder left by each run would fill the disk."""
        if find_program("epmd") is None:
            pytest.skip("RabbitMQ runs in a container here")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        before = set(psutil.Process().children(recursive=True))

        # The run's own node goes on: two nodes on one machine do not know each other.
        with RabbitServer():
            started = set(psutil.Process().children(recursive=True)) - before
            assert {"epmd", "beam.smp"} <= {process.name() for process in started}

        assert rabbit.running
        _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
        assert alive == []
        assert list(tmp_path.iterdir()) == []


def test_free_ports_differ_and_are_never_given_to_outgoing_connections() -> None:
    """A client that retries and gets the port of the dead server as its own would connect to itself and block the
    restart.
    """
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(PORT_MIN <= port < PORT_MAX for port in ports)
