"""Two agents of one name: one reports the node and takes its orders, the other is told, and doctor names both."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nodestate.agent.agent import Agent
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.cli.doctor.agent_checks import examine_names
from nodestate.errors import BadEventError
from nodestate.model import MAX_CLOCK_AHEAD_S
from nodestate.model.orders import bad_order, decode_order
from nodestate.model.presence import Presence, encode_presence
from nodestate.scheduling.scheduler import Scheduler
from nodestate.testing import MemorySink
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import STATE, boot, cell_of


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
        step_others = cell.clock.run_others
        cell.clock.run_others = lambda: (step_others(), self.step(cell))[0]

    def step(self, cell: SchedulingCell) -> None:
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
