"""A cluster of RabbitMQ nodes on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final, Self

from harness.servers.errors import ServerMissingError
from harness.servers.programs import find_program, free_ports
from harness.servers.rabbit_links import CuttableLinks
from harness.servers.rabbitmq import PortMapper, RabbitServer
from harness.waiting import wait_until

CLUSTER_CONFIGURATION: Final = "cluster_partition_handling = pause_minority\nnet_ticktime = 3\n"


class RabbitCluster:
    """RabbitMQ nodes that form one cluster within a ``with`` statement. Raises ServerMissingError.

    The nodes have the settings that docs/how-to/cluster-rabbitmq.md recommends.

    Args:
        count: number of nodes.
        cuttable: whether ``cut_off`` can cut the links between nodes. Their messages then pass through this process.
    """

    def __init__(self, count: int = 3, *, cuttable: bool = False) -> None:
        epmd = find_program("epmd")
        if epmd is None:
            raise ServerMissingError("a cluster needs an installed RabbitMQ (apt-get install rabbitmq-server)")
        self._links = CuttableLinks() if cuttable else None
        """The links between nodes, if they can be cut."""
        self._mapper = self._links or PortMapper(epmd, free_ports(1)[0])
        """The port mapper of all nodes."""
        self.nodes = [RabbitServer(CLUSTER_CONFIGURATION, self._mapper) for _ in range(count)]
        """The nodes. A test that stops one of them starts it again."""
        self._open = ExitStack()

    @property
    def url(self) -> str:
        """The URLs of all nodes, separated by semicolons: a process that loses one node tries the next one."""
        return ";".join(node.url for node in self.nodes)

    def cut_off(self, *nodes: RabbitServer) -> None:
        """Cut the links between these nodes and the others, as a broken network would; without nodes, restore all.

        Clients reach all nodes.
        """
        assert self._links is not None, "RabbitCluster(cuttable=True)"
        self._links.cut_off(*(node.name for node in nodes))

    @staticmethod
    def resume(node: RabbitServer) -> None:
        """Let a frozen node continue, and restart its RabbitMQ, as an operator must.

        RabbitMQ 3.10.8 does not notice by itself that the others left it out while it was frozen.
        """
        node.resume()
        node.control("stop_app")
        node.control("start_app")

    def wait_until_whole(self) -> None:
        """Wait until all nodes see each other, and each quorum queue would survive the loss of any of them."""
        wait_until(lambda: all(self._is_whole_at(node) for node in self.nodes), "a node is not in the cluster again")

    def _is_whole_at(self, node: RabbitServer) -> bool:
        question = "{length(rabbit_nodes:all_running()), length(rabbit_quorum_queue:list_with_minimum_quorum())}."
        try:
            return node.control("eval", question).strip() == f"{{{len(self.nodes)},0}}"
        except AssertionError:  # it restarts
            return False

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
