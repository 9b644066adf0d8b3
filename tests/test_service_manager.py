"""Systemd is told that the loop of a process runs, and nothing while it does not run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import COMMAND, start_module
from harness.waiting import PATIENCE_S
from nodestate.cli.service_manager import ServiceManager
from nodestate.cli.shutdown import stop_on_signals


class ReadSocket:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(0.0)

    def messages(self) -> list[str]:
        """The messages that have arrived since the last call."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ReadSocket]]:
    """The address of a socket, and the socket."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify"
    reading = ReadSocket(address)
    yield address, reading
    reading.socket.close()


class Now:
    """A clock that a test sets."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_first_step_makes_the_process_ready_and_each_quarter_of_the_time_shows_that_it_lives(
    manager: tuple[str, ReadSocket],
) -> None:
    address, reading = manager
    now = Now()
    told = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "8000000"}, now)
    assert reading.messages() == []
    told.step_done()
    assert reading.messages() == ["READY=1", "WATCHDOG=1"]
    told.step_done()
    now.seconds += 1.9
    told.step_done()
    assert reading.messages() == []
    now.seconds += 0.1
    told.step_done()
    told.step_done()
    assert reading.messages() == ["WATCHDOG=1"]
    told.stopping()
    assert reading.messages() == ["STOPPING=1"]


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog_is_fed_that_does_not_wait_for_this_process(
    manager: tuple[str, ReadSocket], watchdog: dict[str, str]
) -> None:
    address, reading = manager
    told = ServiceManager({"NOTIFY_SOCKET": address, **watchdog})
    told.step_done()
    assert reading.messages() == ["READY=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody", "x" * 200])
def test_a_socket_without_a_reader_disturbs_no_step(address: str) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    told.step_done()
    told.stopping()


def test_a_full_socket_does_not_block_the_loop(manager: tuple[str, ReadSocket]) -> None:
    address, _ = manager
    told = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    for _ in range(10_000):  # far more than a socket holds
        told.step_done()


def test_a_loop_that_is_within_its_first_step_is_not_ready(
    manager: tuple[str, ReadSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, reading = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with stop_on_signals() as stop:
        assert not stop()
        assert reading.messages() == []
        assert not stop()
        assert reading.messages() == ["READY=1"]
    assert reading.messages() == ["STOPPING=1"]


def test_a_running_command_reports_itself(tmp_path: Path) -> None:
    reading = ReadSocket(str(tmp_path / "notify"))
    settings = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
    with start_module(COMMAND, ["up", "--nodes", "5", "--seconds", "1"], settings, folder=tmp_path) as process:
        process.communicate(timeout=PATIENCE_S)
    told = reading.messages()
    reading.socket.close()
    assert told[0] == "READY=1"
    assert told[-1] == "STOPPING=1"
    assert "WATCHDOG=1" in told
