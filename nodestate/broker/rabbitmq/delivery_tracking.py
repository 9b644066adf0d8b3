"""What is under way on one AMQP channel, counted as the broker counts: pure, without a connection.

A publish:  sent --ack--> done(True)      sent --nack, or the connection broke--> done(False)
A delivery: received --ack--> acked: in one frame with all before it, or alone where one before it is not acked yet
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
    acked; what is acked beyond a hole goes one by one. The broker takes each tag once.
    """

    __slots__ = ("_beyond", "_upto", "received")

    def __init__(self) -> None:
        self.received = 0
        self._upto = 0
        self._beyond: set[int] = set()

    def ack(self, tags: Iterable[int]) -> tuple[int | None, list[int]]:
        """Note these as acked. Returns the tag up to which to ack all, or None, and those to ack one by one."""
        fresh = {tag for tag in tags if tag > self._upto and tag not in self._beyond}
        last: int | None = None
        while True:
            following = self._upto + 1
            if following in fresh:
                fresh.discard(following)
                last = following
            elif following in self._beyond:
                self._beyond.discard(following)
            else:
                break
            self._upto = following
        self._beyond |= fresh
        return last, sorted(fresh)
