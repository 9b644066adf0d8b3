"""A client's knowledge of the clock that a memcached counts times to live by.

That clock is a number of whole seconds, which a timer of the server sets once a second. A server that was frozen, or
that gets no processor time, answers requests before its timer runs: it then tells more time to live than is left, by
the length of the whole freeze. Readers derive ages from the time that is left, so an old item would look young.

No reply tells this by itself: a reply may come at once, and before the timer has run. But the difference between the
server's clock and the client's is constant. So a client that has asked for the server's clock before can predict it to
within a second, and takes the difference off the times to live of a reply.

The difference changes if one machine is paused together with its monotonic clock, or if that clock leaps. A server that
was only frozen has the right time from its next tick on. So if the clock has ticked since a request, and is behind the
time that it should have told to that request, the difference has changed. Writers use the new one from the next reply
on. Readers give up the old one ``RESET_S`` later, when all owners have written their items again.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from nodestate.ports import Item, Key

TICK_S: Final = 1.0
"""Seconds between two settings of the server's clock."""
MARGIN_S: Final = 0.2
"""Largest delay of the timer, in seconds, that counts as none. Writers count times to live from this much earlier, so
such a delay makes nothing look younger than it is.
"""
VERIFIED_S: Final = MARGIN_S / 2
"""A clock that was right this many seconds ago is not asked for again, and a reply that took longer is suspicious."""
WINDOW_S: Final = 60.0
"""The best observation of the last one to two windows counts, because clocks of different machines drift apart."""

RESET_S: Final = 10.0
"""For this many seconds after the difference was found to have changed, readers use the greater one of the two. Items
that a dead owner wrote before look too young after that, but their age is above this number then.
"""


class ServerClock:
    """Estimates one server's clock from the times that it told. All other times are monotonic seconds of the client."""

    def __init__(self) -> None:
        # The server's clock minus the client's: the greatest lower bound in this window, and in the one before.
        self._ahead_s = -math.inf
        self._ahead_before_s = -math.inf
        # When this window began.
        self._window_from = -math.inf
        # When the server's clock was last found to be right.
        self._verified_at = -math.inf
        # The time of the last request, and the server's clock in the reply.
        self._asked_at, self._said = -math.inf, 0
        # The seconds by which that reply was behind the estimate; 0 if it was within the margin.
        self._behind_s = 0.0

    @property
    def is_known(self) -> bool:
        """True if the server's clock was observed."""
        return self._ahead_s > -math.inf or self._ahead_before_s > -math.inf

    def at(self, moment: float) -> float:
        """The server's clock at a moment: a lower bound, at most ``TICK_S`` too low."""
        return moment + max(self._ahead_s, self._ahead_before_s)

    def for_writers_at(self, moment: float) -> float:
        """The server's clock at a moment: a lower bound also if the last reply contradicts earlier ones."""
        return self.at(moment) - self._behind_s

    def must_be_asked(self, moment: float) -> bool:
        """True if a request that is sent at ``moment`` must ask for the server's clock before all else."""
        return moment > self._verified_at + VERIFIED_S

    @property
    def needs_connection(self) -> bool:
        """True if only a new connection can tell whether the server is late again, or the difference has changed.

        A client that asks rarely may have asked only after freezes. A new connection tells a clock that has ticked.
        """
        return self._behind_s > 0 and self._asked_at > self._window_from + WINDOW_S

    def observe(self, sent_at: float, received_at: float, said: int, *, has_ticked: bool = False) -> int:
        """Record that the server told ``said`` as its clock. Returns the lag of the reply, see ``lag_s``.

        ``has_ticked``: the clock has ticked since ``sent_at``, or just before, as that of a new connection.
        """
        if has_ticked:
            self._asked_at, self._said = sent_at, -1
        if said > self._said and self.at(self._asked_at) - said > TICK_S + MARGIN_S:
            self._ahead_before_s = max(self._ahead_before_s, self._ahead_s)
            self._ahead_s = min(self._ahead_s, said - received_at)
            self._window_from = min(self._window_from, received_at + RESET_S - WINDOW_S)
        # A client that happens to ask only while the server is late must not take its lateness for the difference.
        is_late = sent_at + self._ahead_s - said > TICK_S + MARGIN_S
        if received_at > self._window_from + WINDOW_S and not is_late:
            self._ahead_before_s, self._ahead_s, self._window_from = self._ahead_s, -math.inf, received_at
        self._ahead_s = max(self._ahead_s, said - received_at)
        self._asked_at, self._said, self._behind_s = sent_at, said, 0.0
        behind_s = self.at(sent_at) - said
        if behind_s > TICK_S + MARGIN_S:
            self._behind_s = self.at(received_at) - said
            return math.ceil(behind_s)
        lag_s = self.lag_s(sent_at, received_at)
        if lag_s == 0:
            self._verified_at = sent_at
        return lag_s

    def lag_s(self, sent_at: float, received_at: float) -> int:
        """Whole seconds to take off the times to live of a reply that does not tell the server's clock.

        The server's clock was right shortly before the request, so it stood still for at most as long as the reply
        took.
        """
        took_s = received_at - sent_at
        return math.ceil(took_s) if took_s > VERIFIED_S else 0


def less_time_left(items: dict[Key, Item], lag_s: int) -> dict[Key, Item]:
    """The same items with ``lag_s`` seconds less to live; for some, fewer than 0 are left."""
    return {
        key: item if item.ttl_s is None else msgspec.structs.replace(item, ttl_s=item.ttl_s - lag_s)
        for key, item in items.items()
    }
