"""When a process replaces a session in which the broker refuses messages or confirms none, and which URL it tries."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from nodestate.broker import connector
from nodestate.broker.confirm_watch import FIRST_PATIENCE_S, LONGEST_PATIENCE_S, REFUSALS_PAUSE_S, ConfirmWatch
from nodestate.broker.connector import SessionHolder, one_off_session, open_session
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError
from nodestate.testing import ManualClock

TIMEOUT_S = 5.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def watch(clock: ManualClock) -> ConfirmWatch:
    """The watch of a session that has just begun."""
    return ConfirmWatch(clock, TIMEOUT_S, "agent")


def failing_s(watch: ConfirmWatch, clock: ManualClock, *, refused: bool) -> float:
    """Begin a session in which all messages are refused, or none is answered; return after how long it is given up."""
    watch.opened()
    began = clock.monotonic()
    watch.sent()
    while not watch.gives_up(""):
        if refused:
            watch.answered(False, 0)
        clock.advance(0.25)
        watch.sent()
    return clock.monotonic() - began


@pytest.mark.parametrize("refused", [True, False])
def test_each_session_in_which_nothing_is_confirmed_is_given_up_later(
    watch: ConfirmWatch, clock: ManualClock, refused: bool
) -> None:
    """A queue may be full, or most nodes of a cluster away. Then no session helps, and each costs a connection."""
    took = [failing_s(watch, clock, refused=refused) for _ in range(8)]
    assert took[0] <= FIRST_PATIENCE_S + 1 if refused else took[0] <= TIMEOUT_S + 1
    assert took[-1] >= LONGEST_PATIENCE_S / 2
    assert all(later > earlier / 2 for earlier, later in pairwise(took))


def test_a_session_that_worked_is_given_up_as_soon_as_the_first(watch: ConfirmWatch, clock: ManualClock) -> None:
    for _ in range(8):
        failing_s(watch, clock, refused=True)
    watch.opened()
    clock.advance(REFUSALS_PAUSE_S + 1)
    watch.sent()
    watch.answered(False, 0)
    clock.advance(FIRST_PATIENCE_S)
    assert watch.gives_up("")


def test_a_session_whose_messages_are_confirmed_late_but_one_after_the_other_is_kept(
    watch: ConfirmWatch, clock: ManualClock
) -> None:
    watch.sent()
    for _ in range(100):
        clock.advance(TIMEOUT_S - 1)
        watch.sent()
        watch.answered(True, 1)
        assert not watch.gives_up("")
    watch.answered(True, 0)
    clock.advance(1_000.0)
    assert not watch.gives_up(""), "nothing was published, so nothing is missing"


def test_single_refusals_do_not_end_a_session(watch: ConfirmWatch, clock: ManualClock) -> None:
    for _ in range(20):
        watch.answered(False, 0)
        assert not watch.gives_up("")
        clock.advance(REFUSALS_PAUSE_S + 1)
        watch.answered(True, 0)
        assert not watch.gives_up("")


def test_a_session_waits_for_a_broker_that_says_that_it_reads_nothing(watch: ConfirmWatch, clock: ManualClock) -> None:
    watch.sent()
    for _ in range(100):
        clock.advance(TIMEOUT_S + FIRST_PATIENCE_S)
        assert not watch.gives_up("it is short of memory")
    clock.advance(TIMEOUT_S - 1)
    assert not watch.gives_up(""), "the broker reads again, and needs a moment"


class _Server:
    """A node of a cluster: ``down`` refuses connections, ``mute`` accepts them and answers nothing else."""

    errors = (OSError,)

    def __init__(self, url: str, state: str) -> None:
        self.url = url
        self.state = state
        self.queues = self

    def declare(self, *_: object, **__: object) -> None:
        self.use()

    def use(self) -> None:
        """Raise an error unless the server works."""
        if self.state != "up":
            raise TimeoutError(self.state)

    def drop(self) -> None:
        """Do nothing."""

    close = drop


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, cell: str) -> dict[str, _Server]:
    """Three nodes of a cluster. The setting ``broker`` of ``config_of`` has their URLs."""
    made = {url: _Server(url, "up") for url in (f"amqp://{cell}-{name}" for name in "abc")}

    def connect(config: Config, url: str, *_: object) -> Any:
        if made[url].state == "down":
            raise BrokerUnavailableError(config.broker, "refused")
        return made[url]

    monkeypatch.setattr(connector, "_connect", connect)
    return made


def config_of(servers: dict[str, _Server]) -> Config:
    return Config(broker="; ".join(servers))


@pytest.mark.parametrize("state", ["down", "mute"])
def test_a_process_connects_to_another_node_if_one_does_not_answer(servers: dict[str, _Server], state: str) -> None:
    """A frozen node, or one that was cut off from the others, accepts connections and declares nothing."""
    config, (first, second, third) = config_of(servers), servers.values()
    first.state = state
    assert open_session(config, "test").url == second.url
    second.state = state
    assert open_session(config, "test").url == third.url
    first.state = second.state = "up"
    assert open_session(config, "test").url == third.url, "a node that answers is kept"
    third.state = state
    assert open_session(config, "test").url == first.url
    first.state = second.state = state
    with pytest.raises(BrokerUnavailableError):
        open_session(config, "test")


def test_a_process_leaves_a_node_that_accepts_connections_and_then_does_not_answer(servers: dict[str, _Server]) -> None:
    """If it began with the first URL again, it would never get away from a node that was cut off from the others."""
    config, (first, second, third) = config_of(servers), servers.values()
    holder: SessionHolder[Any] = SessionHolder(
        config, lambda: open_session(config, "test", declare=False), lambda connection: connection
    )
    assert holder.get() is first
    first.state = "mute"
    with pytest.raises(BrokerUnavailableError), holder.use() as session:
        session.use()
    assert holder.get() is second
    second.state = "mute"
    with pytest.raises(BrokerUnavailableError), one_off_session(config, "test", declare=False) as session:
        session.use()
    with one_off_session(config, "test", declare=False) as session:
        assert session is third
    with pytest.raises(BrokerUnavailableError), holder.use() as session:
        session.use()
    assert holder.get() is third, "two sessions that broke at one node skip no node"
