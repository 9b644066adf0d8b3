"""The consumer's session with the broker: deliveries in, acknowledgements, dead letters and watermark messages out.

    connected --any call fails--> ended: every partition is dropped --the next receive reconnects--> connected
    connected --give_up: another owner took one of our partitions--> ended

Any call may be the first to notice that the connection is gone, and the adapter's next call would open another session
silently. So each failing call drops all partitions at once: their unacknowledged messages come again.
"""

from __future__ import annotations

from typing import Final

from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.transition_log import TransitionLog
from nodestate.consumers.watermarks import watermark_message
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.ports import Clock, Delivery, Source

RECONNECT_PAUSE_S: Final = 0.2
"""Pause after a receive that failed."""


class BrokerSession:
    """One consumer's use of its ``Source``. The only caller of ``Source.ack`` is ``acknowledge``."""

    def __init__(
        self, source: Source, owned: OwnedPartitions, stats: ConsumerStats, transitions: TransitionLog, clock: Clock
    ) -> None:
        self._source = source
        """The adapter of the broker."""
        self._owned = owned
        """The partitions that end with the session."""
        self._stats = stats
        """Counts messages and failures."""
        self._transitions = transitions
        """Logs outages of the broker."""
        self._clock = clock
        """Monotonic time."""
        self._received_at = clock.monotonic()
        """When the last successful receive returned."""

    def receive(self, limit: int, flush_s: float) -> int:
        """Take up to ``limit`` messages and add them to their partitions. Returns how many came; 0 after an outage.

        Waits until ``flush_s`` seconds after the last receive. The time spent on the batch in between counts as
        waiting: what came meanwhile has waited for that long already.
        """
        wait_s = max(0.0, flush_s - (self._clock.monotonic() - self._received_at))
        try:
            deliveries = self._source.receive(limit, wait_s)
        except BrokerUnavailableError as error:
            self._end(error)
            self._clock.sleep(RECONNECT_PAUSE_S)
            return 0
        self._received_at = self._clock.monotonic()
        self._transitions.recovered("broker")
        self._owned.add_deliveries(deliveries, self._received_at)
        self._stats.received += len(deliveries)
        return len(deliveries)

    def acknowledge(self, deliveries: list[Delivery]) -> None:
        """Let the broker delete these messages. Only for messages that every design has stored, and for refused
        messages that the dead-letter queue has. If the broker is gone they come again, and are folded as duplicates.
        """
        if not deliveries:
            return
        try:
            self._source.ack(deliveries)
        except BrokerUnavailableError as error:
            self._end(error)
        else:
            self._stats.acked += len(deliveries)

    def dead_letter(self, delivery: Delivery, error: BadEventError) -> bool:
        """Publish a refused message to the dead-letter queue. Returns False if the session ended instead.

        Raises ``DeadLetterError`` if the broker takes no dead letters now.
        """
        try:
            self._source.dead_letter(delivery, error.reason, error.detail)
        except BrokerUnavailableError as unavailable:
            self._end(unavailable)
            return False
        return True

    def send_watermarks(self, owner: str, now: float) -> bool:
        """Send a watermark message through the queue of each owned partition. Returns False if the session ended."""
        try:
            for partition in self._owned:
                self._source.send_marker(partition.number, watermark_message(owner, now))
        except BrokerUnavailableError as error:
            self._end(error)
            return False
        return True

    def give_up(self) -> None:
        """Close the connection and drop all partitions. Messages in the buffers of this session go back to the queues,
        for the consumers that are active now.
        """
        self._source.close()
        self._owned.drop_all()

    def close(self) -> None:
        """Close the connection. Unacknowledged messages go to the next owners."""
        self._source.close()

    def count_failure(self, error: BrokerUnavailableError) -> None:
        """Count and log a failure of the broker that does not end this session."""
        self._stats.broker_errors += 1
        self._transitions.failing("broker", str(error))

    def _end(self, error: BrokerUnavailableError) -> None:
        self.count_failure(error)
        self._owned.drop_all()
