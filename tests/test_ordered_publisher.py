"""Publishing a stream: outages and refusals may repeat events, but never change the order of a partition."""

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
    """Sink that treats each event as the next word of ``fates`` says; after the last word, all events are "ok".

    ok: the event arrives, and a later call confirms it. lost: it does not arrive, and a later call reports it as lost.
    unsure: it arrives, but a later call reports it as lost. break: the connection breaks; unconfirmed events are
    reported as lost, and this event is not accepted. down: nothing can be sent.
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

    def flush(self, timeout_s: float) -> None:  # noqa: ARG002 - no time passes in this test
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
        """Report the outcome of the oldest events: the next number of ``told``, or all."""
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
def test_every_partition_receives_the_whole_stream_in_order(
    partitions: list[int], fates: list[str], told: list[int]
) -> None:
    """A consumer drops duplicates, so among the events that arrive, the whole stream must be there in order."""
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
def test_confirm_of_an_earlier_attempt_does_not_settle_an_event(told: list[int]) -> None:
    """Events 0 and 1 are sent again because 0 was lost, and the second copy of 1 is lost.

    The first copy of 1 was confirmed, but it arrived before 0, so 1 must be sent a third time.
    """
    sink = ScriptedSink(iter(["lost", "ok", "ok", "ok", "lost", "ok"]), iter(told))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=10.0)

    for number in range(5):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert is_subsequence([b"0", b"1", b"2", b"3", b"4"], [body for _, body in sink.arrived])


def test_without_an_outage_each_event_is_sent_once() -> None:
    sink = ScriptedSink(iter(()))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=1.0)

    for number in range(100):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert sink.arrived == [(0, b"%d" % number) for number in range(100)]
    assert publisher.sent_again == 0


def test_events_after_a_refused_one_are_sent_again() -> None:
    """A consumer applies a change only after its predecessor: if 1 arrived after 2 and 3, both would be dropped."""
    sink = ScriptedSink(iter(["ok", "lost", "ok", "ok"]))
    publisher = OrderedPublisher(sink, ManualClock(), timeout_s=10.0)

    for number in range(4):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    arrived = [body for _, body in sink.arrived]
    assert is_subsequence([b"1", b"2", b"3"], arrived[arrived.index(b"1") :])


@pytest.mark.parametrize(("fate", "error"), [("down", BrokerUnavailableError), ("lost", UnconfirmedError)])
def test_publisher_gives_up_after_a_long_outage(fate: str, error: type[Exception]) -> None:
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


def test_timeout_applies_to_each_outage_separately() -> None:
    """Publishing a file may take hours and meet many short outages."""
    clock = ManualClock()
    sink = ScriptedSink(itertools.cycle(["ok"] * 20 + ["down"] * 4))
    publisher = OrderedPublisher(sink, clock, timeout_s=5.0)
    began = clock.monotonic()

    for number in range(200):
        publisher.send(0, b"%d" % number)
    publisher.finish()

    assert publisher.settled == 200
    assert clock.monotonic() - began > 5.0
