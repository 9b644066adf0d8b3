"""The publisher: authors the events of one node, and makes sure that the node's newest state arrives."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Self

import msgspec
from msgspec import UNSET

from nodestate.agent.delivery_state import DeliveryState
from nodestate.agent.incarnation import IncarnationLock, state_directory
from nodestate.agent.resync_scope import concerns
from nodestate.auth import EventAuth, event_auth
from nodestate.broker import KombuSink
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError, UnconfirmedError
from nodestate.model import (
    MAX_EVENT_BYTES,
    Change,
    Event,
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
"""Most bytes that a report adds to its state: names, version and time."""
FLUSH_PAUSE_S: Final = 0.05
"""Shortest pause of ``flush`` before the next try, after the broker failed or lost an event."""

_encode = msgspec.msgpack.Encoder().encode


class Publisher:
    r"""Authors the events of one node. It is the only author of the node's generations.

    The node, as readers see it once every event has arrived::

        new --report--> live --report, change: generation + 1--> live --leave: + 1--> gone --report: + 1--> live
                              \--heartbeat: the same generation

    The delivery of its events::

        clean --sent--> clean --confirmed--> clean
        clean --an event could not be sent, or was lost or refused--> dirty
        dirty --any call, or tick, once the broker is back: one report of the newest state (and the leave, if the node
            has left), with a new generation, in place of everything that was lost--> clean; see ``DeliveryState``

    If an event is lost, the publisher becomes dirty, unless a full state (a report) was sent after that event. A full
    state supersedes all earlier events, so then only the full state must arrive. So while the publisher is clean, the
    newest full state and every change after it are confirmed or on their way. A lost heartbeat does no harm. While the
    publisher is dirty, a change is sent as a report, because consumers cannot apply a change without the lost events.

    Each call returns a receipt, even while the broker is away. The event that is sent when the broker is back has the
    version of the receipt or a newer version. Only the newest state is kept, however long the broker is away. An
    invalid state or change raises ``BadEventError``; nothing is sent or changed then.

    Many publishers may share one ``sink``, for example the nodes of a fleet. They should then share ``backoff``, and
    the owner of the sink reads the resync requests from the inbox. A publisher without a ``sink`` opens a connection of
    its own, and answers resync requests in ``heartbeat`` and ``tick``. A publisher is not safe for several threads.

    Args:
        node: the node's name.
        sink: takes the events. If None, the publisher opens a connection.
        inbox: takes the answers to a census. Used only together with ``sink``.
        clock: wall-clock and monotonic time; None for the machine's clock.
        incarnation: the node's incarnation. If None, the next one from this machine's file is used, and the name is
            locked.
        backoff: gives the pause after a failed call of the broker; None for pauses of this publisher alone.
        on_dirty: called with the node's name each time the publisher becomes dirty.
        rng: chooses the moments of answers to resync requests; None for a generator without a seed.
        auth: signs the events; None to sign them as the settings say.
    """

    __slots__ = (
        "_answer_at",
        "_auth",
        "_backoff",
        "_clock",
        "_config",
        "_delivery",
        "_inbox",
        "_incarnation",
        "_left",
        "_lock",
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
        auth: EventAuth | None = None,
    ) -> None:
        self.node = node
        """The node's name."""
        self.bucket = bucket_of(node)
        """The node's bucket, from which its partition follows in every layout."""
        self._config = config
        """Settings of the cell."""
        self._clock = clock or SystemClock()
        """Monotonic time for pauses; wall-clock time for events."""
        self._rng = rng or random.Random()
        """Chooses the moments of answers to resync requests."""
        self._backoff = backoff or Backoff(self._clock, self._rng, config.heartbeat_s / 2)
        """Gives the pause after a failed call of the broker."""
        self._auth = auth or event_auth(config, self._clock)
        """Signs the events."""
        self._record: NodeRecord | None = None
        """The node's newest record, with state and version; None before the first report."""
        self._left = False
        """True if the node has left and not reported since."""
        self._delivery = DeliveryState(self._clock, config.heartbeat_s / 2, partial(on_dirty or _ignore, node))
        """Whether an event was lost and the newest state must be sent again."""
        self._answer_at: float | None = None
        """When to answer a resync request, in monotonic seconds; None if no answer is due."""
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
        """True if this publisher opened the sink. It then reads the resync requests, and closes the sink."""
        if sink is None:
            sink = inbox = KombuSink(config)
        self._sink = sink
        """Takes the events."""
        self._inbox = inbox
        """Takes answers to a census. Gives resync requests if this publisher opened the sink."""

    # -- state

    @property
    def version(self) -> Version:
        """The version of the newest state; generation 0 before the first report."""
        return self._record.version if self._record is not None else Version(self._incarnation, 0)

    @property
    def dirty(self) -> bool:
        """True if an event was lost and the node's newest state was not sent since."""
        return self._delivery.dirty

    @property
    def live(self) -> bool:
        """True if the node has reported and has not left since."""
        return self._record is not None and not self._left

    @property
    def spare_bytes(self) -> int:
        """Number of bytes by which the state may grow without becoming too large for a report."""
        return MAX_EVENT_BYTES - ENVELOPE_BYTES - (len(self._record.body) if self._record is not None else 0)

    def state(self) -> dict[str, Any]:
        """Return the newest state, decoded. It is empty before the first report and after an empty node left."""
        return self._record.state() if self._record is not None else {}

    # -- events

    def report(self, state: Mapping[str, Any]) -> Receipt:
        """Publish the full state. Raises ``BadEventError`` if the state is invalid or too large."""
        return self._publish_report(_raw(state))

    def change(self, patch: Mapping[str, Any]) -> Receipt:
        """Publish an RFC 7396 merge patch of the newest state.

        Raises ``BadEventError`` if the patch or the state after it is invalid, if that state is too large for a report,
        or if the node has not reported or has left.
        """
        version = self._next(self._live_record("change"))
        raw = self._author(Change(**self._envelope(version), patch=_raw(patch)))
        if self.dirty:
            self._send(self._signed(self._report_of(self._live_record("change"))), full=True)
        else:
            self._send(raw, full=False)
        return Receipt(self.node, version)

    def heartbeat(self) -> Receipt:
        """Publish a sign of life with the current version.

        If an event was lost or an answer to a resync request is due, publishes the newest state instead. Raises
        ``BadEventError`` if the node has not reported or has left.
        """
        if self._owns_sink:
            self._take_resyncs()
        record = self._live_record("heartbeat")
        if not self._send_again():
            self._send(self._heartbeat_of(record), full=None)
        return Receipt(self.node, self.version)

    def leave(self) -> Receipt:
        """Publish that the node is gone for good; views keep it, ``down``, while it has allocations.

        Raises ``BadEventError`` unless the node is live.
        """
        return self._publish_leave(self._live_record("leave"))

    def republish(self) -> Receipt:
        """Publish the newest state as a report with a new generation. If the node has left, publish that again.

        Raises ``BadEventError`` before the first report.
        """
        if self._record is None:
            raise self._no_state("republish")
        if self._left:
            return self._publish_leave(self._record)
        return self._publish_report(msgspec.Raw(self._record.body))

    # -- delivery

    def tick(self) -> None:
        """Publish the newest state if an event was lost or an answer to a resync request is due.

        Does nothing before the pause after the last failure is over. If this publisher opened its own connection, reads
        resync requests first. Raises nothing if the broker is away.
        """
        if self._owns_sink:
            self._take_resyncs()
        self._send_again()

    def resync(self, resync: Resync) -> None:
        """Answer a resync request that concerns this node.

        If the request is a census, the version is sent at once. For any other request, ``tick`` or ``heartbeat`` sends
        a report, at a random moment within the request's ``jitter_s``.
        """
        if resync.census:
            self.answer_census(resync.census)
            return
        answer_at = self._clock.monotonic() + self._rng.uniform(0.0, resync.jitter_s)
        self._answer_at = answer_at if self._answer_at is None else min(self._answer_at, answer_at)

    def answer_census(self, queue: str) -> None:
        """Send the current version to the queue of a census, if the node is live, with the counts of its orders.

        Raises ``BrokerUnavailableError``.
        """
        if self._record is None or not self.live or self._inbox is None:
            return
        counts = self._inbox.order_counts(self.node)
        answer = Heartbeat(
            **self._envelope(self._record.version),
            unsigned_orders=counts.unsigned or UNSET,
            refused_orders=counts.refused or UNSET,
        )
        self._inbox.answer_census(queue, self.node, self._signed(answer))

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has the newest state. Raises ``UnconfirmedError`` after ``timeout_s`` seconds."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self.tick()
            remaining = max(0.0, deadline - self._clock.monotonic())
            try:
                self._sink.flush(remaining)
            except BrokerUnavailableError as error:
                self._backoff.failed(error.cause)
            if not self.dirty:
                return
            if remaining <= 0:
                raise UnconfirmedError(1, timeout_s, self._backoff.cause)
            self._clock.sleep(min(remaining, max(FLUSH_PAUSE_S, self._backoff.wait_s)))

    def close(self) -> None:
        """Flush for at most ``broker_timeout_s`` seconds, then close the publisher's own connection and lock, if any.

        Raises ``UnconfirmedError`` if the newest state may not have arrived. Everything is closed in any case.
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
        """Return the version of the next event after ``record``; generation 1 if there is no record."""
        return Version(self._incarnation, record.generation + 1 if record is not None else 1)

    def _live_record(self, operation: str) -> NodeRecord:
        """Return the newest record of a live node. Raises ``BadEventError``, which names ``operation``, otherwise."""
        if self._record is None or self._left:
            raise self._no_state(operation)
        return self._record

    def _no_state(self, operation: str) -> BadEventError:
        state = "has not reported yet" if self._record is None else "has left"
        return BadEventError("no-state", f"{operation}: {self.node} {state}; call report(state) first")

    def _author(self, event: Report | Change | Leave) -> bytes:
        """Check an event as consumers will: fold it into the newest record. The result becomes the newest record.

        Returns the encoded event. Raises ``BadEventError`` if the event is invalid, or if its state would be too large
        for a report; the newest record is unchanged then.
        """
        raw = self._signed(event)
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
        raw, self._left = self._author(Report(**self._envelope(version), state=state)), False
        self._send(raw, full=True)
        return Receipt(self.node, version)

    def _publish_leave(self, record: NodeRecord) -> Receipt:
        """Publish a leave. If an event before it may be lost, publish the state first, on which its effect depends."""
        if self._left or self.dirty:
            self._publish_report(_raw({"status": "down"}) if record.gone else msgspec.Raw(record.body))
        version = self._next(self._record)
        raw, self._left = self._author(Leave(**self._envelope(version))), True
        self._send(raw, full=False)
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
        return self._signed(Heartbeat(**self._envelope(record.version)))

    def _signed(self, event: Event) -> bytes:
        """Encode an event, and sign it if the settings say so."""
        return self._auth.events.sign(self.node, _encode(event))

    def _envelope(self, version: Version) -> dict[str, Any]:
        """Return the fields that every event has."""
        return {"node": self.node, **version._asdict(), "reported_at": self._clock.time()}

    # -- sending

    def _send(self, raw: bytes, *, full: bool | None) -> None:
        """Hand one event to the sink. If the broker is away, the event counts as lost.

        Args:
            raw: the encoded event.
            full: True for a report, which supersedes all earlier events; False for a change or a leave; None for a
                heartbeat, whose loss does no harm.
        """
        generation = self.version.generation
        if full:
            # Set before the event is sent: meanwhile the sink may report lost older events, which this one supersedes.
            self._delivery.sending_full_state(generation)
            self._answer_at = None
        if self._backoff.ready:
            try:
                self._sink.publish(
                    self.bucket, raw, partial(self._delivery.settled, generation) if full is not None else _ignore
                )
            except BrokerUnavailableError as error:
                self._backoff.failed(error.cause)
            else:
                self._backoff.worked()
                return
        if full is not None:
            self._delivery.lost(generation)

    def _send_again(self) -> bool:
        """Publish the newest state if an event was lost or an answer to a resync request is due.

        Returns True if one of the two is the case, even if the state could not be sent because the broker is away.
        """
        due = self._answer_at is not None and self._clock.monotonic() >= self._answer_at
        if self._record is None or not (self.dirty or due):
            return False
        if self._backoff.ready and self._delivery.may_send_again:
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
        except BrokerUnavailableError as error:
            self._backoff.failed(error.cause)


def _ignore(_result: object) -> None:
    """Ignore whether a heartbeat was confirmed: the next one follows soon."""


def _raw(content: Mapping[str, Any]) -> msgspec.Raw:
    """Encode a state or patch. Raises ``BadEventError`` if it can't be encoded."""
    try:
        return msgspec.Raw(_encode(content))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadEventError("wrong-type", str(error)) from None
