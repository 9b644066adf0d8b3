"""Dead letters: a refused message goes to the dead-letter queue, and is acknowledged once the broker confirmed it.

    refused --published and confirmed--> acknowledged
    refused --the broker takes no dead letters now--> refused, tried again after a pause

While the broker takes no dead letters, the consumer goes on with all other messages. Refused messages stay
unacknowledged meanwhile. Once the number of refused messages reaches the number that the broker sends to one consumer
without acknowledgement, the consumer receives nothing more.
"""

from __future__ import annotations

from typing import Any, Final

from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.transition_log import TransitionLog
from nodestate.errors import DeadLetterError
from nodestate.ports import Clock

DEAD_LETTER_RETRY_S: Final = 1.0
"""Pause before the next try after the broker did not take a dead letter."""


class DeadLetters:
    """Moves the refused messages of all owned partitions to the dead-letter queue."""

    def __init__(
        self, owned: OwnedPartitions, session: BrokerSession, transitions: TransitionLog, clock: Clock, log: Any
    ) -> None:
        self._owned = owned
        """The partitions whose refused messages are moved."""
        self._session = session
        """Publishes the dead letters, and acknowledges the refused messages."""
        self._transitions = transitions
        """Logs when the dead-letter queue stops taking messages, and when it takes them again."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger: one entry for each dead letter."""
        self._due_at = clock.monotonic()
        """No dead letter is sent before this time, in monotonic seconds. It lies ahead only after a failure."""

    def send_due(self) -> None:
        """Publish each refused message to the dead-letter queue, with the reason, and then acknowledge it.

        If the dead-letter queue cannot take a message, the remaining messages are tried ``DEAD_LETTER_RETRY_S`` later.
        """
        now = self._clock.monotonic()
        if now < self._due_at:
            return
        for partition in self._owned:
            while partition.refused and self._owned.owns(partition):
                delivery, error = partition.refused[0]
                try:
                    if not self._session.dead_letter(delivery, error):
                        return
                except DeadLetterError as blocked:
                    self._transitions.failing("dead letters", str(blocked))
                    self._due_at = now + DEAD_LETTER_RETRY_S
                    return
                partition.refused.popleft()
                self._transitions.recovered("dead letters")
                self._log.warning("dead letter", partition=partition.number, reason=error.reason, detail=error.detail)
                self._session.acknowledge([delivery])
