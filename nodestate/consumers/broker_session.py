"""The consumer's session with the broker.

The session receives deliveries, and sends acknowledgements, dead letters and watermark messages::

    connected --any call fails--> ended: every partition is dropped --the next receive reconnects--> connected
    connected --give_up: another owner took one of our partitions--> ended

Any call may be the first to notice that the connection is gone. The adapter's next call would then open a new session
silently, and the consumer would go on with partitions of the old session. So each failing call drops all partitions at
once, and the broker delivers their unacknowledged messages again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.transition_log import TransitionLog
from nodestate.consumers.watermarks import Watermarks
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.ports import Clock, Delivery, RefusedDelivery, Source

RECONNECT_PAUSE_S: Final = 0.2
"""Pause after a failed receive."""


class BrokerSession:
    """One consumer's use of its ``Source``. Only ``acknowledge`` calls ``Source.ack``."""

    def __init__(
        self,
        source: Source,
        owned: OwnedPartitions,
        watermarks: Watermarks,
        stats: ConsumerStats,
        transitions: TransitionLog,
        clock: Clock,
    ) -> None:
        self._source = source
        """The adapter of the broker."""
        self._owned = owned
        """The partitions, all of which are dropped when the session ends."""
        self._watermarks = watermarks
        """Makes the watermark messages."""
        self._stats = stats
        """Counts messages and failures."""
        self._transitions = transitions
        """Logs outages of the broker."""
        self._clock = clock
        """Monotonic time."""
        self._received_at = clock.monotonic()
        """When the last successful receive returned."""
        self._connected = False
        """True from the first successful receive of a session to its end."""

    def receive(self, limit: int, flush_s: float) -> int:
        """Receive up to ``limit`` messages and add them to their partitions.

        Waits until ``limit`` messages have come, or until ``flush_s`` seconds after the last receive returned. So the
        time that the consumer spent on the previous batch is part of the wait: messages that came during that time have
        waited already.

        Returns the number of messages. Returns 0 after a pause if the broker is away; the session has then ended.
        """
        wait_s = max(0.0, flush_s - (self._clock.monotonic() - self._received_at))
        try:
            deliveries = self._source.receive(limit, wait_s)
        except BrokerUnavailableError as error:
            self._end(error)
            self._clock.sleep(RECONNECT_PAUSE_S)
            return 0
        self._received_at = self._clock.monotonic()
        if not self._connected:
            self._connected = True
            self._stats.sessions += 1
        self._transitions.recovered("broker")
        self._owned.add_deliveries(deliveries, self._received_at)
        self._stats.received += len(deliveries)
        return len(deliveries)

    def acknowledge(self, deliveries: list[Delivery]) -> None:
        """Acknowledge messages, so that the broker deletes them.

        Call it only for messages whose events are stored in every design that this consumer writes (journal, snapshot
        or sql), and for refused messages that are in the dead-letter queue. If the connection is lost before the broker
        has the acknowledgement, the broker delivers the messages again. That does no harm: their events are recognized
        as duplicates and not applied twice.
        """
        if not deliveries:
            return
        try:
            self._source.ack(deliveries)
        except BrokerUnavailableError as error:
            self._end(error)
        else:
            self._stats.acked += len(deliveries)

    def dead_letter(self, refused: Iterable[tuple[Delivery, BadEventError]]) -> int:
        """Publish refused messages to the dead-letter queue.

        Returns:
            How many of the first ones the broker confirmed; the caller acknowledges these. 0 if the session ended. All
            partitions are dropped then, and the broker delivers the refused messages again.

        Raises:
            DeadLetterError: if the dead-letter queue cannot take the first message now. The session goes on, and the
                caller tries again later.
        """
        letters = [RefusedDelivery(delivery, error.reason, _detail(delivery, error)) for delivery, error in refused]
        try:
            return self._source.dead_letter(letters)
        except BrokerUnavailableError as unavailable:
            self._end(unavailable)
            return 0

    def send_watermarks(self, now: float) -> bool:
        """Send a watermark message through the queue of each owned partition.

        Args:
            now: monotonic seconds, which the message carries.

        Returns:
            True if all messages were sent. False if the session ended; this consumer then owns no partition.
        """
        try:
            for partition in self._owned:
                self._source.send_marker(partition.number, self._watermarks.message(partition.number, now))
        except BrokerUnavailableError as error:
            self._end(error)
            return False
        return True

    def hand_over(self, number: int, messages: Iterable[bytes]) -> bool:
        """Send handover messages through the queue of a partition that another consumer owns.

        Returns True if all messages were sent; the broker may still lose them. False if the session ended.
        """
        try:
            for message in messages:
                self._source.send_marker(number, message)
        except BrokerUnavailableError as error:
            self._end(error)
            return False
        return True

    def give_up(self) -> None:
        """Close the connection and drop all partitions.

        The broker puts the unacknowledged messages of this session back into their queues, and delivers them to the
        consumers that are active now.
        """
        self._source.close()
        self._owned.drop_all()

    def close(self) -> None:
        """Close the connection. The broker delivers the unacknowledged messages to the next owners."""
        self._source.close()

    def count_failure(self, error: BrokerUnavailableError) -> None:
        """Count and log a failed call of the broker, without ending this session."""
        self._stats.broker_errors += 1
        self._transitions.failing("broker", str(error))

    def _end(self, error: BrokerUnavailableError) -> None:
        """End the session after a failed call: drop all partitions."""
        self.count_failure(error)
        self._owned.drop_all()


def _detail(delivery: Delivery, error: BadEventError) -> str:
    """Return why a message is refused, and how much of it is kept."""
    if not delivery.cut_from:
        return error.detail
    return f"{error.detail}; the first {len(delivery.body):,} of {delivery.cut_from:,} bytes are kept"
