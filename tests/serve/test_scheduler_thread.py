"""The scheduler's thread: it outlives errors of jobs, refuses jobs if too many wait, and its end is seen."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from harness.waiting import wait_until
from nodestate.scheduling import Scheduler
from nodestate.serve import scheduler_thread
from tests.serve.deciding_cell import DecidingCell, wanted


@pytest.fixture
def deciding() -> Iterator[DecidingCell]:
    with DecidingCell() as found:
        yield found


def test_an_unexpected_error_of_a_job_is_a_500_and_the_thread_goes_on(
    deciding: DecidingCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "claim", lambda *_: 1 / 0)
        answer = deciding.post("/v1/claims", wanted("a"))
        assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert deciding.post("/v1/claims", wanted("a")).status_code == 200


def test_an_unexpected_error_of_a_step_does_not_end_the_thread(
    deciding: DecidingCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise RuntimeError("a plugin")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "step", fail)
        deciding.post("/v1/boots", wanted("a"))
        wait_until(failed.is_set, "no step")
    assert deciding.post("/v1/claims", wanted("b")).status_code == 200


def test_a_full_queue_is_503_with_retry_after(deciding: DecidingCell, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def wait(*_: object) -> list[object]:
        begun.set()
        go_on.wait()
        raise ValueError

    monkeypatch.setattr(Scheduler, "claim", wait)
    thread = deciding.running.service.scheduling.thread
    clients = [threading.Thread(target=deciding.post, args=("/v1/claims", wanted("a")), daemon=True) for _ in range(1)]
    clients[0].start()
    wait_until(begun.is_set, "the job does not begin")
    monkeypatch.setattr(thread._jobs, "maxsize", 1)
    clients.append(threading.Thread(target=deciding.post, args=("/v1/select", wanted("a")), daemon=True))
    clients[1].start()
    wait_until(lambda: not thread._jobs.empty(), "the second job does not wait")
    answer = deciding.post("/v1/select", wanted("a"))
    go_on.set()
    assert (answer.status_code, answer.json()["type"]) == (503, "overloaded")
    assert answer.headers["retry-after"]
    for client in clients:
        client.join()
    assert deciding.running.get("/readyz").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_thread_is_seen_in_livez_and_readyz(
    deciding: DecidingCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Scheduler, "claim", end)
    assert deciding.post("/v1/claims", wanted("a")).status_code == 503
    wait_until(lambda: not deciding.running.service.scheduling.thread.is_alive, "the thread goes on")
    assert [deciding.running.get(path).status_code for path in ("/livez", "/readyz")] == [503, 503]
    assert deciding.post("/v1/select", wanted("a")).status_code == 503


def test_without_a_broker_nodes_are_selected_and_claimed(deciding: DecidingCell) -> None:
    deciding.cell.broker.stop()
    assert deciding.post("/v1/select", wanted("a")).status_code == 200
    assert deciding.post("/v1/claims", wanted("a")).status_code == 200


def test_the_service_stops_while_an_operation_is_under_way(deciding: DecidingCell) -> None:
    deciding.cell.agent_frozen = True
    accepted = deciding.post("/v1/boots", wanted("a"))
    assert accepted.status_code == 202
    assert scheduler_thread.STOP_TIMEOUT_S > 1  # the module waits for the end of the service
