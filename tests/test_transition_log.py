"""The log of failures that persist."""

from __future__ import annotations

from nodestate.consumers.transition_log import TransitionLog


class _Entries(list[str]):
    """A logger that keeps the texts of its entries."""

    def error(self, _event: str, *, operation: str, reason: str) -> None:
        self.append(f"{operation}: {reason}")

    def info(self, event: str, *, operation: str) -> None:
        self.append(f"{operation}: {event}")


def test_reasons_that_take_turns_are_logged_once_each_until_the_operation_works_again() -> None:
    """Each try to connect goes on with the next URL, so the reasons of one outage alternate."""
    entries = _Entries()
    transitions = TransitionLog(entries)
    for _ in range(100):
        transitions.failing("broker", "connection refused")
        transitions.failing("broker", "connection reset")
    assert entries == ["broker: connection refused", "broker: connection reset"]
    transitions.recovered("broker")
    transitions.failing("broker", "connection refused")
    assert entries[2:] == ["broker: operation works again", "broker: connection refused"]


def test_a_reason_that_several_operations_fail_for_is_logged_once() -> None:
    entries = _Entries()
    transitions = TransitionLog(entries)
    transitions.failing("partition 1", "the server is down")
    transitions.failing("partition 2", "the server is down")
    assert entries == ["partition 1: the server is down"]
