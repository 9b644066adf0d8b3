"""The layouts of a cell at the broker: a member's share of each, and the end of one."""

from __future__ import annotations

import msgspec

from nodestate.broker.link import AmqpLink, open_link, unavailable
from nodestate.broker.source import KombuSource
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.ports import Clock


class KombuLayouts:
    """``ports.Layouts`` over kombu, for member ``number`` (from 1) of so many ``members``: it takes every ``members``-th
    partition at once, and stands by for the others.
    """

    def __init__(self, config: Config, number: int, members: int, clock: Clock) -> None:
        self._config = config
        self._number = number
        self._members = members
        self._clock = clock
        self.sees_consumers = True
        """Whether the transport can tell who consumes, as far as known: since ``delete``."""

    def open(self, partitions: int) -> KombuSource:
        """A connection for this member's share of a layout; made with its first call."""
        first = range(self._number - 1, partitions, self._members)
        standby = [partition for partition in range(partitions) if partition not in first]
        return KombuSource(self._of(partitions), first, standby, self._clock)

    def delete(self, partitions: int, *, unseen: bool = False) -> bool:
        """See ``ports.Layouts``. ``unseen``: also where the transport can't tell whether somebody consumes (Redis, ``memory://``), as the
        caller knows that nobody does.
        """
        config = self._of(partitions)
        topology = Topology.of(config)
        link = open_link(config, "layouts")
        try:
            depths = [link.depth(name) for _, name in topology.queues()]
            consumers = [depth.consumers for depth in depths if depth is not None]
            self.sees_consumers = None not in consumers
            if any(consumers) or (None in consumers and not unseen):
                return False
            return link.delete(topology)
        except link.errors as error:
            raise unavailable(config, error) from error
        finally:
            link.close()

    def set_aside(self, partitions: int, used: int) -> int:
        """See ``ports.Layouts``. Where the transport can't tell who consumes, nothing is touched."""
        topology = Topology.of(self._of(partitions))
        link = open_link(self._of(used), "layouts", layout=True)
        try:
            depths = {name: link.depth(name) for _, name in topology.queues()}
            found = {name: depth for name, depth in depths.items() if depth is not None}
            if not isinstance(link, AmqpLink) or any(depth.consumers for depth in found.values()):
                return 0
            for partition, name in topology.queues():
                if name in found:
                    link.set_aside(topology, partition, name)
            left = [link.depth(name) for name in found]
            return sum(depth.ready for depth in left if depth is not None)
        except link.errors as error:
            raise unavailable(self._config, error) from error
        finally:
            link.close()

    def _of(self, partitions: int) -> Config:
        return msgspec.structs.replace(self._config, partitions=partitions)
