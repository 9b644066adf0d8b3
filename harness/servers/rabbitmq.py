"""A RabbitMQ node for one test run or benchmark."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import amqp

from harness.servers.errors import ServerFailedError, ServerMissingError
from harness.servers.hosts import ServerContainer, ServerHost, ServerProcess, docker_answers
from harness.servers.programs import find_program, free_ports
from harness.servers.rabbit_links import CuttableLinks
from harness.servers.server import PROBE_INTERVAL_S, PROBE_TIMEOUT_S, START_TIMEOUT_S, Server

RABBIT_IMAGE: Final = "rabbitmq:3"
RABBIT_MEMORY_MB: Final = 1_024


class RabbitServer(Server):
    """A RabbitMQ node. Its data folder stays until ``close()``, so durable queues survive ``kill()``.

    Args:
        configuration: appended to its ``rabbitmq.conf``; only a program of this machine can have any.
        cluster: the port mapper and the cookie that the nodes of a cluster share; None for a node of its own.

    Raises ServerMissingError.
    """

    def __init__(self, configuration: str = "", cluster: PortMapper | CuttableLinks | None = None) -> None:
        port, distribution_port, epmd_port = free_ports(3)
        # Debian puts a wrapper on PATH that changes the user; the script behind it works for any user.
        program = find_program("rabbitmq-server", "/usr/lib/rabbitmq/bin")
        epmd = find_program("epmd")
        host: ServerHost
        self._rabbit_node: RabbitNode | None = None
        """The server if it is a program of this machine; None if it is a container."""
        if program and epmd:
            mapper = cluster or PortMapper(epmd, epmd_port)
            host = self._rabbit_node = RabbitNode(
                program, mapper, port, distribution_port, configuration, owns_mapper=cluster is None
            )
        elif docker_answers() and not configuration and cluster is None:
            host = ServerContainer(RABBIT_IMAGE, 5672, port)
        else:
            message = "RabbitMQ is neither installed (apt-get install rabbitmq-server) nor to be had through Docker"
            raise ServerMissingError(message)
        super().__init__(port, host, START_TIMEOUT_S)

    @property
    def url(self) -> str:
        """``amqp://guest:guest@127.0.0.1:port//``."""
        return f"amqp://guest:guest@{self.address}//"

    def control(self, *words: str, stdin: str = "") -> str:
        """Run ``rabbitmqctl WORDS`` and return its output. Raises ServerMissingError if the server is a container."""
        if self._rabbit_node is None:
            raise ServerMissingError("rabbitmqctl is used only with an installed RabbitMQ")
        return self._rabbit_node.control(words, stdin)

    @property
    def name(self) -> str:
        """The name of the Erlang node."""
        assert self._rabbit_node is not None, "only installed nodes form a cluster"
        return self._rabbit_node.name

    def join(self, other: RabbitServer) -> None:
        """Make this node a member of the cluster of ``other``. It loses its own queues."""
        self.control("stop_app")
        self.control("join_cluster", other.name)
        self.control("start_app")

    def _answers(self) -> bool:
        try:
            with amqp.Connection(self.address, connect_timeout=PROBE_TIMEOUT_S, read_timeout=PROBE_TIMEOUT_S) as probe:
                probe.channel().queue_declare(exclusive=True)  # a new node may answer before it can do this
                return True
        except (OSError, amqp.AMQPError):
            return False


class PortMapper:
    """Erlang's port mapper, of one node or of all nodes of a cluster, and the cookie by which nodes know each other.

    By default Erlang starts one port mapper for the whole machine, which outlives the nodes. This one has its own port.
    """

    def __init__(self, epmd: str, port: int) -> None:
        self.port = port
        """The port on which nodes ask for each other's ports."""
        self.cookie = uuid.uuid4().hex
        """The secret that nodes must have to talk to each other."""
        folder = Path(tempfile.mkdtemp(prefix="nodestate-epmd-"))
        self._process = ServerProcess([epmd, "-port", str(port), "-address", "127.0.0.1"], folder)

    def start(self) -> None:
        """Start the port mapper, and wait until it listens. Does nothing if it runs. Raises ServerFailedError."""
        if self._process.running():
            return
        self._process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(self.port):
            if not self._process.running() or time.monotonic() > deadline:
                message = f"epmd does not listen on port {self.port}:\n{self._process.log_tail()}"
                self._process.kill()
                raise ServerFailedError(message)
            time.sleep(PROBE_INTERVAL_S)

    def kill(self) -> None:
        """End the port mapper and keep its files."""
        self._process.kill()

    def remove(self) -> None:
        """End the port mapper and remove its files."""
        self._process.remove()


class RabbitNode:
    """A RabbitMQ node. If it ``owns_mapper``, its port mapper starts and ends with it."""

    def __init__(
        self,
        program: str,
        mapper: PortMapper | CuttableLinks,
        port: int,
        distribution_port: int,
        more: str,
        *,
        owns_mapper: bool,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="nodestate-rabbit-"))
        cookie = folder / ".erlang.cookie"
        cookie.write_text(mapper.cookie, encoding="ascii")
        cookie.chmod(0o400)
        configuration = folder / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{port}\n"
            f"vm_memory_high_watermark.absolute = {RABBIT_MEMORY_MB}MiB\n"
            # A full disk of the machine must not block publishers in a test without an error.
            "disk_free_limit.absolute = 10MB\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            f"log.file = false\n{more}",
            encoding="utf-8",
        )
        plugins = folder / "enabled_plugins"
        plugins.write_text("[].\n", encoding="utf-8")
        empty = folder / "rabbitmq-env.conf"
        empty.touch()
        name = f"nodestate-{uuid.uuid4().hex[:8]}@localhost"
        environment = {
            # The node gets neither the caller's variables RABBITMQ_... and ERL_... nor the machine's /etc/rabbitmq.
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/bin", "/bin"]),
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # where Erlang looks for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper.port),
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_CONF_ENV_FILE": str(empty),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # The last argument: docs/how-to/cluster-rabbitmq.md.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} -kernel net_setuptime 1"
            ),
            # With "input allowed" the script replaces itself by the Erlang machine instead of waiting for it, so that
            # a signal to this process id reaches the broker; -noinput then disables the Erlang shell.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        self.name = name
        """The name of the Erlang node."""
        self._environment = environment
        self._control = find_program("rabbitmqctl", "/usr/lib/rabbitmq/bin")
        self._mapper = mapper
        self._owns_mapper = owns_mapper
        self._node = ServerProcess([program], folder, environment)

    def start(self) -> None:
        """Start the server; does not wait until it answers."""
        self._mapper.start()
        self._node.start()

    def running(self) -> bool:
        """True from the start to the end of the server, also while it is paused."""
        return self._node.running()

    def stop(self) -> None:
        """End the server in order and keep its files. Does nothing if it does not run."""
        self._node.stop()
        if self._owns_mapper:
            self._mapper.kill()

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. Does nothing if it does not run."""
        self._node.kill()
        if self._owns_mapper:
            self._mapper.kill()

    def pause(self) -> None:
        """Freeze the server."""
        self._node.pause()

    def resume(self) -> None:
        """Let a paused server continue."""
        self._node.resume()

    def control(self, words: Sequence[str], stdin: str) -> str:
        """Run ``rabbitmqctl WORDS`` and return its output."""
        assert self._control is not None, "rabbitmqctl comes with rabbitmq-server"
        done = subprocess.run(  # noqa: S603 - a program of the server's package
            [self._control, "--quiet", "--node", self._environment["RABBITMQ_NODENAME"], *words],
            env=self._environment,
            cwd=self._environment["HOME"],  # Erlang reads the names of all files in the current directory
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"rabbitmqctl {words[0]} exited with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        return self._node.log_tail()

    def remove(self) -> None:
        """Kill the server if it runs and remove its files."""
        self._node.remove()
        if self._owns_mapper:
            self._mapper.remove()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0
