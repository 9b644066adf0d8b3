"""The agent: reads sources of state, and keeps the cell told about their nodes."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from nodestate.agent.admission import Admission
from nodestate.agent.diff import InexpressibleError, diff_patch
from nodestate.agent.incarnation import IncarnationLock, state_directory
from nodestate.agent.publisher import PAUSE_S, Publisher, concerns
from nodestate.agent.sources import AdmittingSource, FullState, NodeGone, NodeSilent, Reading, StatePatch, StateSource
from nodestate.config import Config
from nodestate.errors import (
    BadEventError,
    BrokerUnavailableError,
    NodestateError,
    SourceUnavailableError,
    UnconfirmedError,
)
from nodestate.ports import AgentInbox, Clock, Resync, Sink
from nodestate.ports.backoff import Backoff

MAX_WAIT_S: Final = 0.25
"""``run`` looks at least so often whether it is told to stop."""


@dataclass(slots=True)
class AgentStats:
    """Counters of one agent, since its start."""

    reports: int = 0
    changes: int = 0
    heartbeats: int = 0
    resyncs: int = 0
    censuses: int = 0
    sent_again: int = 0
    admitted: int = 0
    refused: int = 0
    ended: int = 0
    bad: int = 0
    broker_errors: int = 0


@dataclass(slots=True)
class _Feed:
    """One source, with its life and when it is due."""

    source: StateSource
    incarnation: int
    life: IncarnationLock | None
    poll_at: float
    failing: bool = False


class Agent:
    """Publishes what its sources say.

    For each node::

        (unknown) --whole state--> report --part, or another whole state: what differs--> change
        every heartbeat_s, each node at its own phase: heartbeat, unless its source can't be read
        resync that concerns it: report, at a random moment of the request's jitter
        lost while the broker was away: one report of the newest state, when it is back
        gone, or ``close(leave=True)``: leave
        silent: nothing, until it is read again
        an order: what it changed, or that it was refused, as a change; then the answer (``Admission``)

    ``step`` is a plain function of an injected clock, sources and sink, so that a seeded simulation can run it; it
    never raises for outages. All nodes of a source share its incarnation: one file per source, not per node.
    Without ``leave`` the nodes stay known when the agent ends, and grow stale: an agent that is updated should not
    empty the view. The sink is the caller's to close.
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
    ) -> None:
        self.config = config
        self.stats = AgentStats()
        self.publishers: dict[str, Publisher] = {}
        self._sink = sink
        self._inbox = inbox
        self._clock = clock
        self._rng = rng
        self._log = structlog.get_logger("nodestate.agent")
        self._backoff = Backoff(clock, rng, config.heartbeat_s / 2)
        self._away = False
        self._dirty: set[str] = set()
        self._heartbeats: list[tuple[float, str]] = []
        self._answers: list[tuple[float, str]] = []
        self._answering: set[str] = set()
        self._feeds: list[_Feed] = []
        self._feed_of: dict[str, _Feed] = {}
        self._silent: set[str] = set()
        self._unheard: list[str] = []
        self._admission = Admission(clock, self.publishers, self._admitting, self._take_done)
        try:
            for source in sources:
                life, number = None, incarnation
                if number is None:
                    life = IncarnationLock(state_directory(config), source.name, clock.time())
                    number = life.incarnation
                self._feeds.append(_Feed(source, number, life, clock.monotonic()))
        except NodestateError:
            self._end_lives()
            raise

    # -- running

    def step(self, wait_s: float = 0.0) -> float:
        """Do all that is due, after waiting up to ``wait_s`` for a request. Returns seconds until more is due."""
        self._take_resyncs(wait_s)
        self._take_orders()
        now = self._clock.monotonic()
        for feed in self._feeds:
            if feed.poll_at <= now:
                feed.poll_at = max(now, feed.poll_at + feed.source.every_s)
                self._poll(feed, now)
        self._listen()
        self._beat(now)
        self._answer(now)
        self._send_again()
        return self._idle_s()

    def run(self, until: Callable[[], bool]) -> None:
        """Step until told to stop."""
        wait_s = 0.0
        while not until():
            wait_s = self.step(min(wait_s, MAX_WAIT_S))

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has the newest state of every node. Raises ``UnconfirmedError``."""
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
                raise UnconfirmedError(len(self._dirty), timeout_s)
            self._clock.sleep(min(remaining, max(PAUSE_S, self._backoff.wait_s)))

    def leave(self) -> None:
        """Every node goes for good."""
        for name in list(self.publishers):
            self._leave(name)

    def close(self, *, leave: bool = False) -> None:
        """End in order: flush for at most ``broker_timeout_s``, after leaving if asked. Raises ``UnconfirmedError``."""
        try:
            if leave:
                self.leave()
            self.flush(self.config.broker_timeout_s)
        finally:
            for feed in self._feeds:
                feed.source.close()
            self._end_lives()

    def _end_lives(self) -> None:
        for feed in self._feeds:
            if feed.life is not None:
                feed.life.close()

    # -- the state of nodes

    def _poll(self, feed: _Feed, now: float) -> None:
        try:
            for reading in feed.source.poll(now):
                self._take(feed, reading, now)
        except SourceUnavailableError as error:
            if not feed.failing:
                self._log.error("source can't be read; its nodes get no heartbeats", why=str(error))
            feed.failing = True
            return
        if feed.failing:
            self._log.info("source is read again", source=feed.source.name)
        feed.failing = False

    def _take(self, feed: _Feed, reading: Reading, now: float) -> None:
        try:
            if isinstance(reading, NodeGone):
                self._leave(reading.node)
                self._listen_no_more(reading.node)
                return
            if isinstance(reading, NodeSilent):
                self._silent.add(reading.node)
                return
            self._silent.discard(reading.node)
            publisher = self.publishers.get(reading.node)
            if publisher is None:
                publisher = self._meet(feed, reading.node, now)
            if isinstance(reading, FullState):
                self._take_whole(publisher, reading.state)
            else:
                publisher.change(reading.patch)
                self.stats.changes += 1
        except BadEventError as error:
            self.stats.bad += 1
            self._log.error("source gave a bad state", node=reading.node, reason=error.reason, detail=error.detail)

    def _take_whole(self, publisher: Publisher, state: Mapping[str, Any]) -> None:
        state = self._admission.refusals.merged_into(publisher.node, state)
        if publisher.live:
            try:
                patch = diff_patch(publisher.state(), dict(state))
            except InexpressibleError:
                pass  # a report can
            else:
                if patch:
                    publisher.change(patch)
                    self.stats.changes += 1
                return
        if not publisher.live:
            self._unheard.append(publisher.node)
        publisher.report(state)
        self.stats.reports += 1

    def _meet(self, feed: _Feed, name: str, now: float) -> Publisher:
        publisher = Publisher(
            self.config,
            name,
            sink=self._sink,
            inbox=self._inbox,
            clock=self._clock,
            incarnation=feed.incarnation,
            backoff=self._backoff,
            on_dirty=self._dirty.add,
            rng=self._rng,
        )
        self.publishers[name] = publisher
        self._feed_of[name] = feed
        heapq.heappush(self._heartbeats, (now + self._rng.uniform(0.0, self.config.heartbeat_s), name))
        return publisher

    def _leave(self, name: str) -> None:
        publisher = self.publishers.get(name)
        if publisher is not None and publisher.live:
            publisher.leave()

    # -- what is due

    def _beat(self, now: float) -> None:
        while self._heartbeats and self._heartbeats[0][0] <= now:
            due, name = self._heartbeats[0]
            # Late ones are not made up for; each keeps its phase.
            missed = (now - due) // self.config.heartbeat_s
            heapq.heapreplace(self._heartbeats, (due + (missed + 1) * self.config.heartbeat_s, name))
            publisher = self.publishers[name]
            if publisher.live and name not in self._silent and not self._feed_of[name].failing:
                publisher.heartbeat()
                self.stats.heartbeats += 1

    def _answer(self, now: float) -> None:
        if not self._backoff.ready:
            return
        while self._answers and self._answers[0][0] <= now:
            _, name = heapq.heappop(self._answers)
            self._answering.discard(name)
            publisher = self.publishers[name]
            if publisher.version.generation > 0 and name not in self._silent:
                publisher.republish()
                self.stats.reports += 1

    def _send_again(self) -> None:
        if not self._dirty or not self._backoff.ready:
            return
        dirty = list(self._dirty)
        self._dirty.clear()
        for name in dirty:
            publisher = self.publishers[name]
            publisher.tick()
            if publisher.dirty:
                self._dirty.add(name)
            else:
                self.stats.sent_again += 1

    def _idle_s(self) -> float:
        due = [feed.poll_at for feed in self._feeds]
        due += [heap[0][0] for heap in (self._heartbeats, self._answers) if heap]
        idle_s = max(0.0, min(due, default=float("inf")) - self._clock.monotonic())
        return min(idle_s, self._backoff.wait_s) if self._dirty else idle_s

    # -- requests

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
            if self._away:
                self._away = False
                self._log.info("broker is back", to_send_again=len(self._dirty))

    def _take_resync(self, resync: Resync) -> None:
        names = [name for name in self._concerned(resync) if name not in self._silent]
        if resync.census:
            for name in names:
                self.publishers[name].answer_census(resync.census)
            self.stats.censuses += 1
            return
        now = self._clock.monotonic()
        for name in names:
            if name not in self._answering:
                self._answering.add(name)
                heapq.heappush(self._answers, (now + self._rng.uniform(0.0, resync.jitter_s), name))
        self.stats.resyncs += bool(names)

    def _concerned(self, resync: Resync) -> Sequence[str]:
        """In the order of names, so that a seed determines who answers when."""
        if resync.nodes and not resync.partitions:
            return sorted(name for name in set(resync.nodes) if name in self.publishers)
        return sorted(name for name, one in self.publishers.items() if concerns(resync, name, one.bucket))

    # -- orders

    def _take_orders(self) -> None:
        """Those that came with the resyncs. Nodes that are silent say nothing here either."""
        if not self._backoff.ready:
            return
        try:
            orders = [order for order in self._inbox.orders() if order.node not in self._silent]
            answers = self._admission.carry_out(orders)
            for order, answer in zip(orders, answers, strict=True):
                if order.reply_to and self._backoff.ready:
                    self._inbox.answer(order.reply_to, answer)
        except BrokerUnavailableError as error:
            self._broker_failed(error)
        self.stats.admitted = self._admission.admitted
        self.stats.refused = self._admission.refused
        self.stats.ended = self._admission.ended

    def _admitting(self, name: str) -> AdmittingSource | None:
        source = self._feed_of[name].source
        return source if isinstance(source, AdmittingSource) else None

    def _take_done(self, reading: FullState | StatePatch) -> None:
        self._take(self._feed_of[reading.node], reading, self._clock.monotonic())

    def _listen(self) -> None:
        """For the orders of nodes that were met."""
        if not self._unheard:
            return
        unheard, self._unheard = self._unheard, []
        try:
            self._inbox.listen_for(unheard)
        except BrokerUnavailableError as error:  # the sink knows them now, and tells the broker when it is back
            self._broker_failed(error)

    def _listen_no_more(self, name: str) -> None:
        try:
            self._inbox.stop_listening_for([name])
        except BrokerUnavailableError as error:
            self._broker_failed(error)

    def _broker_failed(self, error: NodestateError) -> None:
        self.stats.broker_errors += 1
        self._backoff.failed()
        if not self._away:
            self._away = True
            self._log.warning("broker is away; what changes is sent when it is back", why=str(error))
