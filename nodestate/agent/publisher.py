"""The publisher: authors the events of one node, and makes sure that its newest state arrives."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Self

import msgspec

from nodestate.agent.incarnation import IncarnationLock, state_directory
from nodestate.broker import KombuSink
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError, UnconfirmedError
from nodestate.model import (
    MAX_EVENT_BYTES,
    Change,
    FoldOutcome,
    Heartbeat,
    Leave,
    NodeRecord,
    Receipt,
    Report,
    Version,
    fold,
    parse_event,
)
from nodestate.model.partitioning import bucket_of
from nodestate.ports import AgentInbox, Clock, Resync, Sink, SystemClock
from nodestate.ports.backoff import Backoff

ENVELOPE_BYTES: Final = 1024
"""Bytes that a report adds to its state at most: names, version, time."""
FLUSH_PAUSE_S: Final = 0.05
"""Pause of ``flush`` before it tries a sink again that is away."""

_encode = msgspec.msgpack.Encoder().encode


def concerns(resync: Resync, node: str, bucket: int) -> bool:
    """True if this request asks the node for a report. ``bucket``: the node's bucket."""
    if resync.nodes or resync.partitions:
        return node in resync.nodes or bucket % resync.layout in resync.partitions
    return True


class Publisher:
    r"""Authors the events of one node: the only writer of its generation.

    The node, as readers will see it once the broker has everything::

        new --report--> live --report, change: generation + 1--> live --leave: + 1--> gone --report: + 1--> live
                              \--heartbeat: the same generation

    The delivery of its events::

        clean --sent--> clean --confirmed--> clean
        clean --an event could not be sent, or was lost unconfirmed--> dirty
        dirty --any call, or tick, once the broker is back: one report of the newest state (or one leave), with a new
            generation, in place of everything that was lost--> clean

    A lost event makes the publisher dirty unless a full state of a later generation was sent since: that state
    supersedes all earlier events, and its own delivery decides. So while the publisher is clean, the newest full state
    and every change after it are confirmed or under way. A lost heartbeat does no harm. A change while dirty is sent as
    a report as well, because it could not be applied without the lost events.

    Each call returns a receipt, even while the broker is away: the event that is sent later has the receipt's version
    or a newer one. An invalid state or change raises ``BadEventError``, and nothing is sent or changed. Only the newest
    state is kept, however long the broker is away.

    Many publishers may share one ``sink`` (a fleet). They should then share ``backoff``, and the owner of the sink
    reads the resync requests from its inbox. A publisher without a ``sink`` opens a connection of its own, and answers
    resync requests in ``heartbeat`` and ``tick``. Not safe for several threads.

    Args:
        sink: takes the events; None opens a connection.
        inbox: answers a census, if ``sink`` is given.
        incarnation: the node's incarnation; None takes the next one from the file of this machine, and locks the name.
        backoff: when the broker is tried again.
        on_dirty: called with the node's name each time the publisher becomes dirty.
    """

    __slots__ = (
        "_answer_at",
        "_backoff",
        "_clock",
        "_config",
        "_dirty",
        "_full_state_generation",
        "_inbox",
        "_incarnation",
        "_lock",
        "_on_dirty",
        "_owns_sink",
        "_record",
        "_rng",
        "_sink",
        "bucket",
        "node",
    )

    def __init__(
        self,
        config: Config,
        node: str,
        *,
        sink: Sink | None = None,
        inbox: AgentInbox | None = None,
        clock: Clock | None = None,
        incarnation: int | None = None,
        backoff: Backoff | None = None,
        on_dirty: Callable[[str], object] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.node = node
        """The node's name."""
        self.bucket = bucket_of(node)
        """The node's bucket, from which its partition follows in every layout."""
        self._config = config
        """Settings of the cell."""
        self._clock = clock or SystemClock()
        """Time."""
        self._rng = rng or random.Random()
        """Draws the moments of answers to resync requests."""
        self._backoff = backoff or Backoff(self._clock, self._rng, config.heartbeat_s / 2)
        """When the broker is tried again."""
        self._on_dirty = on_dirty
        """Called with the node's name when an event was lost."""
        self._record: NodeRecord | None = None
        """The newest state and version; None before the first report."""
        self._full_state_generation = 0
        """Generation of the last full state that was sent: a report or a leave."""
        self._dirty = False
        """True while something was lost and not sent again."""
        self._answer_at: float | None = None
        """When to answer a resync request, in monotonic seconds; None if there is none."""
        # Refuse an invalid name now, not with the first report.
        parse_event(_encode(Heartbeat(node=node, incarnation=1, generation=1, reported_at=0.0)))
        self._lock: IncarnationLock | None = None
        """Locks the node's name; None if the caller gave the incarnation."""
        if incarnation is None:
            self._lock = IncarnationLock(state_directory(config), node, self._clock.time())
            incarnation = self._lock.incarnation
        self._incarnation = incarnation
        """The incarnation of all events."""
        self._owns_sink = sink is None
        """True if ``close`` closes the sink, and this publisher reads its resync requests."""
        if sink is None:
            sink = inbox = KombuSink(config)
        self._sink = sink
        """Takes the events."""
        self._inbox = inbox
        """Gives resync requests if the sink is our own, and takes answers to a census."""

    # -- state

    @property
    def version(self) -> Version:
        """The version of the newest state; generation 0 before the first report."""
        return self._record.version if self._record is not None else Version(self._incarnation, 0)

    @property
    def dirty(self) -> bool:
        """True while an event was lost and its state not sent again."""
        return self._dirty

    @property
    def live(self) -> bool:
        """True if the node has reported and not left since."""
        return self._record is not None and not self._record.gone

    @property
    def spare_bytes(self) -> int:
        """Bytes by which the state may grow and still fit into a report."""
        return MAX_EVENT_BYTES - ENVELOPE_BYTES - (len(self._record.body) if self._record is not None else 0)

    def state(self) -> dict[str, Any]:
        """The newest state, decoded at each call; empty before the first report and after a leave."""
        return self._record.state() if self._record is not None else {}

    # -- events

    def report(self, state: Mapping[str, Any]) -> Receipt:
        """Publish the full state. Raises ``BadEventError`` if it is invalid or too large."""
        return self._publish_report(_raw(state))

    def change(self, patch: Mapping[str, Any]) -> Receipt:
        """Publish an RFC 7396 merge patch of the newest state. Raises ``BadEventError`` if the patch or its result is
        invalid, or if there is no state.
        """
        version = self._next(self._live_record("change"))
        event = Change(
            node=self.node,
            incarnation=version.incarnation,
            generation=version.generation,
            reported_at=self._clock.time(),
            patch=_raw(patch),
        )
        raw = self._author(event)
        if self._dirty:
            self._send(_encode(self._report_of(self._live_record("change"))), full=True)
        else:
            self._send(raw, full=False)
        return Receipt(self.node, version)

    def heartbeat(self) -> Receipt:
        """Publish a sign of life with the current version. Raises ``BadEventError`` before the first report."""
        if self._owns_sink:
            self._take_resyncs()
        record = self._live_record("heartbeat")
        if not self._send_again():
            self._send(self._heartbeat_of(record), full=None)
        return Receipt(self.node, self.version)

    def leave(self) -> Receipt:
        """Publish that the node is gone for good. Raises ``BadEventError`` before the first report."""
        return self._publish_leave(self._live_record("leave"))

    def republish(self) -> Receipt:
        """Publish the newest state as a report, or the leave again, with a new generation.

        Raises ``BadEventError`` before the first report.
        """
        if self._record is None:
            raise self._no_state("republish")
        if self._record.gone:
            return self._publish_leave(self._record)
        return self._publish_report(msgspec.Raw(self._record.body))

    # -- delivery

    def tick(self) -> None:
        """Send lost state again if the backoff allows it; read resync requests if the sink is our own.

        Never raises for outages.
        """
        if self._owns_sink:
            self._take_resyncs()
        self._send_again()

    def resync(self, resync: Resync) -> None:
        """Answer a request that concerns this node. For a census the version is sent at once. For any other request
        ``tick`` sends a report at a random moment of the request's ``jitter_s``.
        """
        if resync.census:
            self.answer_census(resync.census)
            return
        answer_at = self._clock.monotonic() + self._rng.uniform(0.0, resync.jitter_s)
        self._answer_at = answer_at if self._answer_at is None else min(self._answer_at, answer_at)

    def answer_census(self, queue: str) -> None:
        """Send the current version to the queue of a census. Raises ``BrokerUnavailableError``."""
        if self._record is not None and self.live and self._inbox is not None:
            self._inbox.answer_census(queue, self._heartbeat_of(self._record))

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has the newest state. Raises ``UnconfirmedError`` after ``timeout_s`` seconds."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self.tick()
            remaining = max(0.0, deadline - self._clock.monotonic())
            try:
                self._sink.flush(remaining)
            except BrokerUnavailableError:
                self._backoff.failed()
            if not self._dirty:
                return
            if remaining <= 0:
                raise UnconfirmedError(1, timeout_s)
            self._clock.sleep(min(remaining, max(FLUSH_PAUSE_S, self._backoff.wait_s)))

    def close(self) -> None:
        """Flush for at most ``broker_timeout_s``, then close what this publisher opened.

        Raises ``UnconfirmedError`` if the newest state may not have arrived.
        """
        try:
            self.flush(self._config.broker_timeout_s)
        finally:
            if self._owns_sink:
                self._sink.close()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- authoring

    def _next(self, record: NodeRecord | None) -> Version:
        return Version(self._incarnation, record.generation + 1 if record is not None else 1)

    def _live_record(self, operation: str) -> NodeRecord:
        if self._record is None or self._record.gone:
            raise self._no_state(operation)
        return self._record

    def _no_state(self, operation: str) -> BadEventError:
        state = "has not reported yet" if self._record is None else "has left"
        return BadEventError("no-state", f"{operation}: {self.node} {state}; call report(state) first")

    def _author(self, event: Report | Change | Leave) -> bytes:
        """Validate an event as a consumer will, by folding it into our own record. Keep the result if it is valid.

        Returns the encoded event. Raises ``BadEventError``.
        """
        raw = _encode(event)
        record, outcome = fold(self._record, parse_event(raw))
        assert outcome is FoldOutcome.APPLIED, f"{self.node} authored an event that does not apply: {outcome}"
        assert record is not None
        if len(record.body) > MAX_EVENT_BYTES - ENVELOPE_BYTES:
            raise BadEventError(
                "too-large",
                f"the state of {self.node} has {len(record.body):,} bytes, and a report holds "
                f"{MAX_EVENT_BYTES - ENVELOPE_BYTES:,}",
            )
        self._record = record
        return raw

    def _publish_report(self, state: msgspec.Raw) -> Receipt:
        version = self._next(self._record)
        event = Report(
            node=self.node,
            incarnation=version.incarnation,
            generation=version.generation,
            reported_at=self._clock.time(),
            state=state,
        )
        self._send(self._author(event), full=True)
        return Receipt(self.node, version)

    def _publish_leave(self, record: NodeRecord) -> Receipt:
        version = self._next(record)
        event = Leave(
            node=self.node,
            incarnation=version.incarnation,
            generation=version.generation,
            reported_at=self._clock.time(),
        )
        self._send(self._author(event), full=True)
        return Receipt(self.node, version)

    def _report_of(self, record: NodeRecord) -> Report:
        return Report(
            node=self.node,
            incarnation=record.incarnation,
            generation=record.generation,
            reported_at=record.reported_at,
            state=msgspec.Raw(record.body),
        )

    def _heartbeat_of(self, record: NodeRecord) -> bytes:
        return _encode(
            Heartbeat(
                node=self.node,
                incarnation=record.incarnation,
                generation=record.generation,
                reported_at=self._clock.time(),
            )
        )

    # -- sending

    def _send(self, raw: bytes, *, full: bool | None) -> None:
        """Hand one event to the sink. ``full``: True for a report or leave, which supersedes all earlier events; False
        for a change; None for a heartbeat, whose loss does no harm.
        """
        generation = self.version.generation
        if full:
            # Set before the event is sent: the sink may report older losses meanwhile, which this event makes up for.
            self._full_state_generation, self._dirty = generation, False
            self._answer_at = None
        on_done = partial(self._confirmed, generation) if full is not None else _ignore
        if not self._backoff.ready:
            on_done(False)
            return
        try:
            self._sink.publish(self.bucket, raw, on_done)
        except BrokerUnavailableError:
            self._backoff.failed()
            on_done(False)
        else:
            self._backoff.worked()

    def _confirmed(self, generation: int, ok: bool) -> None:
        if not ok and generation >= self._full_state_generation and not self._dirty:
            self._dirty = True
            if self._on_dirty is not None:
                self._on_dirty(self.node)

    def _send_again(self) -> bool:
        """Publish the newest state if an event was lost or a resync request is due. Returns True if so, even if the
        broker is away.
        """
        due = self._answer_at is not None and self._clock.monotonic() >= self._answer_at
        if self._record is None or not (self._dirty or due):
            return False
        if self._backoff.ready:
            self.republish()
        return True

    def _take_resyncs(self) -> None:
        if not self._backoff.ready:
            return
        assert self._inbox is not None, "a publisher that opened its own connection has an inbox"
        try:
            for resync in self._inbox.resyncs(0):
                if concerns(resync, self.node, self.bucket):
                    self.resync(resync)
        except BrokerUnavailableError:
            self._backoff.failed()


def _ignore(_ok: bool) -> None:
    """Ignore whether a heartbeat was confirmed: the next one follows soon."""


def _raw(content: Mapping[str, Any]) -> msgspec.Raw:
    """Encode a state or patch. Raises ``BadEventError`` if it can't be encoded."""
    try:
        return msgspec.Raw(_encode(content))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadEventError("wrong-type", str(error)) from None
