"""Resync requests: ask agents for full reports of the nodes whose state is incomplete.

partition that began incomplete       --> one request for all its nodes
node with a gap in its generations    --> requests with a pause that doubles, until a report makes the node complete

One request asks for all reports that are due at the same time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.statistics import ConsumerStats
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import Clock, Resync, ResyncSender
from nodestate.ports.backoff import DoublingPause, next_pause_s

MAX_RESYNC_NODES_COUNT: Final = 1_000
"""Most nodes that one request names. If more nodes need a report, the request names their partitions instead."""
MAX_RESYNC_PAUSE_S: Final = 60.0
"""Longest pause before a node is asked for a report again. The pauses grow up to this length because a node whose
reports are refused causes a dead letter with every request.
"""
FIRST_RESYNC_PAUSE_S: Final = 1.0
"""Pause before the second request to a node. The jitter of the answers is used instead if it is longer."""
SEND_RETRY_S: Final = 0.2
"""Pause after the first request that the broker does not take. It doubles with each further failure."""


class ResyncBackoff(NamedTuple):
    """The time of the next request to an incomplete node that was asked for a report."""

    again_at: float
    """The earliest time of the next request, in monotonic seconds."""
    pause_s: float
    """The pause before that request, in seconds. The next pause is twice as long, up to a limit."""


class ResyncRequests:
    """Sends the resync requests of one consumer."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        sender: ResyncSender,
        session: BrokerSession,
        stats: ConsumerStats,
        clock: Clock,
    ) -> None:
        self._config = config
        """Gives the layout, and the jitter with which agents answer."""
        self._owned = owned
        """The partitions that may need reports."""
        self._sender = sender
        """Broadcasts to the agents."""
        self._session = session
        """Counts failures of the broker."""
        self._stats = stats
        """Counts requests."""
        self._clock = clock
        """Monotonic time."""
        self._due_at = clock.monotonic()
        """No request is sent before this time, in monotonic seconds. It lies ahead only after a failure."""
        self._failure_pause = DoublingPause(SEND_RETRY_S, MAX_RESYNC_PAUSE_S)
        """Gives the pause after each failure of the broker."""

    def send_due(self) -> None:
        """Send one request for all reports that are needed and due. Sends none if there are none.

        If any partition needs a full resync, the request names partitions only; the single nodes are asked next time.
        """
        now = self._clock.monotonic()
        if now < self._due_at:
            return
        partitions = [partition for partition in self._owned if partition.needs_full_resync]
        nodes = self._incomplete_nodes(now)
        if len(nodes) > MAX_RESYNC_NODES_COUNT:
            partitions += {partition.number: partition for partition, _ in nodes}.values()
        if not partitions and not nodes:
            return
        if partitions:
            numbers = tuple(partition.number for partition in partitions)
            request = Resync((), numbers, self._config.partitions, self._config.resync_jitter_s)
        else:
            request = Resync(nodes=tuple(name for _, name in nodes), jitter_s=0.0)
        try:
            self._sender.request_resync(request)
        except BrokerUnavailableError as error:
            self._session.count_failure(error)
            # If the broker is short of memory, each try waits for its whole time-out, so tries must become rarer.
            self._due_at = self._clock.monotonic() + self._failure_pause.lengthen()
            return
        self._failure_pause.reset()
        self._stats.resyncs += 1
        self._note_sent(partitions, nodes, now)

    def _incomplete_nodes(self, now: float) -> list[tuple[OwnedPartition, str]]:
        """Return the incomplete nodes whose pause is over, except in partitions that need a full resync.

        ``now`` is in monotonic seconds. Each node comes with its partition.
        """
        return [
            (partition, name)
            for partition in self._owned
            for name in partition.incomplete
            if not partition.needs_full_resync
            and (name not in partition.resync_backoffs or partition.resync_backoffs[name].again_at <= now)
        ]

    def _note_sent(self, partitions: list[OwnedPartition], nodes: list[tuple[OwnedPartition, str]], now: float) -> None:
        """Record a request that was sent: start or double the pause of every node that was asked.

        Args:
            partitions: the partitions that the request named. Their incomplete nodes were asked, too.
            nodes: the nodes to ask, each with its partition.
            now: monotonic seconds.
        """
        asked = set(nodes)
        for partition in partitions:
            if partition.needs_full_resync and not partition.complete:
                partition.complete_after = max(partition.complete_after, now + self._config.settle_s)
            partition.needs_full_resync = False
            asked.update((partition, name) for name in partition.incomplete)
        for partition, name in asked:
            before = partition.resync_backoffs.get(name)
            last_s = before.pause_s if before else 0.0
            first_s = max(FIRST_RESYNC_PAUSE_S, self._config.resync_jitter_s)
            pause_s = next_pause_s(last_s, first_s, MAX_RESYNC_PAUSE_S)
            partition.resync_backoffs[name] = ResyncBackoff(now + pause_s, pause_s)
