"""Times to live of a server whose clock stands still: no item looks younger than it is."""

from __future__ import annotations

import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.servers import MemcachedServer
from nodestate.ports import Put, Write
from nodestate.store.memcached import MemcachedStore
from nodestate.store.server_clock import MARGIN_S, RESET_S, TICK_S, VERIFIED_S, ServerClock
from tests.machines.simulated_cell import JudgedReader, SimulatedCell

LEASE_S = 600


class FrozenNowAndThen:
    """A server's clock that a timer sets to whole seconds, late while the server is frozen."""

    def __init__(self, phase_s: float, ahead_s: float, freezes: list[tuple[float, float]]) -> None:
        self._phase_s, self._ahead_s = phase_s, ahead_s
        self._freezes = freezes

    def reply_at(self, moment: float, *, before_the_tick: bool) -> tuple[float, int]:
        """When a request of ``moment`` is answered, and the server's clock in the reply."""
        for begin, end in self._freezes:
            if begin <= moment < end or (before_the_tick and end <= moment < end + 0.001):
                return max(moment, end), self._set_at(begin)
        return moment, self._set_at(moment)

    def _set_at(self, moment: float) -> int:
        ticked_at = math.floor(moment - self._phase_s) + self._phase_s
        for begin, end in self._freezes:
            if begin <= ticked_at < end:
                ticked_at = end if moment >= end else math.floor(begin - self._phase_s) + self._phase_s
        return math.floor(ticked_at + self._ahead_s)


@given(
    st.floats(0.0, 0.99),
    st.floats(-50.0, 50.0),
    st.lists(st.tuples(st.floats(0.2, 90.0), st.floats(0.0, 15.0), st.booleans()), min_size=1, max_size=12),
    st.lists(st.floats(0.001, 30.0), min_size=10, max_size=60),
)
def test_no_reply_of_a_server_that_was_frozen_makes_an_item_look_younger_than_it_is(
    phase_s: float, ahead_s: float, gaps: list[tuple[float, float, bool]], pauses_s: list[float]
) -> None:
    """I5 (V1): at any phase of the timer, for any freezes, after the client has seen the clock before a freeze."""
    freezes, at = [], 10.0
    for gap_s, length_s, _ in gaps:
        freezes.append((at + gap_s, at + gap_s + length_s))
        at += gap_s + length_s
    server = FrozenNowAndThen(phase_s, ahead_s, freezes)
    writer, reader = ServerClock(), ServerClock()
    for moment in (5.0, 5.5, 6.05, 6.5):  # both saw a tick while the server was well
        for clock in (writer, reader):
            replied_at, said = server.reply_at(moment, before_the_tick=False)
            clock.observe(moment, replied_at, said)
    moment = 7.0
    for number, pause_s in enumerate(pauses_s):
        moment += pause_s
        written_at = moment - 3.0
        until = math.floor(writer.for_writers_at(written_at) - MARGIN_S) + LEASE_S
        replied_at, said = server.reply_at(moment, before_the_tick=gaps[number % len(gaps)][2])
        if reader.must_be_asked(moment):
            lag_s = reader.observe(moment, replied_at, said)
        else:
            lag_s = reader.lag_s(moment, replied_at)
        age_s = LEASE_S - (until - said - lag_s) + 1
        assert moment - age_s <= written_at
        if replied_at == moment and said >= reader.at(moment) - 1 and writer.for_writers_at(0.0) == writer.at(0.0):
            assert age_s <= 3.0 + TICK_S + 2 + MARGIN_S, "an item looks older than rounding explains"
        moment = replied_at
        writer.observe(moment, moment, server.reply_at(moment, before_the_tick=False)[1])


def test_client_that_asks_only_while_the_server_is_late_does_not_take_that_for_the_difference() -> None:
    """I5 (V1): the best observation of a window counts, and in some windows there may be no good one."""
    clock = ServerClock()
    clock.observe(5.0, 5.0, 5)
    for moment, said in ((70.0, 67), (140.0, 137), (210.0, 207)):  # each time frozen for the last three seconds
        assert clock.observe(moment, moment, said) == 3
    assert clock.at(300.0) == 300.0


class Jumping:
    """A server's clock, as a client with a monotonic clock sees it; one of the two jumps at ``jump_at``."""

    def __init__(self, phase_s: float, jump_at: float, jump_s: float) -> None:
        self._phase_s, self._jump_at, self._jump_s = phase_s, jump_at, jump_s

    def at(self, moment: float) -> int:
        """The clock at a moment of the client."""
        return math.floor(moment + self._phase_s + (self._jump_s if moment >= self._jump_at else 0.0) + 1_000.0)


@given(
    st.floats(0.0, 0.99),
    st.floats(20.0, 150.0),
    st.one_of(st.floats(-60.0, -3.0), st.floats(3.0, 60.0)),
    st.floats(VERIFIED_S + 0.01, 1.0),
)
def test_ages_are_right_soon_after_a_machine_was_paused_with_its_clock(
    phase_s: float, jump_at: float, jump_s: float, pause_s: float
) -> None:
    """I5: the estimate of a client, from before the jump, would make items too young or too old for two minutes.

    The clock of a store's machine stands still while it is paused, so that it is behind from then on. The clock of a
    client's machine may do the same, or leap ahead.
    """
    server = Jumping(phase_s, jump_at, jump_s)
    writer, reader = ServerClock(), ServerClock()
    moment, replies_since = 0.0, 0
    while moment < jump_at + 150.0:
        until = math.floor(writer.for_writers_at(moment) - MARGIN_S) + LEASE_S if writer.is_known else None
        read_at = moment + pause_s / 2
        said = server.at(read_at)
        lag_s = reader.observe(read_at, read_at, said)
        crosses = moment < jump_at <= read_at
        if until is not None and not crosses and (moment < jump_at or replies_since > 0):
            age_s = LEASE_S - (until - said) + 1
            assert read_at - moment <= age_s, "too young for a reader that has just connected"
            assert read_at - moment <= age_s + lag_s, "too young for a reader from before the jump"
            if moment < jump_at or moment > jump_at + RESET_S + 3.0:
                assert age_s + lag_s <= read_at - moment + TICK_S + 2 + 2 * MARGIN_S, "older than rounding explains"
        moment += pause_s
        replies_since += moment >= jump_at
        writer.observe(moment, moment, server.at(moment))


@pytest.mark.parametrize("jump_s", [-3.0, -8.0, -60.0])
def test_a_client_that_asks_rarely_connects_again_after_a_machine_was_paused_with_its_clock(jump_s: float) -> None:
    """Regression: its ages were too old for ever, as each late reply may have come after another freeze."""
    server, clock = Jumping(0.5, 100.0, jump_s), ServerClock()
    lags = []
    for moment in range(0, 400, 61):
        has_ticked = clock.needs_connection
        lags.append(clock.observe(moment, moment, server.at(moment), has_ticked=has_ticked))
    assert lags[2] >= -jump_s - 1
    assert lags[-1] == 0


def frozen_cell() -> tuple[SimulatedCell, list[JudgedReader]]:
    """A cell with readers that look every ten seconds, just before its only server is frozen for eight seconds.

    Nodes changed during the freeze, and the server answers before its clock has ticked.
    """
    cell = SimulatedCell(servers=1)
    cell.start_member([0, 1], [])
    for number in range(6):
        cell.start_agent(f"node-{number}", {"usage": {"VCPU": 1}})
    cell.run_well(60)
    readers = [JudgedReader(cell, design) for design in cell.config.designs]
    for _ in range(3):
        for reader in readers:
            reader.read(60.0)
        cell.run_well(10.3)
    cell.servers[0].stop()
    cell.pass_time(0.5)
    cell.change_some(1.0)
    cell.confirm()
    cell.pass_time(7.5)
    cell.servers[0].start()
    cell.servers[0].clock_stands_at = cell.clock.monotonic() - 8.0
    return cell, readers


def test_a_server_that_answers_before_its_clock_ticks_makes_no_view_look_younger() -> None:
    """I5 (V1): the readers found other heads before the freeze, so only the time to live tells the age of this one."""
    cell, readers = frozen_cell()
    for reader in readers:
        view = reader.read(60.0)  # judged: each version that was confirmed before the view's claim is there
        assert view.age >= 8.0
    cell.servers[0].clock_stands_at = None
    cell.readers = readers
    cell.run_well(2)
    assert all(reader.read(5.0).age < 3.0 for reader in readers)
    cell.converge()


def test_a_node_that_was_silent_during_a_freeze_does_not_look_younger() -> None:
    """I5 (V1b): the wrong time would stay, because the latest sign of life is kept."""
    cell, readers = frozen_cell()
    silent_at = {name: cell.truth.last_sign(name) for name in cell.agents}
    for reader in readers:
        view = reader.read(60.0)
        for name in view.nodes:
            assert view.node_age(name) >= 8.0 or silent_at[name] >= cell.clock.monotonic() - view.node_age(name)


def test_an_owner_is_not_taken_for_alive_by_a_server_whose_clock_stands_still() -> None:
    """A takeover adds the age of the former head: it must not be too low either."""
    cell, _ = frozen_cell()
    [member] = cell.members
    frozen_at = cell.clock.monotonic() - 8.0
    member.source.inner.disconnect()
    member.step()  # notices that the session is over
    while len(member.consumer.owned) < 2:
        member.step()
    for partition in member.consumer.owned.values():
        assert partition.caught_up_at <= frozen_at


@pytest.mark.service
@pytest.mark.thorough
def test_times_to_live_of_a_real_server_that_was_frozen_are_not_too_long(memcached: MemcachedServer) -> None:
    """Most servers that wake answer open connections before their clock ticks."""
    store = MemcachedStore(memcached.address, timeout_s=5.0)
    store.write([Write(Put.ADD, "k", b"v", ttl_s=LEASE_S)])
    written_at = time.monotonic()
    for _ in range(6):
        store.fetch(["k"])
        memcached.pause()
        time.sleep(4.0)
        wake = threading.Timer(0.02, memcached.resume)
        asked_at = time.monotonic()
        wake.start()
        item = store.fetch(["k"])["k"]
        assert item.ttl_s is not None
        assert LEASE_S - item.ttl_s + 1 >= asked_at - written_at
        wake.join()
        time.sleep(1.2)
    store.close()
