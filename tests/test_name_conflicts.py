"""Two agents of one name: one reports the node and takes its orders, the other is told, and doctor names both."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodestate.agent.agent import Agent
from nodestate.agent.incarnation import IncarnationLock
from nodestate.agent.name_conflicts import PRESENCE_HEARTBEATS_COUNT, UNANSWERED_COUNT
from nodestate.agent.sources import NodeGone
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.errors import BadEventError
from nodestate.findings.agent_checks import examine_names
from nodestate.model import MAX_CLOCK_AHEAD_S
from nodestate.model.orders import bad_order, decode_order
from nodestate.model.presence import Presence, encode_presence
from nodestate.scheduling.scheduler import Scheduler
from nodestate.testing import MemorySink
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import STATE, boot, cell_of

ABSENCE_S = (UNANSWERED_COUNT + 1) * PRESENCE_HEARTBEATS_COUNT * 1.0
"""Within this time an agent notices that the other one is gone, with heartbeats each second."""


class SecondAgent:
    """Another agent of node n0, on another machine, which is stepped with the cell's own."""

    def __init__(self, cell: SchedulingCell, incarnation: int, life: str) -> None:
        self.fleet = StaticFleet({"n0": {**STATE, "traits": ["CUSTOM_SECOND"]}})
        self.sink: MemorySink = cell.broker.sink()
        self.agent = Agent(
            cell.config,
            [self.fleet],
            self.sink,
            cell.clock,
            random.Random(7),
            inbox=self.sink,
            incarnation=incarnation,
            life=life,
            host="second-host",
        )
        self.frozen = False
        step_others = cell.clock.run_others

        def step_all() -> None:
            step_others()
            self.step(cell)

        cell.clock.run_others = step_all

    def step(self, cell: SchedulingCell) -> None:
        if self.frozen:
            return
        cell.clock.busy = True
        self.agent.step(0.0)
        cell.clock.busy = False

    @property
    def instances(self) -> list[str]:
        return list(self.fleet.resources_of("n0").allocations)


def pass_time(cell: SchedulingCell, seconds: float) -> None:
    """Let time pass for both agents, the consumer and the schedulers."""
    cell.clock.sleep(seconds)
    for process in cell.processes:
        process.scheduler.step()


def state_of(scheduler: Scheduler) -> Any:
    return scheduler.refresh().nodes["n0"].state


@pytest.mark.parametrize(
    ("later_s", "life", "second_wins"),
    [(5, "a", True), (-5, "z", False), (0, "~", True), (0, "", False)],
    ids=["started later", "started earlier", "equal incarnations, higher life", "equal incarnations, lower life"],
)
def test_of_two_agents_of_one_name_one_reports_and_builds(later_s: int, life: str, second_wins: bool) -> None:
    cell, (one, _) = cell_of(1)
    pass_time(cell, 100.0)
    second = SecondAgent(cell, cell.incarnation + later_s, life or "0")
    pass_time(cell, 2.0)
    boot(one.scheduler, "a")
    pass_time(cell, 5.0)
    first_has = "a" in cell.nodes_by_instance()
    assert (first_has, second.instances) == ((False, ["a"]) if second_wins else (True, []))
    shown = state_of(one.scheduler)
    assert ("CUSTOM_SECOND" in shown.get("traits", ())) is second_wins
    assert list(shown["allocations"]) == ["a"]


def test_doctor_names_both_hosts_until_the_other_agent_is_gone() -> None:
    cell, (one, _) = cell_of(1)
    second = SecondAgent(cell, cell.incarnation + 5, "a")
    pass_time(cell, 3.0)
    [finding] = examine_names(cell.config, one.scheduler.refresh(), cell.clock.time())
    assert finding.says.startswith("two agents report n0: one on second-host, whose state is shown, and one on ")
    pass_time(cell, 1_000.0)
    assert len(list(examine_names(cell.config, one.scheduler.refresh(), cell.clock.time()))) == 1
    cell.agent_frozen = True
    pass_time(cell, 1_000.0)
    assert list(examine_names(cell.config, one.scheduler.refresh(), cell.clock.time())) == []
    assert second.instances == []


def test_an_agent_that_lost_its_node_sends_no_event_of_it() -> None:
    cell, _ = cell_of(1)
    SecondAgent(cell, cell.incarnation + 5, "a")
    pass_time(cell, 2.0)
    stats = cell.agent.stats
    before = (stats.reports, stats.changes, stats.heartbeats)
    cell.fleet.build("n0", "b", {"resources": {"VCPU": 1}})
    pass_time(cell, 60.0)
    cell.agent.leave()
    assert (stats.reports, stats.changes, stats.heartbeats) == before
    assert cell.agent.publishers["n0"].live


def test_an_agent_of_an_earlier_version_answers_no_presence() -> None:
    """It takes the presence for an order that it can't decode, which is answered only if it names a queue."""
    body = encode_presence(Presence(node="n0", incarnation=1, life="a"))
    with pytest.raises(BadEventError) as raised:
        decode_order(body)
    assert bad_order(body, raised.value) is None


def test_an_agent_whose_events_consumers_refuse_does_not_silence_another() -> None:
    """Its clock was more than a day ahead when it began, so its incarnation would win against all others."""
    cell, _ = cell_of(1)
    pass_time(cell, 100.0)
    SecondAgent(cell, int(cell.clock.time() + MAX_CLOCK_AHEAD_S + 86_400), "a")
    pass_time(cell, 200.0)
    assert not cell.agent._conflicts.lost


# -- the other agent is gone -----------------------------------------------------------------------


def reports(agent: Agent) -> bool:
    """Return whether an agent reports node n0."""
    return "n0" not in agent._conflicts.lost


def contested_cell() -> tuple[SchedulingCell, Scheduler, SecondAgent]:
    """A cell whose agent has lost its node to a second one."""
    cell, (one, _) = cell_of(1, heartbeat_s=1.0)
    second = SecondAgent(cell, cell.incarnation + 50, "a")
    pass_time(cell, 5.0)
    assert not reports(cell.agent)
    return cell, one.scheduler, second


def test_the_agent_that_lost_its_node_reports_it_again_when_the_other_one_is_gone() -> None:
    """Regression: it stayed silent for ever, so the node of a cloned machine was lost with the clone."""
    cell, scheduler, second = contested_cell()
    pass_time(cell, 2 * ABSENCE_S)
    assert not reports(cell.agent), "the other agent answers all presences"
    second.frozen = True
    cell.fleet.build("n0", "b", {"resources": {"VCPU": 1}})
    cell.fleet.revive("n0")  # the next poll gives its state
    pass_time(cell, ABSENCE_S)
    assert reports(cell.agent)
    boot(scheduler, "a")
    pass_time(cell, 2.0)
    shown = scheduler.refresh().nodes["n0"]
    assert list(shown.state["allocations"]) == ["b", "a"]
    assert "traits" not in shown.state, "the state is this agent's own"
    assert shown.version.incarnation > cell.incarnation + 50


def test_an_agent_that_returns_after_another_one_took_its_node_does_not_take_it_back() -> None:
    """Two agents that displace each other again and again would be worse than either of them."""
    cell, scheduler, second = contested_cell()
    second.frozen = True
    pass_time(cell, ABSENCE_S)
    assert reports(cell.agent)
    second.frozen = False
    pass_time(cell, ABSENCE_S)
    for _ in range(5):
        assert (reports(cell.agent), reports(second.agent)) == (True, False)
        pass_time(cell, ABSENCE_S / 2)
    boot(scheduler, "a")
    assert (cell.nodes_by_instance(), second.instances) == ({"a": ["n0"]}, [])


def test_an_agent_that_leaves_gives_its_node_to_the_other_one_at_once() -> None:
    cell, scheduler, second = contested_cell()
    second.agent.leave()
    second.frozen = True
    pass_time(cell, 3.0)
    assert reports(cell.agent)
    boot(scheduler, "a")
    assert cell.nodes_by_instance() == {"a": ["n0"]}


def test_an_agent_whose_source_lost_the_node_does_not_report_it_again() -> None:
    cell, _, second = contested_cell()
    cell.agent._conflicts.keep(NodeGone("n0"))
    second.frozen = True
    pass_time(cell, 2 * ABSENCE_S)
    assert not reports(cell.agent)


def test_an_outage_of_the_broker_does_not_make_an_agent_regard_the_other_one_as_gone() -> None:
    """It counts presences of its own that came back, and not the time."""
    cell, _, second = contested_cell()
    cell.broker.stop()
    pass_time(cell, 3 * ABSENCE_S)
    cell.broker.start()
    for _ in range(20):
        pass_time(cell, 10.0)
        assert (reports(cell.agent), reports(second.agent)) == (False, True)


@given(
    st.lists(st.tuples(st.sampled_from(["first", "second", "broker"]), st.sampled_from([5.0, 40.0, 150.0])), max_size=5)
)
@settings(max_examples=8, deadline=None)
def test_one_agent_keeps_the_node_after_any_pauses(pauses: list[tuple[str, float]]) -> None:
    """Agents are paused, the broker is away: at the end one agent reports the node, and goes on to do so."""
    cell, scheduler, second = contested_cell()
    for who, seconds in pauses:
        if who == "broker":
            cell.broker.stop()
        else:
            cell.agent_frozen, second.frozen = who == "first", who == "second"
        cell.clock.sleep(seconds)
        cell.agent_frozen = second.frozen = False
        if who == "broker":
            cell.broker.start()
        cell.clock.sleep(3.0)
    pass_time(cell, ABSENCE_S)
    first_reports = reports(cell.agent)
    assert reports(second.agent) is not first_reports
    pass_time(cell, ABSENCE_S)
    assert (reports(cell.agent), reports(second.agent)) == (first_reports, not first_reports)
    boot(scheduler, "a")
    pass_time(cell, 5.0)
    assert ("a" in cell.nodes_by_instance(), second.instances == ["a"]) == (first_reports, not first_reports)
    assert ("CUSTOM_SECOND" in state_of(scheduler).get("traits", ())) is not first_reports


def test_the_incarnation_of_a_node_that_was_taken_back_is_stored(tmp_path: Path) -> None:
    """The next start must have a larger one, also if the clock is behind the other agent's."""
    with IncarnationLock(tmp_path, "n1", 100.0) as lock:
        lock.raise_to(5_000)
        lock.raise_to(3_000)
    with IncarnationLock(tmp_path, "n1", 200.0) as lock:
        assert lock.incarnation == 5_001
