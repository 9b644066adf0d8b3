"""A sink that records each published event, and whose confirms and outages the test decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.model import parse_event
from nodestate.model.orders import Answer, Order
from nodestate.model.presence import Presence
from nodestate.ports import OrderCounts, Resync


class RecordingSink:
    """A ``ports.Sink`` and a ``ports.AgentInbox`` without orders.

    With ``away`` every call fails; ``settle`` confirms or loses the published events.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.waiting: list[tuple[int, Callable[[bool], None]]] = []
        self.asked: list[Resync] = []
        self.census: list[tuple[str, bytes]] = []
        self.away = False
        self.confirming = True
        self.closed = False

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        self._check()
        self.sent.append((bucket, body))
        self.waiting.append((len(self.sent) - 1, on_done))

    def flush(self, timeout_s: float) -> None:
        self._check()
        if self.confirming:
            self.settle()
        if self.waiting:
            raise UnconfirmedError(len(self.waiting), timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:  # noqa: ARG002 - it never waits
        self._check()
        asked, self.asked = self.asked, []
        return asked

    def answer_census(self, queue: str, node: str, body: bytes) -> None:  # noqa: ARG002 - the body names it, too
        self._check()
        self.census.append((queue, body))

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Do nothing: there are no orders."""

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """Do nothing: there are no orders."""

    def orders(self) -> list[Order]:
        return []

    def order_counts(self, node: str) -> OrderCounts:
        assert node
        return OrderCounts()

    def announce(self, presence: Presence) -> None:
        """Lose the presence."""
        assert presence.life
        self._check()

    def presences(self) -> list[Presence]:
        return []

    def answer(self, queue: str, answer: Answer) -> None:
        raise AssertionError(f"there are no orders, so {answer} answers none on {queue}")

    def close(self) -> None:
        self.closed = True

    def settle(self, ok: bool = True, *, count: int | None = None) -> None:
        settled, self.waiting = self.waiting[:count], self.waiting[count:] if count is not None else []
        for _, on_done in settled:
            on_done(ok)

    def events(self) -> list[tuple[str, int]]:
        """Kind and generation of every event that was sent."""
        return [kind_of(body) for _, body in self.sent]

    def _check(self) -> None:
        if self.away:
            raise BrokerUnavailableError("test", "away")


def kind_of(body: bytes) -> tuple[str, int]:
    """Kind and generation of an event."""
    event = parse_event(body)
    return type(event).__name__.lower(), event.generation
