"""The agent: reads nodes through sources of state, publishes the nodes' events, and carries out orders."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from nodestate.agent.admission import Admission
from nodestate.agent.agent_stats import AgentStats
from nodestate.agent.cordons import Cordons
from nodestate.agent.diff import InexpressibleError, diff_patch
from nodestate.agent.name_conflicts import NameConflicts
from nodestate.agent.polled_source import PolledSource, open_sources
from nodestate.agent.publisher import FLUSH_PAUSE_S, Publisher
from nodestate.agent.resync_scope import concerned_nodes
from nodestate.agent.schedules import HeartbeatSchedule, ReportSchedule
from nodestate.agent.sources import (
    AdmittingSource,
    FullState,
    NodeGone,
    NodeSilent,
    Reading,
    StatePatch,
    StateSource,
)
from nodestate.auth import event_auth
from nodestate.config import Config
from nodestate.errors import (
    BadEventError,
    BrokerUnavailableError,
    ConfigError,
    SourceUnavailableError,
    UnconfirmedError,
)
from nodestate.ports import AgentInbox, Clock, Resync, Sink
from nodestate.ports.backoff import Backoff

MAX_WAIT_S: Final = 0.25
"""Longest wait of one step of ``run``. Between two steps, ``run`` checks whether it should stop."""


class Agent:
    """Publishes the events of the nodes that its sources read, and carries out orders for them.

    For each node::

        (unknown) --full state--> report --patch, or another full state: the difference--> change
        every heartbeat_s, each node at its own phase --> heartbeat, unless its source can't be read
        a resync request that concerns the node --> report, at a random moment of the request's jitter
        an event was lost while the broker was away --> one report of the newest state, when the broker is back
        the source says that the node is gone, or ``close(leave=True)`` --> leave
        the source says that the node is silent --> nothing, until the source reads the node again
        an agent of higher rank reports the node --> nothing, until that agent is gone (``NameConflicts``)
        an order --> its effect or its refusal as a change, and then the answer (``Admission``)

    ``step`` uses only an injected clock, sources, sink and inbox, so a seeded simulation can run it. It raises nothing
    if the broker or a source is away. All nodes of a source share one incarnation, which is stored in one file.

    If the agent ends without ``leave``, its nodes stay in the view and become stale: an agent that is restarted for an
    update must not remove its nodes from the view. The caller closes ``sink`` and ``inbox``.

    Args:
        sources: the sources to read. ``close`` closes them.
        sink: takes the events of all nodes.
        clock: wall-clock and monotonic time.
        rng: chooses the phases of heartbeats and the moments of requested reports.
        inbox: gives resync requests and orders.
        incarnation: of all nodes, without a file and a lock; None: of each source, the next one from its file.
        state_dir: where cordons are stored if ``incarnation`` is given; None: the agent refuses to cordon nodes.
        life: a random token of this process; empty for a new one.
        host: the name of this machine; empty to ask the machine.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[StateSource],
        sink: Sink,
        clock: Clock,
        rng: random.Random,
        *,
        inbox: AgentInbox,
        incarnation: int | None = None,
        state_dir: Path | None = None,
        life: str = "",
        host: str = "",
    ) -> None:
        self.config = config
        """Settings of the cell."""
        self.stats = AgentStats()
        """Counters since the start."""
        self.publishers: dict[str, Publisher] = {}
        """The publisher of each node that a source has read, by name."""
        self._sink = sink
        """Takes the events."""
        self._inbox = inbox
        """Gives resync requests and orders."""
        self._clock = clock
        """Monotonic time for polls and pauses; wall-clock time for events and deadlines."""
        self._rng = rng
        """Chooses random moments for all nodes."""
        self._log = structlog.get_logger("nodestate.agent")
        """The agent's logger."""
        self._backoff = Backoff(clock, rng, config.heartbeat_s / 2)
        """Gives the pause after a failed call of the broker; all publishers share it."""
        self._auth = event_auth(config, clock)
        """Signs the events of all nodes."""
        self._broker_away = False
        """True from a failed call of the broker until the next one that works."""
        self._dirty: set[str] = set()
        """Names of the nodes of which an event was lost, and whose newest state must be sent again."""
        self._heartbeats = HeartbeatSchedule(config.heartbeat_s, rng)
        """When each node's heartbeat is due."""
        self._requested_reports = ReportSchedule(rng)
        """When each node's report for a resync request is due."""
        self._sources = open_sources(config, sources, clock, incarnation, state_dir)
        """All sources."""
        self._source_of: dict[str, PolledSource] = {}
        """The source of each node, by the node's name."""
        self._silent: set[str] = set()
        """Names of the nodes that do not answer their source. The agent sends no events and no answers for them."""
        self._not_listened_for: list[str] = []
        """New nodes, whose orders the inbox must begin to receive."""
        self._admission = Admission(
            clock, self.publishers, self._admitting_source, self._cordons_of, self._publish_outcome
        )
        """Carries out orders."""
        self._conflicts = NameConflicts(
            inbox, clock, self.publishers, self._publish_outcome, life, host, config.heartbeat_s
        )
        """Finds other agents that report the same nodes."""

    # -- running

    def step(self, wait_s: float = 0.0) -> float:
        """Wait up to ``wait_s`` seconds for a request or an order, then do everything that is due.

        Returns the seconds until the next poll or event is due.
        """
        self._take_resyncs(wait_s)
        self._take_orders()
        now = self._clock.monotonic()
        for polled in self._sources:
            if polled.poll_at <= now:
                polled.poll_at = max(now, polled.poll_at + polled.source.every_s)
                self._poll(polled, now)
        self._listen_for_new_nodes()
        self._send_heartbeats(now)
        self._send_requested_reports(now)
        self._send_again()
        return self._idle_s()

    def run(self, until: Callable[[], bool]) -> None:
        """Step until ``until`` returns True."""
        wait_s = 0.0
        while not until():
            wait_s = self.step(min(wait_s, MAX_WAIT_S))

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has the newest state of every node.

        Raises ``UnconfirmedError`` after ``timeout_s`` seconds.
        """
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self._send_again()
            remaining = max(0.0, deadline - self._clock.monotonic())
            try:
                self._sink.flush(remaining)
            except BrokerUnavailableError as error:
                self._broker_failed(error)
            if not self._dirty:
                return
            if remaining <= 0:
                raise UnconfirmedError(len(self._dirty), timeout_s, self._backoff.cause)
            self._clock.sleep(min(remaining, max(FLUSH_PAUSE_S, self._backoff.wait_s)))

    def leave(self) -> None:
        """Publish that every node is gone for good."""
        for name in list(self.publishers):
            self._leave(name)

    def close(self, *, leave: bool = False) -> None:
        """Stop the agent: flush for at most ``broker_timeout_s`` seconds, and close the sources.

        Args:
            leave: publish first that every node is gone for good.

        Raises:
            UnconfirmedError: if some events may not have arrived at the broker. The sources are closed in any case.
        """
        try:
            if leave:
                self.leave()
            self.flush(self.config.broker_timeout_s)
        finally:
            for polled in self._sources:
                polled.close_source()
            for polled in self._sources:
                polled.close_lock()

    # -- readings of the sources

    def _poll(self, polled: PolledSource, now: float) -> None:
        try:
            for reading in polled.readings(now):
                self._publish_reading(polled, reading, now)
        except SourceUnavailableError as error:
            if not polled.failing:
                self._log.error("source can't be read; its nodes get no heartbeats", reason=str(error))
            polled.failing = True
            return
        if polled.failing:
            self._log.info("source is read again", source=polled.source.name)
        polled.failing = False

    def _publish_reading(self, polled: PolledSource, reading: Reading, now: float) -> None:
        try:
            if isinstance(reading, NodeGone):
                self._leave(reading.node)
                self._conflicts.keep(reading)
                self._stop_listening_for(reading.node)
                return
            if isinstance(reading, NodeSilent):
                self._silent.add(reading.node)
                return
            self._silent.discard(reading.node)
            if self._conflicts.keep(reading):
                return
            publisher = self.publishers.get(reading.node)
            if publisher is None:
                publisher = self._add_node(polled, reading.node, now)
            if isinstance(reading, FullState):
                self._publish_full_state(publisher, reading.state)
            else:
                publisher.change(polled.cordons.added_to_patch(reading.node, reading.patch))
                self.stats.changes += 1
        except BadEventError as error:
            self.stats.bad += 1
            self._log.error("source gave an invalid state", node=reading.node, reason=error.reason, detail=error.detail)

    def _publish_full_state(self, publisher: Publisher, state: Mapping[str, Any]) -> None:
        """Publish the difference between ``state`` and the last state of a live node, as a change if a patch can.

        A node that is new or has left gets a report. Publishes nothing if a live node has this state already.
        """
        node = publisher.node
        state = self._conflicts.merged_into(node, self._admission.refusals.merged_into(node, state))
        state = self._cordons_of(node).added_to(node, state)
        if publisher.live:
            try:
                patch = diff_patch(publisher.state(), dict(state))
            except InexpressibleError:
                pass  # publish a report below
            else:
                if patch:
                    publisher.change(patch)
                    self.stats.changes += 1
                return
        if not publisher.live:
            self._not_listened_for.append(publisher.node)
        publisher.report(state)
        self.stats.reports += 1

    def _add_node(self, polled: PolledSource, name: str, now: float) -> Publisher:
        self._source_of[name] = polled
        self._heartbeats.add(name, now)
        return self._add_publisher(name, polled.incarnation)

    def _take_back(self, name: str) -> None:
        """Report a node again whose other agent is gone, as a higher incarnation than that agent's."""
        polled, lost = self._source_of[name], self._conflicts.lost[name]
        try:
            incarnation = polled.incarnation_above(lost.other_incarnation, self._clock.time())
        except ConfigError as error:
            lost.unanswered_count = 0  # try again later
            self._log.error("node can't be reported again", node=name, reason=str(error))
            return
        self._add_publisher(name, incarnation)
        state = FullState(name, polled.cordons.removed_from(name, self._conflicts.take_back(name)))
        self._publish_reading(polled, state, self._clock.monotonic())

    def _add_publisher(self, name: str, incarnation: int) -> Publisher:
        publisher = Publisher(
            self.config,
            name,
            sink=self._sink,
            inbox=self._inbox,
            clock=self._clock,
            incarnation=incarnation,
            backoff=self._backoff,
            on_dirty=self._dirty.add,
            rng=self._rng,
            auth=self._auth,
        )
        self.publishers[name] = publisher
        return publisher

    def _leave(self, name: str) -> None:
        publisher = self.publishers.get(name)
        if publisher is not None and publisher.live and name not in self._conflicts.lost:
            publisher.leave()
            self.stats.leaves += 1
            self._conflicts.announce_leave(name)

    # -- events that are due

    def _send_heartbeats(self, now: float) -> None:
        for name in self._heartbeats.due(now):
            publisher = self.publishers[name]
            if publisher.live and not self._is_mute(name) and not self._source_of[name].failing:
                publisher.heartbeat()
                self.stats.heartbeats += 1

    def _send_requested_reports(self, now: float) -> None:
        if not self._backoff.ready:
            return
        for name in self._requested_reports.due(now):
            publisher = self.publishers[name]
            if publisher.version.generation > 0 and not self._is_mute(name):
                publisher.republish()
                self.stats.reports += 1

    def _send_again(self) -> None:
        """Publish the newest state of every node of which an event was lost."""
        if not self._dirty or not self._backoff.ready:
            return
        dirty = [name for name in self._dirty if name not in self._conflicts.lost]
        self._dirty.clear()
        for name in dirty:
            publisher = self.publishers[name]
            publisher.tick()
            if publisher.dirty:
                self._dirty.add(name)
            else:
                self.stats.sent_again += 1

    def _idle_s(self) -> float:
        """Return the seconds until the next poll, heartbeat, requested report or try to reach the broker."""
        due = [polled.poll_at for polled in self._sources]
        due += [self._heartbeats.next_at, self._requested_reports.next_at]
        idle_s = max(0.0, min(due) - self._clock.monotonic())
        return min(idle_s, self._backoff.wait_s) if self._dirty else idle_s

    # -- resync requests

    def _take_resyncs(self, wait_s: float) -> None:
        if not self._backoff.ready:
            self._clock.sleep(min(wait_s, self._backoff.wait_s))
            return
        try:
            for resync in self._inbox.resyncs(wait_s):
                self._take_resync(resync)
        except BrokerUnavailableError as error:
            self._broker_failed(error)
        else:
            self._backoff.worked()
            if self._broker_away:
                self._broker_away = False
                self._conflicts.announce_contested()
                self._log.info("broker is back", nodes_to_send_again=len(self._dirty))

    def _take_resync(self, resync: Resync) -> None:
        """Answer a census at once. For any other request, schedule a report of each node that the request concerns."""
        names = [name for name in concerned_nodes(resync, self.publishers) if not self._is_mute(name)]
        if resync.census:
            for name in names:
                self.publishers[name].answer_census(resync.census)
            self.stats.censuses += 1
            return
        now = self._clock.monotonic()
        for name in names:
            self._requested_reports.add(name, now, resync.jitter_s)
        self.stats.resyncs += bool(names)

    # -- orders

    def _take_orders(self) -> None:
        """Carry out and answer the orders that have come. Orders for mute nodes are dropped without an answer."""
        if not self._backoff.ready:
            return
        try:
            received = self._inbox.orders()
            self._conflicts.receive(self._inbox.presences())
            for name in self._conflicts.unanswered():
                self._take_back(name)
            orders = [order for order in received if not self._is_mute(order.node)]
            answers = self._admission.carry_out(orders)
            for order, answer in zip(orders, answers, strict=True):
                self.stats.count_order(type(order).__name__.lower(), answer.refused or "done")
                if order.reply_to and self._backoff.ready:
                    self._inbox.answer(order.reply_to, answer)
            self._conflicts.send_due()
        except BrokerUnavailableError as error:
            self._broker_failed(error)
        stats, admission = self.stats, self._admission
        stats.admitted, stats.refused, stats.ended = admission.admitted, admission.refused, admission.ended

    def _is_mute(self, name: str) -> bool:
        """Return whether the agent sends nothing for a node: it is silent, or another agent reports it."""
        return name in self._silent or name in self._conflicts.lost

    def _admitting_source(self, name: str) -> AdmittingSource | None:
        source = self._source_of[name].source
        return source if isinstance(source, AdmittingSource) else None

    def _cordons_of(self, name: str) -> Cordons:
        return self._source_of[name].cordons

    def _publish_outcome(self, reading: FullState | StatePatch) -> None:
        self._publish_reading(self._source_of[reading.node], reading, self._clock.monotonic())

    def _listen_for_new_nodes(self) -> None:
        if not self._not_listened_for:
            return
        nodes, self._not_listened_for = self._not_listened_for, []
        try:
            self._conflicts.add(nodes)
            self._inbox.listen_for(nodes)
            if self._backoff.ready:
                self._conflicts.send_due()
        except BrokerUnavailableError as error:  # the inbox has noted the nodes, and listens when the broker is back
            self._broker_failed(error)

    def _stop_listening_for(self, name: str) -> None:
        try:
            self._inbox.stop_listening_for([name])
        except BrokerUnavailableError as error:
            self._broker_failed(error)

    def _broker_failed(self, error: BrokerUnavailableError) -> None:
        self.stats.broker_errors += 1
        self._backoff.failed(error.cause)
        if not self._broker_away:
            self._broker_away = True
            self._log.warning("broker is away; changes are sent when it is back", reason=str(error))
