"""A process with a proxy in front of one server, which makes the server unreachable although it goes on to run."""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import Final, Self

from bench.worker import ParentLink, Worker
from bench.workload import require
from harness.proxies import TcpProxy
from harness.servers import free_ports

HOST: Final = "127.0.0.1"
START_LIMIT_S: Final = 60.0
WAIT_S: Final = 0.2


class _Move(Enum):
    CLOSE = auto()
    OPEN = auto()


class Gate:
    """A proxy that can be closed::

        open --close: connections are silent, and new ones are refused--> closed --open: all begin again--> open

    It is a context manager. ``port``: the server's port.
    """

    def __init__(self, port: int) -> None:
        self._worker = Worker(_run_proxy, port)
        self.port = 0
        """The port of the proxy."""

    def __enter__(self) -> Self:
        self._worker.__enter__()
        self._worker.wait_until_ready()
        deadline = time.monotonic() + START_LIMIT_S
        while not self.port:
            require(time.monotonic() < deadline, "a proxy did not start")
            self.port = self._worker.receive(WAIT_S) or 0
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.stop()
        self._worker.__exit__(*error)

    @property
    def address(self) -> str:
        """``host:port`` of the proxy."""
        return f"{HOST}:{self.port}"

    def close(self) -> None:
        """Let nothing pass."""
        self._worker.send(_Move.CLOSE)

    def open(self) -> None:
        """Break the connections on which nothing passed, and let new ones pass."""
        self._worker.send(_Move.OPEN)


def _run_proxy(parent: ParentLink, port: int) -> None:
    [nowhere] = free_ports(1)
    with TcpProxy((HOST, port)) as proxy:
        parent.report_ready()
        parent.send(proxy.port)
        while not parent.should_stop(WAIT_S):
            match parent.receive(0.0):
                case _Move.CLOSE:
                    proxy.target = (HOST, nowhere)
                    proxy.swallow()
                case _Move.OPEN:
                    proxy.target = (HOST, port)
                    proxy.cut()
