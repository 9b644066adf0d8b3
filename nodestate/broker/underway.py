"""What is under way on one AMQP channel, counted as the broker counts: pure, without a connection.

A publish:  sent --ack--> done(True)      sent --nack, or the connection broke--> done(False)
A delivery: received --ack--> waiting for those before it --> acked up to here, in one frame
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

OnDone = Callable[[bool], None]


class Confirms:
    """Publishes between sending and their confirm. Tags count from 1, as the broker's do after ``confirm.select``.

    Each ``on_done`` is called exactly once. It must not publish.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, OnDone] = {}
        self._oldest = 1
        self._last = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def sent(self, on_done: OnDone) -> None:
        """One more message went out."""
        self._last += 1
        self._waiting[self._last] = on_done

    def settle(self, tag: int, multiple: bool, ok: bool) -> None:
        """The broker's answer for ``tag``; with ``multiple`` for all up to it (0: for all that were sent)."""
        if not multiple:
            on_done = self._waiting.pop(tag, None)
            if on_done is not None:
                on_done(ok)
            return
        last = min(tag, self._last) if tag else self._last
        first, self._oldest = self._oldest, max(self._oldest, last + 1)
        for settled in range(first, last + 1):
            on_done = self._waiting.pop(settled, None)
            if on_done is not None:
                on_done(ok)

    def lose(self) -> None:
        """The connection broke: nobody will answer for what is still waiting."""
        lost, self._waiting = self._waiting, {}
        for on_done in lost.values():
            on_done(False)


class Unacked:
    """Deliveries of one channel between receipt and ack. Tags count from 1, without a hole.

    An ack with ``multiple`` covers all tags up to its own, so it may only go as far as *everything* before was
    acked; what was acked beyond a hole waits until the hole is filled.
    """

    __slots__ = ("_beyond", "acked", "received")

    def __init__(self) -> None:
        self.received = 0
        self.acked = 0
        self._beyond: set[int] = set()

    @property
    def outstanding(self) -> int:
        """Deliveries that count against the prefetch limit."""
        return self.received - self.acked

    def ack(self, tags: Iterable[int]) -> int | None:
        """Note these as acked. Returns the tag up to which to ack now, or None."""
        self._beyond.update(tag for tag in tags if tag > self.acked)
        upto = self.acked
        while upto + 1 in self._beyond:
            upto += 1
            self._beyond.discard(upto)
        if upto == self.acked:
            return None
        self.acked = upto
        return upto
