"""Publishing a stream: outages and refusals may repeat events, and never take one out of its order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodestate.cli.ordered_publisher import OrderedPublisher
from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.ports import Resync
from nodestate.testing import ManualClock

OnDone = Callable[[bool], None]


class ScriptedSink:
    """Does with each event what ``fates`` say next, and afterwards all is well.

    ok: it arrives, confirmed by a later call. lost: it arrives nowhere, and that is told by a later call. unsure: it
    arrives, and the confirm is lost with it told as lost. break: the connection breaks, half of what was unconfirmed
    arrived, and this event is not taken. down: nothing can be sent.
    """

    def __init__(self, fates: Iterator[str], told: Iterator[int] = iter(())) -> None:  # noqa: B008
        self.arrived: list[tuple[int, bytes]] = []
        self._fates = fates
        self._told = told
        self._waiting: list[tuple[OnDone, bool]] = []

    def publish(self, partition: int, body: bytes, on_done: OnDone) -> None:
        fate = next(self._fates, "ok")
        if fate in ("break", "down"):
            self._break()
            raise BrokerUnavailableError("scripted", fate)
        self._settle_some()
        if fate != "lost":
            self.arrived.append((partition, body))
        self._waiting.append((on_done, fate == "ok"))

    def flush(self, timeout_s: float) -> None:  # noqa: ARG002 - no time passes here
        if next(self._fates, "ok") == "break":
            self._break()
            raise BrokerUnavailableError("scripted", "break")
        for on_done, ok in self._waiting:
            on_done(ok)
        self._waiting = []

    def resyncs(self, timeout_s: float) -> list[Resync]:  # noqa: ARG002
        return []

    def close(self) -> None:
        pass

    def _settle_some(self) -> None:
        """Confirms come late, and several at a time: as many as ``told`` says next, or all."""
        count = next(self._told, len(self._waiting))
        settled, self._waiting = self._waiting[:count], self._waiting[count:]
        for on_done, ok in settled:
            on_done(ok)

    def _break(self) -> None:
        waiting, self._waiting = self._waiting, []
        for on_done, _ in waiting:
            on_done(False)


def is_subsequence(wanted: list[bytes], arrived: list[bytes]) -> bool:
    remaining = iter(arrived)
    return all(body in remaining for body in wanted)


@settings(max_examples=500)
@given(
    partitions=st.lists(st.integers(0, 1), max_size=12),
    fates=st.lists(st.sampled_from(["ok", "ok", "lost", "unsure", "break", "down"]), max_size=40),
    told=st.lists(st.integers(0, 4), max_size=40),
)
def test_every_event_arrives_behind_all_that_came_before_it(
    partitions: list[int], fates: list[str], told: list[int]
) -> None:
    """What consumers need of a partition: among all that arrived, the whole stream in its order."""
    sink = ScriptedSink(iter(fates), iter(told))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=1_000.0)

    for number, partition in enumerate(partitions):
        publisher.send(partition, b"%d" % number)
    publisher.finish()

    assert publisher.settled == len(partitions)
    for partition in range(2):
        wanted = [b"%d" % number for number, one in enumerate(partitions) if one == partition]
        arrived = [body for where, body in sink.arrived if where == partition]
        assert is_subsequence(wanted, arrived)


@pytest.mark.parametrize("told", [[0, 0, 2, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1, 1, 1]], ids=["in time", "late"])
def test_a_confirm_of_an_earlier_sending_says_nothing_of_the_order(told: list[int]) -> None:
    """Event 0 is lost and sent again, and with it 1, of which the second sending is lost. That the first one was
    confirmed, be it before or after, does not help: it arrived before 0.
    """
    sink = ScriptedSink(iter(["lost", "ok", "ok", "ok", "lost", "ok"]), iter(told))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=10.0)

    for number in range(5):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert is_subsequence([b"0", b"1", b"2", b"3", b"4"], [body for _, body in sink.arrived])


def test_without_trouble_each_event_is_sent_once() -> None:
    sink = ScriptedSink(iter(()))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=1.0)

    for number in range(100):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert sink.arrived == [(0, b"%d" % number) for number in range(100)]
    assert publisher.sent_again == 0


def test_a_refused_event_takes_those_behind_it_along() -> None:
    """A change counts only on exactly its predecessor: 5 behind 6 and 7 would leave both without effect."""
    sink = ScriptedSink(iter(["ok", "lost", "ok", "ok"]))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=10.0)

    for number in range(4):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    arrived = [body for _, body in sink.arrived]
    assert is_subsequence([b"1", b"2", b"3"], arrived[arrived.index(b"1") :])


@pytest.mark.parametrize(("fate", "error"), [("down", BrokerUnavailableError), ("lost", UnconfirmedError)])
def test_trouble_that_lasts_is_given_up(fate: str, error: type[Exception]) -> None:
    clock = ManualClock()
    sink = ScriptedSink(itertools.repeat(fate))
    publisher = OrderedPublisher(sink, clock, timeout_s=30.0)
    began = clock.monotonic()

    def send_on() -> None:
        for number in range(1_000):
            publisher.send(0, b"%d" % number)

    with pytest.raises(error):
        send_on()

    assert 30.0 <= clock.monotonic() - began < 35.0
    assert publisher.settled == 0


def test_the_patience_is_for_each_trouble_anew() -> None:
    """A file that takes hours may meet many short outages."""
    clock = ManualClock()
    sink = ScriptedSink(itertools.cycle(["ok"] * 20 + ["down"] * 4))
    publisher = OrderedPublisher(sink, clock, timeout_s=5.0)
    began = clock.monotonic()

    for number in range(200):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert publisher.settled == 200
    assert clock.monotonic() - began > 5.0
