"""Dead letters: a refused message goes to the dead-letter queue, and is acknowledged once the broker confirmed it.

    refused --published and confirmed--> acknowledged
    refused --the broker takes no dead letters now--> refused, tried again after a pause

While the broker takes no dead letters, the consumer goes on with all other messages. Refused messages stay
unacknowledged meanwhile. Once their number reaches the setting ``prefetch`` in one partition, the broker delivers
nothing more of that partition, and its views age; all other partitions go on.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.transition_log import TransitionLog
from nodestate.errors import DeadLetterError
from nodestate.ports import Clock
from nodestate.ports.backoff import DoublingPause

DEAD_LETTER_RETRY_S: Final = 1.0
"""Pause before the next try after the broker did not take a dead letter. It doubles with each further failure."""
MAX_DEAD_LETTER_PAUSE_S: Final = 2.0
MAX_LETTERS_COUNT: Final = 100
"""Most dead letters that are published before their confirms are waited for: the broker writes them to disk together.

If each confirm was waited for alone, thousands of refused messages would hold up the events of their partition.
"""
MAX_SEND_S: Final = 0.1
"""Seconds in one step of the consumer after which no further dead letters are sent, because events wait meanwhile."""


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
        self._pause = DoublingPause(DEAD_LETTER_RETRY_S, MAX_DEAD_LETTER_PAUSE_S)
        """Gives the pause after each failure."""
        self._count = 1
        """How many dead letters are published next. After a failure this is 1, as the same ones are published again."""
        self._last_number = -1
        """Number of the partition whose dead letter was sent last."""

    def send_due(self) -> None:
        """Publish refused messages to the dead-letter queue, with the reason, and then acknowledge them.

        Each partition has its turn. Stops after ``MAX_SEND_S``, because events wait meanwhile; the next step goes on.
        If the dead-letter queue cannot take a message, the remaining messages are tried after a pause that doubles.
        """
        now = self._clock.monotonic()
        if now < self._due_at:
            return
        while waiting := [one for one in self._owned if one.refused and not one.withholds(now)]:
            for partition in sorted(waiting, key=lambda one: (one.number <= self._last_number, one.number)):
                self._last_number = partition.number
                if not self._send_some(partition) or self._clock.monotonic() - now >= MAX_SEND_S:
                    return

    def _send_some(self, partition: OwnedPartition) -> bool:
        """Publish and acknowledge the first refused messages of a partition, at most ``_count`` of them.

        Returns False if the dead-letter queue took none of them, or if the session with the broker ended.
        """
        try:
            count = self._session.dead_letter(islice(partition.refused, self._count))
        except DeadLetterError as refusal:
            self._count = 1
            self._transitions.failing("dead letters", str(refusal))
            self._due_at = self._clock.monotonic() + self._pause.lengthen()
            return False
        if not count:
            return False
        sent = [partition.refused.popleft() for _ in range(count)]
        self._count = min(2 * self._count, MAX_LETTERS_COUNT)
        self._pause.reset()
        self._transitions.recovered("dead letters")
        for _, error in sent:
            self._log.warning("dead letter", partition=partition.number, reason=error.reason, detail=error.detail)
        self._session.acknowledge([delivery for delivery, _ in sent])
        return self._owned.owns(partition)
