"""The publisher: authors one node's events, and sees to it that its newest state arrives."""

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
"""What a report adds to its state, at most: names, version, time."""
PAUSE_S: Final = 0.05
"""Between two looks at a sink that is away, in ``flush``."""

_encode = msgspec.msgpack.Encoder().encode


def concerns(resync: Resync, node: str, bucket: int) -> bool:
    """True if this request asks this node."""
    if resync.nodes or resync.partitions:
        return node in resync.nodes or bucket % resync.layout in resync.partitions
    return True


class Publisher:
    r"""One node's author: the only one that raises its generation.

    What readers will see, once the broker has it all::

        new --report--> live --report, change: generation + 1--> live --leave: + 1--> gone --report: + 1--> live
                              \--heartbeat: the same generation

    What is on its way::

        clean --sent--> clean --confirmed--> clean
        clean --could not be sent, or lost unconfirmed--> dirty
        dirty --any call, or tick, once the broker is back: one report of the newest state (or one leave), with a new
            generation, in place of all that was lost--> clean

    A loss makes dirty unless a whole state of a later generation was sent since: that one's own fate decides then,
    as it supersedes all before it. So while clean, the newest whole state and every change after it were confirmed
    or are under way. Heartbeats carry nothing that could be lost. A change that is called while dirty goes out as
    such a report, too: it could not be applied without what was lost.

    Each call returns a receipt, also while the broker is away: what is sent later has the receipt's version or a
    newer one. A bad state or change raises ``BadEventError``, and nothing was sent or changed. Only the newest
    state is kept, however long the broker is away.

    Many publishers may share one ``sink`` (a fleet). They should then share ``backoff``, and the owner of the sink reads
    the resync requests from its inbox; ``inbox`` is what a publisher answers a census by. A publisher without a ``sink``
    opens a connection of its own, and answers resync requests in ``heartbeat`` and ``tick``. ``on_dirty`` is told the node's name when something is lost, perhaps again. Not safe for several threads.
    """

    __slots__ = (
        "_answer_at",
        "_backoff",
        "_clock",
        "_config",
        "_dirty",
        "_inbox",
        "_incarnation",
        "_life",
        "_on_dirty",
        "_owns_sink",
        "_record",
        "_rng",
        "_sink",
        "_whole",
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
        self.bucket = bucket_of(node)
        self._config = config
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._backoff = backoff or Backoff(self._clock, self._rng, config.heartbeat_s / 2)
        self._on_dirty = on_dirty
        self._record: NodeRecord | None = None
        self._whole = 0
        self._dirty = False
        self._answer_at: float | None = None
        # Refuses a bad name now rather than with the first report, when it would be too late to ask.
        parse_event(_encode(Heartbeat(node=node, incarnation=1, generation=1, reported_at=0.0)))
        self._life: IncarnationLock | None = None
        if incarnation is None:
            self._life = IncarnationLock(state_directory(config), node, self._clock.time())
            incarnation = self._life.incarnation
        self._incarnation = incarnation
        self._owns_sink = sink is None
        if sink is None:
            sink = inbox = KombuSink(config)
        self._sink = sink
        self._inbox = inbox

    # -- what is known

    @property
    def version(self) -> Version:
        """The version of the newest state; generation 0 before the first report."""
        return self._record.version if self._record is not None else Version(self._incarnation, 0)

    @property
    def dirty(self) -> bool:
        """True while something was lost and not sent again."""
        return self._dirty

    @property
    def live(self) -> bool:
        """True if the node has reported, and not left."""
        return self._record is not None and not self._record.gone

    @property
    def spare_bytes(self) -> int:
        """What the state may grow by."""
        return MAX_EVENT_BYTES - ENVELOPE_BYTES - (len(self._record.body) if self._record is not None else 0)

    def state(self) -> dict[str, Any]:
        """The newest state, decoded anew at each call; empty before the first report and after a leave."""
        return self._record.state() if self._record is not None else {}

    # -- events

    def report(self, state: Mapping[str, Any]) -> Receipt:
        """Publish the whole state. Raises ``BadEventError``."""
        return self._publish_report(_raw(state))

    def change(self, patch: Mapping[str, Any]) -> Receipt:
        """Publish an RFC 7396 merge patch of the newest state. Raises ``BadEventError``."""
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
            self._send(_encode(self._report_of(self._live_record("change"))), whole=True)
        else:
            self._send(raw, whole=False)
        return Receipt(self.node, version)

    def heartbeat(self) -> Receipt:
        """Give a sign of life, with the current version. Raises ``BadEventError`` before the first report."""
        if self._owns_sink:
            self._take_resyncs()
        record = self._live_record("heartbeat")
        if not self._send_again():
            self._send(self._heartbeat_of(record), whole=None)
        return Receipt(self.node, self.version)

    def leave(self) -> Receipt:
        """The node goes for good. Raises ``BadEventError`` before the first report."""
        return self._publish_leave(self._live_record("leave"))

    def republish(self) -> Receipt:
        """Publish the newest state as a report (or the leave again), with a new generation.

        Raises ``BadEventError`` before the first report.
        """
        if self._record is None:
            raise self._no_state("republish")
        if self._record.gone:
            return self._publish_leave(self._record)
        return self._publish_report(msgspec.Raw(self._record.body))

    # -- keeping up

    def tick(self) -> None:
        """Send again what was lost, if it is time to; answer resyncs, if this made its sink. Never raises for outages."""
        if self._owns_sink:
            self._take_resyncs()
        self._send_again()

    def resync(self, resync: Resync) -> None:
        """Answer a request that concerns this node: a report at a random moment of its ``jitter_s``, by ``tick``;
        for a census at once, and only the version.
        """
        if resync.census:
            self.answer_census(resync.census)
            return
        answer_at = self._clock.monotonic() + self._rng.uniform(0.0, resync.jitter_s)
        self._answer_at = answer_at if self._answer_at is None else min(self._answer_at, answer_at)

    def answer_census(self, queue: str) -> None:
        """Say the current version to the queue of a census. May raise ``BrokerUnavailableError``."""
        if self._record is not None and self.live and self._inbox is not None:
            self._inbox.answer_census(queue, self._heartbeat_of(self._record))

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has the newest state. Raises ``UnconfirmedError``."""
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
            self._clock.sleep(min(remaining, max(PAUSE_S, self._backoff.wait_s)))

    def close(self) -> None:
        """Flush for at most ``broker_timeout_s``, then close what this publisher opened.

        Raises ``UnconfirmedError`` if the newest state may not have arrived.
        """
        try:
            self.flush(self._config.broker_timeout_s)
        finally:
            if self._owns_sink:
                self._sink.close()
            if self._life is not None:
                self._life.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside: authoring

    def _next(self, record: NodeRecord | None) -> Version:
        return Version(self._incarnation, record.generation + 1 if record is not None else 1)

    def _live_record(self, what: str) -> NodeRecord:
        if self._record is None or self._record.gone:
            raise self._no_state(what)
        return self._record

    def _no_state(self, what: str) -> BadEventError:
        why = "has not reported yet" if self._record is None else "has left"
        return BadEventError("no-state", f"{what}: {self.node} {why}; call report(state) first")

    def _author(self, event: Report | Change | Leave) -> bytes:
        """Validate an event as a consumer will, by folding it into our own record; take it over if it is good."""
        raw = _encode(event)
        record, outcome = fold(self._record, parse_event(raw))
        assert outcome is FoldOutcome.APPLIED, f"{self.node} authored an event that does not apply: {outcome}"
        assert record is not None
        if len(record.body) > MAX_EVENT_BYTES - ENVELOPE_BYTES:
            raise BadEventError("too-large", f"a state of {len(record.body):,} bytes could not be reported as a whole")
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
        self._send(self._author(event), whole=True)
        return Receipt(self.node, version)

    def _publish_leave(self, record: NodeRecord) -> Receipt:
        version = self._next(record)
        event = Leave(
            node=self.node,
            incarnation=version.incarnation,
            generation=version.generation,
            reported_at=self._clock.time(),
        )
        self._send(self._author(event), whole=True)
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

    # -- inside: sending

    def _send(self, raw: bytes, *, whole: bool | None) -> None:
        """Hand one event to the sink. ``whole``: it supersedes all before it; None: nothing is lost with it."""
        generation = self.version.generation
        if whole:
            # Before it is sent, as the sink may tell of older losses meanwhile: this event makes up for them.
            self._whole, self._dirty = generation, False
            self._answer_at = None
        on_done = partial(self._settled, generation) if whole is not None else _forget
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

    def _settled(self, generation: int, ok: bool) -> None:
        if not ok and generation >= self._whole and not self._dirty:
            self._dirty = True
            if self._on_dirty is not None:
                self._on_dirty(self.node)

    def _send_again(self) -> bool:
        """Republish if something was lost, or a resync is due. True if a whole state went out, or would have."""
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


def _forget(_ok: bool) -> None:
    """A heartbeat's fate: the next one follows."""


def _raw(content: Mapping[str, Any]) -> msgspec.Raw:
    """Encode what a caller gave; what can't be encoded is as bad as what can't be decoded."""
    try:
        return msgspec.Raw(_encode(content))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadEventError("wrong-type", str(error)) from None
