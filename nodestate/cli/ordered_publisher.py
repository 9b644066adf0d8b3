"""Publishing a stream through outages of the broker without ever changing the order of a partition's events."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.ports import Clock, Sink
from nodestate.ports.backoff import DoublingPause

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
FLUSH_S: Final = 0.5
UNSETTLED_COUNT: Final = 20_000
"""Sent and not settled: one event that stays unconfirmed must not let those behind it pile up without end."""


@dataclass(slots=True)
class _Sent:
    bucket: int
    body: bytes
    attempt: int = 0
    confirmed: bool = False


class OrderedPublisher:
    """Publishes events in order, with confirms that are not waited for.

    An event: sent --it and all before it are confirmed--> settled
              sent --it or one before it is lost or refused--> sent again, behind it all that came after it

    Why all of them: consumers take a change only on exactly its predecessor. 5, 6, 7 after half of 5, 6, 7 arrived is
    harmless, as duplicates are dropped; 5 behind 6 and 7 is not, as these then count for nothing.

    Raises ``BrokerUnavailableError`` or ``UnconfirmedError`` when nothing was confirmed for ``timeout_s`` of trouble.
    """

    def __init__(self, sink: Sink, clock: Clock, timeout_s: float) -> None:
        self.settled = 0
        self.sent_again = 0
        self._sink = sink
        self._clock = clock
        self._timeout_s = timeout_s
        self._unsettled: deque[_Sent] = deque()
        self._attempt = 0
        self._lost = False
        self._trouble_since: float | None = None
        self._pause = DoublingPause(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._log = structlog.get_logger("nodestate.publish")

    def send(self, bucket: int, body: bytes) -> None:
        """Publish one event behind all before it. Waits while the broker is away."""
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
        """Wait until everything is settled."""
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
                assert self._lost or not self._unsettled, "a sink that was flushed has told the fate of everything"
            self._settle()
            if self._lost:
                self._send_again(None)

    # -- inside

    def _post(self, sent: _Sent) -> None:
        attempt = sent.attempt = self._attempt

        def done(ok: bool) -> None:
            if sent.attempt != attempt:
                return  # of a sending that was given up: it says nothing of the order
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
            self._log.warning("trouble is over")

    def _send_again(self, error: BrokerUnavailableError | None) -> None:
        """Send all that is not settled again, in order, as often as it takes."""
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
        """Give up where the trouble lasts for too long."""
        now = self._clock.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
            if isinstance(error, BrokerUnavailableError):
                self._log.warning("waiting for the broker", why=str(error), unsettled=len(self._unsettled))
        elif now - self._trouble_since >= self._timeout_s:
            raise error
