"""Publishes a stream of events through outages of the broker and keeps the order of the events of each partition."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.ports import Clock, Sink
from nodestate.ports.backoff import DoublingPause

FIRST_PAUSE_S: Final = 0.1
"""Pause before events are sent again for the first time; it doubles up to ``LONGEST_PAUSE_S``."""
LONGEST_PAUSE_S: Final = 2.0
FLUSH_S: Final = 0.5
"""How long one wait for confirms takes."""
UNSETTLED_COUNT: Final = 20_000
"""Events that may be sent but not settled. Without a limit, one unconfirmed event would let all later ones pile up."""


@dataclass(slots=True)
class _Sent:
    bucket: int
    """Bucket of the event's node."""
    body: bytes
    """The encoded event."""
    attempt: int = 0
    """Number of the attempt in which it was sent last."""
    confirmed: bool = False
    """True if the broker confirmed it in that attempt."""


class OrderedPublisher:
    """Publishes events in order, without a wait for the confirm of each.

    An event: sent --it and all events before it are confirmed--> settled
              sent --it or an event before it is lost or refused--> sent again, followed by all events after it

    It would be cheaper to send only the lost events again. But a consumer applies a change only if it has the previous
    one: if 5 arrives after 6 and 7, then 6 and 7 are dropped as gaps. So all events from the lost one on are sent
    again, in order; consumers drop duplicates.

    Raises ``BrokerUnavailableError`` or ``UnconfirmedError`` if nothing was confirmed for ``timeout_s`` seconds of an
    outage.
    """

    def __init__(self, sink: Sink, clock: Clock, timeout_s: float) -> None:
        # Events that are settled.
        self.settled = 0
        # Events that were sent again, each time counted.
        self.sent_again = 0
        # Connection to the broker.
        self._sink = sink
        # Time of outages and pauses.
        self._clock = clock
        # Length of an outage after which to give up.
        self._timeout_s = timeout_s
        # Sent events that are not settled, in order.
        self._unsettled: deque[_Sent] = deque()
        # Number of times that all unsettled events were sent again.
        self._attempt = 0
        # True if an event of the present attempt was lost or refused.
        self._lost = False
        # Start of the present outage on the clock; None if there is none.
        self._trouble_since: float | None = None
        # Pause before the next attempt.
        self._pause = DoublingPause(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._log = structlog.get_logger("nodestate.publish")

    def send(self, bucket: int, body: bytes) -> None:
        """Publish one event after all earlier ones. Waits during an outage of the broker.

        Args:
            bucket: Bucket of the event's node.
            body: The encoded event.
        """
        sent = _Sent(bucket, body)
        self._unsettled.append(sent)
        try:
            self._post(sent)
        except BrokerUnavailableError as error:
            self._send_again(error)
        self._settle()
        if self._lost:
            self._send_again(None)
        if len(self._unsettled) > UNSETTLED_COUNT:
            self.finish()

    def finish(self) -> None:
        """Wait until all events are settled."""
        self._settle()
        while self._unsettled:
            try:
                self._sink.flush(FLUSH_S)
            except UnconfirmedError as error:
                self._in_trouble(error)
            except BrokerUnavailableError as error:
                self._send_again(error)
            else:
                self._settle()
                assert self._lost or not self._unsettled, "a flush reports the outcome of each published event"
            self._settle()
            if self._lost:
                self._send_again(None)

    # -- inside

    def _post(self, sent: _Sent) -> None:
        attempt = sent.attempt = self._attempt

        def done(ok: bool) -> None:
            if sent.attempt != attempt:
                return  # a confirm of an earlier attempt says nothing about the present order
            if ok:
                sent.confirmed = True
            else:
                self._lost = True

        self._sink.publish(sent.bucket, sent.body, done)

    def _settle(self) -> None:
        before = self.settled
        while self._unsettled and self._unsettled[0].confirmed:
            self._unsettled.popleft()
            self.settled += 1
        if self.settled > before and self._trouble_since is not None:
            self._trouble_since = None
            self._pause.reset()
            self._log.warning("broker confirms again")

    def _send_again(self, error: BrokerUnavailableError | None) -> None:
        """Send all unsettled events again, in order, until the broker accepts all of them."""
        while True:
            self._in_trouble(error or UnconfirmedError(len(self._unsettled), self._timeout_s))
            self._clock.sleep(self._pause.lengthen())
            self._attempt += 1
            self._lost = False
            try:
                for sent in self._unsettled:
                    sent.confirmed = False
                    self._post(sent)
                    self.sent_again += 1
            except BrokerUnavailableError as again:
                error = again
            else:
                return

    def _in_trouble(self, error: BrokerUnavailableError | UnconfirmedError) -> None:
        """Note the start of an outage, or raise its error if it lasts longer than ``timeout_s``."""
        now = self._clock.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
            if error.cause:
                self._log.warning("waiting for the broker", why=str(error), unsettled=len(self._unsettled))
        elif now - self._trouble_since >= self._timeout_s:
            raise error
