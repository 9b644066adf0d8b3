"""Answers that a scheduler refuses are recorded in memcached, and ``doctor`` names them."""

from __future__ import annotations

from nodestate.config import Config
from nodestate.findings.finding import WARN
from nodestate.findings.signature_checks import examine_refused_answers
from nodestate.scheduling.claims import REASSERT_S
from nodestate.store import keys
from nodestate.store.refused_answers import KEPT_S, REFUSED_ANSWERS, RefusedAnswers
from nodestate.testing import process_server
from tests.machines.scheduling_cell import CELL, SchedulerProcess, SchedulingCell
from tests.planted_values import replace, sealed
from tests.scheduling.cells import cell_of

KEY = keys.refused_answers(CELL)
UPKEEP_S = 2 * REASSERT_S


def forge(process: SchedulerProcess, count: int) -> None:
    """Let answers arrive that no agent sent."""
    process.courier.reply_to  # noqa: B018 - connects
    for _ in range(count):
        process.courier.receive(b"no answer")


def recorded(cell: SchedulingCell) -> tuple[int, str] | None:
    item = next(iter(cell.servers)).fetch([KEY]).get(KEY)
    found = REFUSED_ANSWERS.find(KEY, item)
    return (found.count, found.scheduler) if found is not None else None


def test_refused_answers_of_all_schedulers_are_counted_in_one_record() -> None:
    cell, (one, two) = cell_of(2)
    cell.run_for(UPKEEP_S)
    assert recorded(cell) is None
    forge(one, 3)
    cell.run_for(UPKEEP_S)
    assert recorded(cell) == (3, "s0")
    forge(two, 2)
    cell.run_for(UPKEEP_S)
    assert recorded(cell) == (5, "s1")
    cell.clock.advance(KEPT_S + 1.0)
    assert recorded(cell) is None, "the record is not kept for ever"


def test_refused_answers_are_recorded_when_the_server_answers_again() -> None:
    cell, (one,) = cell_of(2, schedulers=1)
    server = next(iter(cell.servers))
    server.stop()
    forge(one, 4)
    cell.run_for(UPKEEP_S)
    server.start()
    cell.run_for(UPKEEP_S)
    assert recorded(cell) == (4, "s0")


def test_a_damaged_record_is_replaced() -> None:
    cell, (one,) = cell_of(2, schedulers=1)
    server = next(iter(cell.servers))
    for wrong in (b"", sealed([0, "s", "r"]), sealed([2**63, "s", "r"])):
        replace(server, KEY, wrong)
        forge(one, 1)
        cell.run_for(UPKEEP_S)
        assert recorded(cell) == (1, "s0")


def test_doctor_names_refused_answers_without_printing_what_a_program_planted() -> None:
    server = process_server()
    try:
        assert examine_refused_answers(Config()) == []
        replace(server, KEY, REFUSED_ANSWERS.pack(RefusedAnswers(7, "s1", "n1: answer: \x1b[2J forged")))
        [finding] = examine_refused_answers(Config())
        assert (finding.level, finding.about) == (WARN, "answers")
        assert finding.says.startswith("schedulers refused 7 answers to orders")
        assert "scheduler s1: n1: answer: " in finding.says
        assert "\x1b" not in finding.says
    finally:
        server.flush()
