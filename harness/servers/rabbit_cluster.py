"""A cluster of RabbitMQ nodes on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from harness.servers.errors import ServerMissingError
from harness.servers.programs import find_program, free_ports
from harness.servers.rabbitmq import PortMapper, RabbitServer


class RabbitCluster:
    """RabbitMQ nodes that form one cluster within a ``with`` statement. Raises ServerMissingError.

    Args:
        count: number of nodes.
    """

    def __init__(self, count: int = 3) -> None:
        epmd = find_program("epmd")
        if epmd is None:
            raise ServerMissingError("a cluster needs an installed RabbitMQ (apt-get install rabbitmq-server)")
        self._mapper = PortMapper(epmd, free_ports(1)[0])
        self.nodes = [RabbitServer(cluster=self._mapper) for _ in range(count)]
        """The nodes. A test that stops one of them starts it again."""
        self._open = ExitStack()

    @property
    def url(self) -> str:
        """The URLs of all nodes, separated by semicolons: a process that loses one node tries the next one."""
        return ";".join(node.url for node in self.nodes)

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.callback(self._mapper.remove)
            for node in self.nodes:
                opening.enter_context(node)
            for node in self.nodes[1:]:
                node.join(self.nodes[0])
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
