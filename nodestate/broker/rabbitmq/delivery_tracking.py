"""Publishes and deliveries of one AMQP channel that are not yet settled, counted as the broker counts them.

A publish:  sent --ack--> done(True)      sent --nack, returned and acked, or the connection broke--> done(False)
A delivery: received --ack--> acked: together with all before it, or alone if one before it is not acked

Pure: these classes have no connection.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodestate.broker.sessions import OnDone


class Confirms:
    """Publishes between sending and confirm. Tags count from 1, as the broker's do after ``confirm.select``.

    Each ``on_done`` is called exactly once. It must not publish.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[OnDone, bytes]] = {}
        """By tag, the callbacks and the bodies of unconfirmed publishes."""
        self._returned: set[int] = set()
        """Tags of publishes that came back, because no queue takes them. The broker acks them nevertheless."""
        self._oldest = 1
        """All publishes with a smaller tag are settled."""
        self._last = 0
        """Tag of the last publish."""

    def __len__(self) -> int:
        return len(self._waiting)

    def sent(self, on_done: OnDone, body: bytes = b"") -> None:
        """Count one more publish. ``body`` names it if the broker returns it."""
        self._last += 1
        self._waiting[self._last] = on_done, body

    def returned(self, body: bytes) -> None:
        """Process a message that the broker returned: the oldest publish of this body is reported as refused.

        The broker returns messages in the order in which they were published, and acks each afterwards.
        """
        for tag, (_, waiting) in self._waiting.items():
            if waiting == body and tag not in self._returned:
                self._returned.add(tag)
                return

    def settle(self, tag: int, multiple: bool, ok: bool) -> None:
        """Process the broker's answer for ``tag``; with ``multiple`` for all tags up to it, or for all if it is 0.

        ``ok`` is False if the broker refused the messages.
        """
        if not multiple:
            self._settle_one(tag, ok)
            return
        last = min(tag, self._last) if tag else self._last
        first, self._oldest = self._oldest, max(self._oldest, last + 1)
        for settled in range(first, last + 1):
            self._settle_one(settled, ok)

    def lose(self) -> None:
        """Report all unconfirmed publishes as lost: the connection broke, so the broker will not answer for them."""
        lost, self._waiting, self._returned = self._waiting, {}, set()
        for on_done, _ in lost.values():
            on_done(False)

    def _settle_one(self, tag: int, ok: bool) -> None:
        waiting = self._waiting.pop(tag, None)
        if waiting is None:
            return
        if tag in self._returned:
            self._returned.discard(tag)
            ok = False
        waiting[0](ok)


class Unacked:
    """Deliveries of one channel between receipt and ack. Tags count from 1, without a gap.

    An ack with ``multiple`` covers all tags up to its own, so it may only reach as far as every earlier delivery is
    acked. Deliveries beyond an unacked one are acked one by one. The broker accepts each tag once.
    """

    __slots__ = ("_beyond", "_up_to", "received")

    def __init__(self) -> None:
        self.received = 0
        """Tag of the last delivery; 0 before the first."""
        self._up_to = 0
        """All deliveries up to this tag are acked."""
        self._beyond: set[int] = set()
        """Acked tags beyond ``_up_to``."""

    def ack(self, tags: Iterable[int]) -> tuple[int | None, list[int]]:
        """Record deliveries as acked.

        Returns the tag up to which to ack all, or None, and the tags to ack one by one.
        """
        new = {tag for tag in tags if tag > self._up_to and tag not in self._beyond}
        last: int | None = None
        while True:
            following = self._up_to + 1
            if following in new:
                new.discard(following)
                last = following
            elif following in self._beyond:
                self._beyond.discard(following)
            else:
                break
            self._up_to = following
        self._beyond |= new
        return last, sorted(new)
