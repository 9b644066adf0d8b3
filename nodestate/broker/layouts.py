"""The layouts of a cell at the broker: opening a member's share of one, and ending one."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import msgspec

from nodestate.broker.connector import one_off_session
from nodestate.broker.source import KombuSource
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.ports import Clock


class KombuLayouts:
    """``ports.Layouts`` over kombu, for member ``number`` (from 1) of ``members``.

    The member takes every ``members``-th partition of a layout at once, and stands by for the others.
    """

    def __init__(self, config: Config, number: int, members: int, clock: Clock) -> None:
        self._config = config
        """The cell's settings."""
        self._number = number
        """This member's number, from 1."""
        self._members = members
        """Number of members."""
        self._clock = clock
        """The clock of the sources that it opens."""
        self.sees_consumers = True
        """False once ``delete`` has found that the transport cannot count a queue's consumers."""
        self._search: Future[list[int]] | None = None
        """The search of ``found`` that is under way."""

    def open(self, partitions: int) -> KombuSource:
        """A source for this member's share of a layout; it connects at its first call."""
        first = range(self._number - 1, partitions, self._members)
        standby = [partition for partition in range(partitions) if partition not in first]
        return KombuSource(self._with_partitions(partitions), first, standby, self._clock)

    def delete(self, partitions: int, *, unseen: bool = False) -> bool:
        """Delete the queues of a layout with the messages that wait in them, by the word of an operator.

        Returns False, and deletes nothing, if a queue has a consumer. Redis and ``memory://`` cannot count consumers:
        there it deletes only with ``unseen``, by which the caller states that the queues have no consumers.
        """
        config = self._with_partitions(partitions)
        topology = Topology.of(config)
        with one_off_session(config, "layouts") as session:
            counts = [session.queues.counts(name) for _, name in topology.queues()]
            consumers = [count.consumers for count in counts if count is not None]
            self.sees_consumers = None not in consumers
            if any(consumers) or (None in consumers and not unseen):
                return False
            return session.queues.delete(topology)

    def found(self) -> list[int] | None:
        """All layouts that have queues; see ``ports.Layouts``.

        A thread of its own asks: RabbitMQ answers hundreds of requests one after the other, and the caller has to renew
        its partitions meanwhile.
        """
        if self._search is None:
            self._search = Future()
            threading.Thread(target=self._look, args=(self._search,), name="layouts", daemon=True).start()
        if not self._search.done():
            return None
        search, self._search = self._search, None
        return search.result()

    def _look(self, search: Future[list[int]]) -> None:
        try:
            with one_off_session(self._config, "layouts") as session:
                search.set_result(session.queues.layouts(Topology.of(self._config)))
        except Exception as error:  # noqa: BLE001 - raised again by ``found``
            search.set_exception(error)

    def set_aside(self, partitions: int, used: int) -> int:
        """Stop routing events into the queues of an unused layout, and delete them if all are empty.

        Returns the number of messages that wait in them. If messages wait in one queue, the empty ones stay as well:
        ``found`` looks for the first queue of a layout. Does nothing if a queue has a consumer, or if the transport
        cannot count consumers.
        """
        topology = Topology.of(self._with_partitions(partitions))
        with one_off_session(self._with_partitions(used), "layouts", layout=True) as session:
            queues = session.queues
            counts = {name: queues.counts(name) for _, name in topology.queues()}
            found = {name: count for name, count in counts.items() if count is not None}
            if any(count.consumers is None or count.consumers > 0 for count in found.values()):
                return 0
            waiting = sum(
                queues.set_aside(topology, partition, name) for partition, name in topology.queues() if name in found
            )
            if not waiting:
                queues.delete(topology)
            return waiting

    def _with_partitions(self, partitions: int) -> Config:
        return msgspec.structs.replace(self._config, partitions=partitions)
