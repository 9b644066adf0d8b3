"""Real servers that a test or a benchmark owns: start, stop, kill, pause, on a port that stays the same.

Each server is a program of this machine or, where it is not installed but Docker answers, a container (not so the
databases, which run as the users that their Debian packages made where root starts them). Either way it listens on
127.0.0.1 only and is ended by its process or container id, never by name: a developer's own memcached next to it is
safe.

    stopped --start()--> running --stop() or kill()--> stopped
                         running --pause()--> paused --resume()--> running

``close()`` ends the server for good and removes its files; a server is a context manager that does so. ``stop()``
and ``kill()`` keep them, so that a RabbitMQ's durable queues are there again after ``start()``.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import amqp
import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testcontainers.core.container import DockerContainer

# Linux takes the ports of outgoing connections from 32768 up. A server's port must not be among them: while the
# server is down, a client that retries could be given that very port as its own and connect to itself.
PORT_MIN, PORT_MAX = 15_000, 32_000

MEMCACHED_START_TIMEOUT_S = 15.0
RABBIT_START_TIMEOUT_S = 90.0
DATABASE_START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 2.0
PROBE_INTERVAL_S = 0.02
DOCKER_TIMEOUT_S = 60  # an image may have to be pulled
LOG_TAIL_BYTES = 4_000

RABBIT_MEMORY_MB = 1_024
MARIADB_POOL_MB = 512

DATABASE = "bench"
USER = "bench"
POSTGRES_PROTOCOL = 196_608  # 3.0
REPLY_BYTES = 4_096

MEMCACHED_IMAGE = "memcached:1.6"
RABBIT_IMAGE = "rabbitmq:3"


class ServiceMissing(RuntimeError):  # noqa: N818 - reads as what it is, "skip: ServiceMissing"
    """Raised when a server is neither installed nor to be had as a container; says what would help."""


class ServiceFailed(RuntimeError):  # noqa: N818 - ditto
    """Raised when a server ended, or did not answer in time, while it was started; carries the end of its log."""


# -- where a server runs --------------------------------------------------------------------------


class _Host(Protocol):
    """What runs one server: a process of this machine, several of them, or a container."""

    def start(self) -> None: ...
    def running(self) -> bool: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def log_tail(self) -> str: ...
    def remove(self) -> None: ...


class _Process:
    """A program of this machine. It writes to ``folder/log`` and owns its folder."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        end: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command = command
        self._environment = environment
        self._folder = folder
        self._end = end
        self._log = folder / "log"
        self._popen: psutil.Popen | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._popen = psutil.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the test run, which then ends its servers in order
            )

    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> None:
        if self._popen is None or not self.running():
            return
        self._popen.resume()  # a paused process would not see the signal
        children = self._popen.children(recursive=True)
        self._popen.send_signal(self._end)
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            self.kill()
        _end(children)

    def kill(self) -> None:
        if self._popen is None or not self.running():
            return
        self._popen.suspend()  # or it might have another child by then, which would outlive it with what they share
        children = self._popen.children(recursive=True)
        self._popen.kill()
        self._popen.wait()
        _end(children)

    def pause(self) -> None:
        assert self._popen is not None
        self._popen.suspend()

    def resume(self) -> None:
        assert self._popen is not None
        self._popen.resume()

    def children(self) -> list[psutil.Process]:
        assert self._popen is not None
        children: list[psutil.Process] = self._popen.children(recursive=True)
        return children

    def log_tail(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self._log.exists() else ""

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _end(processes: Sequence[psutil.Process]) -> None:
    """End what a server left behind. psutil compares start times, so a pid that was given anew is not touched."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # not waited for: they are orphans now, which init reaps in its own time


class _Container:
    """A container, made at the first start and kept, with its data, until it is removed."""

    def __init__(self, image: str, inner_port: int, port: int, command: Sequence[str] = ()) -> None:
        # The reaper is a container more, and privileged; the owner of a server closes it.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - reads the line above

        self._container: DockerContainer = DockerContainer(image)
        # docker-py takes an address with the port, testcontainers' annotation does not know it. Without one, the
        # port of a broker whose password is "guest" would be open to the whole network.
        self._container.ports[f"{inner_port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
        if command:
            self._container.with_command(list(command))
        self._made = False

    def start(self) -> None:
        if self._made:
            self._container.get_wrapped_container().start()
        else:
            self._made = True
            self._container.start()

    def running(self) -> bool:
        if not self._made:
            return False
        self._container.reload()
        return self._container.status in {"running", "paused"}

    def stop(self) -> None:
        if self.running():
            self.resume()
            self._container.get_wrapped_container().stop(timeout=int(STOP_TIMEOUT_S))

    def kill(self) -> None:
        if self.running():
            self._container.get_wrapped_container().kill()
            self._container.get_wrapped_container().wait()

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._container.reload()
        if self._container.status == "paused":
            self._container.get_wrapped_container().unpause()

    def log_tail(self) -> str:
        tail: bytes = self._container.get_wrapped_container().logs(tail=40)
        return tail.decode(errors="replace")

    def remove(self) -> None:
        if self._made:  # a fixture may close what the run's end closes again
            self._made = False
            self._container.stop(force=True, delete_volume=True)


@functools.cache
def _docker_answers() -> bool:
    try:
        import docker  # noqa: PLC0415 - comes with testcontainers, which programs of this machine do not need
    except ImportError:
        return False
    try:
        client = docker.from_env(timeout=DOCKER_TIMEOUT_S)
    except docker.errors.DockerException:  # no socket, or none that may be opened
        return False
    with closing(client):
        try:
            return bool(client.ping())
        except (OSError, docker.errors.DockerException):
            return False


def _program(name: str, *first: str) -> str | None:
    """The path of an installed program, looked for in ``first``, PATH, and where Debian keeps servers."""
    path = [*first, os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(path))


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of 127.0.0.1 on which nothing listens."""
    with ExitStack() as held:  # all are held until the last is found, so that none is given out twice
        ports: list[int] = []
        while len(ports) < count:
            port = random.randrange(PORT_MIN, PORT_MAX)
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


# -- servers --------------------------------------------------------------------------------------


class _Server(ABC):
    """What both kinds share: the states of the module's docstring, and waiting until the server really answers."""

    def __init__(self, port: int, host: _Host, start_timeout_s: float) -> None:
        self.port = port
        self._host = host
        self._start_timeout_s = start_timeout_s

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, the same for the server's whole life."""
        return f"127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's address as nodestate's settings take it."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server gives a right answer to its own protocol's first question."""

    @property
    def running(self) -> bool:
        """Whether the server lives, be it paused."""
        return self._host.running()

    def start(self) -> Self:
        """Start the server and return when it answers; raise ServiceFailed, with its log, where it does not."""
        assert not self.running, f"the server at {self.address} runs already"
        self._host.start()
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers():
            ended = not self.running
            if ended or time.monotonic() > deadline:
                problem = "ended" if ended else f"did not answer within {self._start_timeout_s:.0f} s"
                message = f"{type(self).__name__} at {self.address} {problem}:\n{self._host.log_tail()}"
                self._host.kill()
                raise ServiceFailed(message)
            time.sleep(PROBE_INTERVAL_S)
        return self

    def stop(self) -> None:
        """End the server in order and keep its files. A server that does not run is left as it is."""
        self._host.stop()

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. A server that does not run is left as it is."""
        self._host.kill()

    def restart(self) -> Self:
        """Stop and start, on the same port and files."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the server: its connections stay, and nothing is answered."""
        self._host.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self._host.resume()

    def close(self) -> None:
        """End the server for good, in no order that takes time, and remove its files."""
        self._host.remove()

    def __enter__(self) -> Self:
        try:
            return self if self.running else self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class MemcachedServer(_Server):
    """A memcached with ``memory_mb`` for items of at most ``item_max``; ``no_evict`` is ``-M``.

    Nothing survives a stop. ``extra`` is appended to the command line, e.g. ``("-o", "no_lru_crawler")``.
    Raises ServiceMissing.
    """

    def __init__(
        self, memory_mb: int = 64, item_max: str = "1m", *, no_evict: bool = False, extra: Sequence[str] = ()
    ) -> None:
        [port] = free_ports(1)
        limits = ["-m", str(memory_mb), "-I", item_max, *(["-M"] if no_evict else []), *extra]
        host: _Host
        if program := _program("memcached"):
            # memcached refuses to run as root unless it is told whom to be instead.
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", *user, *limits]
            host = _Process(command, Path(tempfile.mkdtemp(prefix="nodestate-memcached-")))
        elif _docker_answers():
            # On IPv4 alone, like the program above: memcached counts each socket it listens on as a connection.
            command = ["memcached", "-l", "0.0.0.0", *limits]  # noqa: S104 - all of a container, which has its own
            host = _Container(MEMCACHED_IMAGE, 11211, port, command)
        else:
            message = "memcached is neither installed (apt-get install memcached) nor to be had through Docker"
            raise ServiceMissing(message)
        super().__init__(port, host, MEMCACHED_START_TIMEOUT_S)

    @property
    def url(self) -> str:
        """``memcached://127.0.0.1:port``."""
        return f"memcached://{self.address}"

    def stop(self) -> None:
        """End the server. It has nothing to save, and its orderly end takes a second: this is ``kill()``."""
        self.kill()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.sendall(b"version\r\n")
                return connection.recv(64).startswith(b"VERSION ")
        except OSError:
            return False


class RabbitServer(_Server):
    """A RabbitMQ node of its own, with a data folder that lasts until ``close()``: durable queues survive ``kill()``.

    Raises ServiceMissing.
    """

    def __init__(self) -> None:
        port, distribution_port, epmd_port = free_ports(3)
        # What Debian puts on PATH is a wrapper that changes the user; the script behind it works for any user.
        program = _program("rabbitmq-server", "/usr/lib/rabbitmq/bin")
        epmd = _program("epmd")
        host: _Host
        if program and epmd:
            host = _RabbitNode(program, epmd, port, distribution_port, epmd_port)
        elif _docker_answers():
            host = _Container(RABBIT_IMAGE, 5672, port)
        else:
            message = "RabbitMQ is neither installed (apt-get install rabbitmq-server) nor to be had through Docker"
            raise ServiceMissing(message)
        super().__init__(port, host, RABBIT_START_TIMEOUT_S)

    @property
    def url(self) -> str:
        """``amqp://guest:guest@127.0.0.1:port//``."""
        return f"amqp://guest:guest@{self.address}//"

    def _answers(self) -> bool:
        try:
            with amqp.Connection(self.address, connect_timeout=PROBE_TIMEOUT_S, read_timeout=PROBE_TIMEOUT_S):
                return True
        except (OSError, amqp.AMQPError):
            return False


class _RabbitNode:
    """A RabbitMQ node and the Erlang port mapper that it needs: both begin and end together.

    Left alone, Erlang starts one port mapper for the whole machine and leaves it behind. This one has its own port.
    """

    def __init__(self, program: str, epmd: str, port: int, distribution_port: int, epmd_port: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="nodestate-rabbit-"))
        epmd_folder = folder / "epmd"
        epmd_folder.mkdir()
        configuration = folder / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{port}\n"
            f"vm_memory_high_watermark.absolute = {RABBIT_MEMORY_MB}MiB\n"
            # A full disk of the machine must not silently block publishers in a test.
            "disk_free_limit.absolute = 10MB\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n",
            encoding="utf-8",
        )
        plugins = folder / "enabled_plugins"
        plugins.write_text("[].\n", encoding="utf-8")
        empty = folder / "rabbitmq-env.conf"
        empty.touch()
        environment = {
            # Nothing of the caller's RABBITMQ_... or ERL_... gets in, nor the machine's /etc/rabbitmq.
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/bin", "/bin"]),
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # where Erlang makes the node's own cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_CONF_ENV_FILE": str(empty),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_NODENAME": f"nodestate-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            # With "input allowed" the script becomes the Erlang machine instead of waiting for it as its parent, so
            # that a signal to this pid is a signal to the broker; -noinput then takes the shell away again.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        self._epmd = _Process([epmd, "-port", str(epmd_port), "-address", "127.0.0.1"], epmd_folder)
        self._epmd_port = epmd_port
        self._node = _Process([program], folder, environment)

    def start(self) -> None:
        self._epmd.start()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not _listens(self._epmd_port):
            if not self._epmd.running() or time.monotonic() > deadline:
                message = f"epmd does not listen on port {self._epmd_port}:\n{self._epmd.log_tail()}"
                self._epmd.kill()
                raise ServiceFailed(message)
            time.sleep(PROBE_INTERVAL_S)
        self._node.start()

    def running(self) -> bool:
        return self._node.running()

    def stop(self) -> None:
        self._node.stop()
        self._epmd.kill()

    def kill(self) -> None:
        self._node.kill()
        self._epmd.kill()

    def pause(self) -> None:
        self._node.pause()

    def resume(self) -> None:
        self._node.resume()

    def log_tail(self) -> str:
        return self._node.log_tail()

    def remove(self) -> None:
        self._epmd.kill()
        self._node.remove()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- databases ------------------------------------------------------------------------------------


def _require(name: str, package: str, *first: str) -> str:
    """The path of a program; raises ServiceMissing with the Debian package that has it."""
    if program := _program(name, *first):
        return program
    raise ServiceMissing(f"{name} is not installed: apt-get install {package}")


def _version(program: str, *arguments: str) -> str:
    """The first number with a dot in what a program says of itself."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - a server's own tool
    found = re.search(r"\d+\.[\w.+~-]+", done.stdout)
    return found.group() if found else "unknown"


def _folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"nodestate-{name}-"))


def _owned_by(user: str, package: str, folder: Path) -> list[str]:
    """What to put before a command so that it runs as ``user``, who is given the folder; nothing unless run by root."""
    if os.geteuid() != 0:
        return []
    try:
        shutil.chown(folder, user, user)
        # It becomes the command instead of waiting for it as its parent, so the pid started is the server's own.
        setpriv = _require("setpriv", "util-linux")
    except (LookupError, ServiceMissing) as error:
        folder.rmdir()
        raise ServiceMissing(f"there is no user {user}, or no setpriv: apt-get install {package} util-linux") from error
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def _prepare(command: Sequence[str], folder: Path) -> None:
    """Run what makes a server's data folder."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603 - ditto
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServiceFailed(f"{Path(command[0]).name} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")


class _AskedServer(_Server):
    """A server that is asked one question over TCP; ``version`` is what its program says."""

    scheme = ""

    def __init__(
        self, port: int, command: Sequence[str], folder: Path, version: str, *, end: signal.Signals = signal.SIGTERM
    ) -> None:
        super().__init__(port, _Process(command, folder, end=end), DATABASE_START_TIMEOUT_S)
        self.version = version
        self.folder = folder

    @property
    def url(self) -> str:
        """``scheme://127.0.0.1:port``."""
        return f"{self.scheme}://{self.address}"

    def _asked(self, question: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.sendall(question)
                return connection.recv(REPLY_BYTES)
        except OSError:
            return b""


class MariadbServer(_AskedServer):
    """A MariaDB with databases, and a user without a password who may do anything in them. ``extra`` is appended to the
    command line. Raises ServiceMissing.
    """

    scheme = "mysql+pymysql"

    def __init__(self, others: Sequence[str] = (), *, extra: Sequence[str] = ()) -> None:
        package = "mariadb-server"
        program = _require("mariadbd", package)
        install = _require("mariadb-install-db", package)
        [port] = free_ports(1)
        folder = _folder("mariadb")
        user = _owned_by("mysql", package, folder)
        first = folder / "first.sql"
        first.write_text(
            f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1';\n"
            + "".join(
                f"CREATE DATABASE IF NOT EXISTS {name};\nGRANT ALL ON {name}.* TO '{USER}'@'127.0.0.1';\n"
                for name in (DATABASE, *others)
            ),
            encoding="utf-8",
        )
        first.chmod(0o644)
        # A MariaDB that starts deletes temporary tables of others where it has its own: none may be shared.
        data = ["--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
        _prepare([*user, install, *data, "--skip-test-db", "--auth-root-authentication-method=normal"], folder)
        command = [
            *[*user, program, *data],
            *[f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={first}"],
            *[f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"],
            *[f"--innodb-buffer-pool-size={MARIADB_POOL_MB}M", *extra],
        ]
        super().__init__(port, command, folder, _version(program, "--version"))

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/{DATABASE}"

    @property
    def admin_url(self) -> str:
        """For a user who may do everything."""
        return f"{self.scheme}://root@localhost/?unix_socket={self.folder / 'socket'}"

    def _answers(self) -> bool:
        return self._asked(b"")[4:5] == b"\x0a"  # the protocol version of its greeting


class PostgresServer(_AskedServer):
    """A PostgreSQL whose superuser is trusted. Raises ServiceMissing."""

    scheme = "postgresql+psycopg"

    def __init__(self) -> None:
        package = "postgresql"
        newest = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), key=_major, reverse=True)
        program = _require("postgres", package, *newest)
        initdb = _require("initdb", package, *newest)
        [port] = free_ports(1)
        folder = _folder("postgres")
        user = _owned_by("postgres", package, folder)
        data = str(folder / "data")
        _prepare([*user, initdb, "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"], folder)
        command = [
            *[*user, program, "-D", data, "-p", str(port)],
            *["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
        ]
        # In order, but without waiting until everybody has hung up.
        super().__init__(port, command, folder, _version(program, "--version"), end=signal.SIGINT)

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/postgres"

    @property
    def admin_url(self) -> str:
        """For a user who may do everything, which this one may."""
        return self.url

    def pause(self) -> None:
        """Freeze the server, with those of its processes that serve a connection each."""
        super().pause()
        for process in self._serving():
            process.suspend()

    def resume(self) -> None:
        """Let a paused server go on."""
        for process in self._serving():
            process.resume()
        super().resume()

    def _serving(self) -> list[psutil.Process]:
        assert isinstance(self._host, _Process)
        return self._host.children()

    def close(self) -> None:
        """End the server in order: killed, it would leave shared memory behind, which is in no folder."""
        self.stop()
        super().close()

    def _answers(self) -> bool:
        content = struct.pack("!i", POSTGRES_PROTOCOL) + f"user\0{USER}\0database\0postgres\0\0".encode()
        return self._asked(struct.pack("!i", len(content) + 4) + content)[:1] == b"R"


def _major(folder: str) -> float:
    return float(Path(folder).parent.name)
