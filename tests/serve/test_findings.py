"""Findings and health by HTTP: the report of the doctor, shared by requests, and never the cause of a stuck service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.waiting import wait_until
from nodestate.config import Config
from nodestate.designs.control import Control, record_from_settings
from nodestate.errors import StoreUnavailableError
from nodestate.findings import Finding
from nodestate.findings.finding import found, well
from nodestate.serve import cell_examination, finding_events
from nodestate.store.memory import process_server
from nodestate.testing import ManualClock
from tests.partition_owner import Owner, report
from tests.serve.running_service import RunningService
from tests.serve.test_views import new_world


class Doctor:
    """Examines a cell as a test says, and counts the examinations."""

    def __init__(self) -> None:
        self.findings: list[Finding] = [well("broker", "RabbitMQ 3.10.8")]
        self.examinations_count = 0
        self.error: Exception | None = None
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, config: Config, control: Control) -> list[Finding]:
        assert control.reads in control.writes
        assert config.cell
        self.examinations_count += 1
        self.may_end.wait()
        if self.error is not None:
            raise self.error
        return self.findings


@pytest.fixture
def doctor() -> Iterator[Doctor]:
    made = Doctor()
    yield made
    made.may_end.set()


@pytest.fixture
def running(doctor: Doctor) -> Iterator[RunningService]:
    with RunningService.over(new_world(), examine=doctor) as running:
        yield running


def test_findings_have_code_severity_remedy_and_page(running: RunningService, doctor: Doctor) -> None:
    doctor.findings.append(found("queue-no-consumer", "queues", "partition 3 has no consumer"))
    answer = running.get("/v1/findings")
    assert answer.status_code == 200
    assert answer.headers["age"] == "0"
    good, bad = answer.json()["findings"]
    assert (good["severity"], good["code"], good["remedy"]) == ("pass", "", "")
    assert (bad["code"], bad["says"]) == ("queue-no-consumer", "partition 3 has no consumer")
    assert bad["severity"] in {"warn", "fail"}
    assert bad["remedy"]
    assert bad["docs"].endswith("#queue-no-consumer")


@pytest.mark.parametrize(
    ("code", "severity", "status"),
    [("", "pass", 200), ("dead-letters", "warn", 200), ("store-unreachable", "fail", 503)],
)
def test_health_is_the_worst_severity_and_a_failure_is_a_status_of_its_own(
    running: RunningService, doctor: Doctor, code: str, severity: str, status: int
) -> None:
    if code:
        doctor.findings.append(found(code, "a part", "a fault"))
    answer = running.get("/health")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/health+json"
    assert answer.json()["status"] == severity
    assert answer.json()["output"] == ("a part: a fault" if code else "")
    assert running.get("/livez").status_code == 200


def test_requests_share_one_examination(running: RunningService, doctor: Doctor) -> None:
    doctor.may_end.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(running.get, path) for path in ["/health", "/v1/findings"] * 4]
        assert running.get("/v1/view").status_code == 200  # the service works meanwhile
        doctor.may_end.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert doctor.examinations_count == 1


def test_an_old_examination_is_repeated(
    running: RunningService, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.get("/health")
    monkeypatch.setattr(cell_examination, "REUSE_S", 0.0)
    running.get("/health")
    assert doctor.examinations_count == 2


def test_an_examination_that_takes_long_is_a_refusal_and_goes_on(
    running: RunningService, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_examination, "TIMEOUT_S", 0.05)
    doctor.may_end.clear()
    refused = running.get("/v1/findings")
    assert (refused.status_code, refused.json()["type"]) == (503, "overloaded")
    monkeypatch.undo()
    doctor.may_end.set()
    assert running.get("/v1/findings").status_code == 200
    assert doctor.examinations_count == 1


def test_a_failed_examination_is_a_problem_and_is_tried_again(running: RunningService, doctor: Doctor) -> None:
    doctor.error = StoreUnavailableError("memcached", "away")
    assert running.get("/health").status_code == 503
    doctor.error = None
    assert running.get("/health").json()["status"] == "pass"


def test_a_stream_gets_an_event_when_a_finding_appears_or_goes(
    running: RunningService, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures that change are no news. Without a client of the topic, nothing is examined for events."""
    monkeypatch.setattr(cell_examination, "REUSE_S", 0.0)
    monkeypatch.setattr(finding_events, "LOOK_S", 0.01)
    backlog, silent = "queue-backlog", "agents-unresponsive"
    with running.client.stream("GET", "/v1/events?topics=decisions") as other:
        next(other.iter_lines())
    assert doctor.examinations_count == 0
    with running.client.stream("GET", "/v1/events?topics=findings") as stream:
        events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        assert next(events) == {"reason": "start"}
        assert next(events) == {"findings": [], "appeared": [], "gone": []}
        doctor.findings = [found(backlog, "queues", "7 events wait"), found(silent, "agents", "3 of 4 nodes")]
        event = next(events)
        assert event["appeared"] == [{"code": backlog, "subject": "queues"}, {"code": silent, "subject": "agents"}]
        assert event["gone"] == []
        assert [one["says"] for one in event["findings"]] == ["7 events wait", "3 of 4 nodes"]
        doctor.findings = [found(backlog, "queues", "8 events wait"), found(silent, "agents", "2 of 4 nodes")]
        seen = doctor.examinations_count
        wait_until(lambda: doctor.examinations_count > seen + 1, "the cell is not examined again")
        doctor.findings = [found(backlog, "queues", "9 events wait")]
        event = next(events)
        assert (event["appeared"], event["gone"]) == ([], [{"code": silent, "subject": "agents"}])
        assert [one["says"] for one in event["findings"]] == ["9 events wait"]
        with running.client.stream("GET", "/v1/events?topics=findings") as late:
            lines = (line for line in late.iter_lines() if line.startswith("data: "))
            next(lines)
            assert [one["code"] for one in json.loads(next(lines)[6:])["findings"]] == [backlog]


def test_without_a_broker_the_findings_are_those_of_stores_and_nodes() -> None:
    """A service that only reads needs no broker; its absence is no fault of the cell."""
    process_server.cache_clear()
    config = Config(partitions=1, designs=("snapshot",))
    owner = Owner("snapshot", process_server(), ManualClock())
    owner.begin()
    owner.commit(report("n1", 1, status="up"))
    findings = cell_examination.examined(config, record_from_settings(config, 0.0))
    process_server.cache_clear()
    assert {finding.about for finding in findings} >= {"snapshot", "agents"}
    assert {finding.about for finding in findings}.isdisjoint({"broker", "queues", "dead letters", "signatures"})
