"""Whether the broker takes the messages of a session, and when to replace a session in which it does not."""

from __future__ import annotations

import math
import random
from typing import Final

import structlog

from nodestate.ports import Clock
from nodestate.ports.backoff import DoublingPause

FIRST_PATIENCE_S: Final = 4.0
LONGEST_PATIENCE_S: Final = 30.0
"""A session in which the broker refuses messages is given up after up to 4, 8, 16, 30 s."""
REFUSALS_PAUSE_S: Final = 15.0
"""If the broker refused no message for this number of seconds, it takes them again. All publishers repeat a refused
message more often than that. A session that worked for longer is given up as soon as the first.
"""


class ConfirmWatch:
    """Watches the confirms of one session after the other, and says when to replace the present one.

    working --refused--> failing --15 s without a refusal, and one confirmed--> working
    working --published, and nothing confirmed--> failing --confirmed--> working
    failing --``gives_up``--> the owner opens another session --``opened``--> working

    After a node of a cluster died, RabbitMQ 3.10.8 refuses all messages for some quorum queues in a channel that was
    opened before these queues had a new leader, and takes them in a new channel. A node that was cut off from the other
    nodes confirms nothing, and keeps its connections. In both cases another session helps. It does not help while a
    queue is full or most nodes of the cluster are away. So each session is given up later than the one before.

    Args:
        clock: measures the time.
        timeout_s: shortest time in seconds without any confirm after which a session is given up.
        role: the process that publishes, for the log.
    """

    def __init__(self, clock: Clock, timeout_s: float, role: str) -> None:
        self._clock = clock
        """Measures the time."""
        self._timeout_s = timeout_s
        """See the class."""
        self._role = role
        """See the class."""
        self._patience = DoublingPause(FIRST_PATIENCE_S, LONGEST_PATIENCE_S)
        """Lengthens ``_patience_s``."""
        self._patience_s = self._next_patience_s()
        """Seconds for which the present session may fail."""
        self._opened_at = clock.monotonic()
        """Monotonic time at which the session began."""
        self._refused_since = math.inf
        """Monotonic time of the first of the refusals that follow each other; infinite if there is none."""
        self._refused_at = -math.inf
        """Monotonic time of the last refusal."""
        self._silent_since = math.inf
        """Monotonic time of the last answer, or of the first publish after it; infinite if no publish is unanswered."""

    def opened(self) -> None:
        """Forget the last session: another one began."""
        self._opened_at = self._clock.monotonic()
        self._refused_since, self._refused_at, self._silent_since = math.inf, -math.inf, math.inf

    def sent(self) -> None:
        """A message was published, which the broker must answer."""
        if self._silent_since == math.inf:
            self._silent_since = self._clock.monotonic()

    def answered(self, ok: bool, waiting: int) -> None:
        """The broker confirmed messages, or refused them if ``ok`` is False; ``waiting`` others are unanswered."""
        now = self._clock.monotonic() if waiting or not ok or self._refused_at > -math.inf else 0.0
        self._silent_since = now if waiting else math.inf
        recent = self._refused_at > -math.inf and now - self._refused_at <= REFUSALS_PAUSE_S
        if not ok:
            self._refused_since = self._refused_since if recent else now
            self._refused_at = now
        elif not recent:
            self._refused_since, self._refused_at = math.inf, -math.inf

    def gives_up(self, alarm: str) -> bool:
        """True if the session has failed for long. Call it when all answers that arrived are processed.

        Args:
            alarm: why the broker reads nothing from the connection, which it said; empty if it does. Publishes wait
                then, and no other session helps.
        """
        now = self._clock.monotonic()
        if self._refused_since == math.inf and now - self._silent_since < self._timeout_s:  # the usual case
            return False
        if alarm and self._silent_since < math.inf:
            self._silent_since = now
        failing_since = min(self._refused_since, self._silent_since)
        if failing_since - self._opened_at > REFUSALS_PAUSE_S:
            self._patience.reset()
            self._patience_s = min(self._patience_s, FIRST_PATIENCE_S)
        refused = now - self._refused_since >= self._patience_s
        if not refused and now - self._silent_since < max(self._patience_s, self._timeout_s):
            return False
        doing = "refuses messages" if refused else "does not confirm messages"
        structlog.get_logger("nodestate.broker").warning(
            f"the broker {doing}, so the {self._role} connects again",
            seconds=round(now - failing_since, 1),
        )
        self._patience_s = self._next_patience_s()
        return True

    def _next_patience_s(self) -> float:
        """The patience with the next session. Random, so that not all agents of a cell connect at the same moment."""
        return random.uniform(0.5, 1.0) * self._patience.lengthen()
