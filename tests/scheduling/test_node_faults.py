"""Refusals are remembered: nodes whose agent is gone or fails rank last for a while, for all schedulers."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from nodestate.agent.sources import FullState, StatePatch
from nodestate.cli.scheduling import explanation_json, print_explanation
from nodestate.errors import OrderFailedError
from nodestate.ports import WriteStatus
from nodestate.scheduling.claims import CLAIMS, ClaimRecord
from nodestate.scheduling.orders.boot import Booted, BootOutcome, Failed
from nodestate.scheduling.orders.boot_tracker import MAX_NODES_COUNT
from nodestate.scheduling.orders.refusals import MAX_FAULTY_NODES_COUNT
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection import NodeFaults, Selector
from nodestate.scheduling.selection.node_faults import FORGET_S, HALF_LIFE_S
from nodestate.scheduling.selection.plugins import own
from nodestate.store.wire import Codec
from nodestate.testing import ManualClock
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import wanted
from tests.scheduling.claim_tables import Parties
from tests.scheduling.fleets import ChangingPartition, asked, fleet_of, host

FAULTY = [f"bad{number}" for number in range(9)]
GOOD = [f"good{number}" for number in range(3)]


def cell_with_faulty_nodes(schedulers: int = 2) -> tuple[SchedulingCell, list[SchedulerProcess]]:
    """A cell of nine nodes that look best, and three smaller ones."""
    states: dict[str, Any] = {
        name: {"status": "up", "inventory": {"VCPU": {"total": vcpu}, "MEMORY_MB": {"total": 1_000 * vcpu}}}
        for names, vcpu in ((FAULTY, 64), (GOOD, 8))
        for name in names
    }
    cell = SchedulingCell(states)
    cell.wait_until_complete()
    processes = [cell.start_scheduler(f"s{number}") for number in range(schedulers)]
    for process in processes:
        process.scheduler.refresh()
    cell.run_for(12.0)
    return cell, processes


def kill(cell: SchedulingCell) -> None:
    """No agent listens for the faulty nodes any longer."""
    for name in FAULTY:
        del cell.broker.transit.listeners[name]


def break_down(cell: SchedulingCell) -> None:
    """The hypervisors of the faulty nodes carry out no order."""
    build = cell.fleet.build

    def fail_or_build(node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        if node in FAULTY:
            raise OrderFailedError(node, "the hypervisor does not answer")
        return build(node, instance, allocation)

    cell.fleet.build = fail_or_build  # type: ignore[method-assign]  # fails on some nodes


def outcome_of(scheduler: Scheduler, instance: str) -> BootOutcome:
    [outcome] = scheduler.boot(parse(wanted(instance, weights={"cpu": 4.0})))
    return outcome


@pytest.mark.parametrize("spoil", [kill, break_down])
def test_a_boot_succeeds_although_nine_dead_or_broken_nodes_look_best(spoil: Any) -> None:
    """The next boot of this scheduler and of any other begins with a good node."""
    cell, (one, two) = cell_with_faulty_nodes()
    spoil(cell)
    first = outcome_of(one.scheduler, "a")
    assert isinstance(first, Booted), first
    assert first.node in GOOD
    assert sorted(refusal.node for refusal in first.refusals) == FAULTY
    for scheduler, instance in ((one.scheduler, "b"), (two.scheduler, "c")):
        outcome = outcome_of(scheduler, instance)
        assert isinstance(outcome, Booted), outcome
        assert outcome.refusals == ()


def test_nodes_that_refused_are_named_in_an_explanation() -> None:
    """Also by a scheduler that asked none of them."""
    cell, (one, two) = cell_with_faulty_nodes()
    kill(cell)
    outcome_of(one.scheduler, "a")
    outcome_of(two.scheduler, "b")
    request = parse(wanted("c"))
    for scheduler in (one.scheduler, two.scheduler):
        explanation = scheduler.selector.explain(request, count=12)
        assert {fault.node: fault.reason for fault in explanation.refused} == dict.fromkeys(FAULTY, "no-agent")
        losses = {node: parts["refused"] for node, parts in explanation.best}
        assert all(losses[node] < 0.0 for node in FAULTY)
        assert all(losses[node] == 0.0 for node in GOOD)


def test_the_explanation_of_a_command_names_recent_refusals() -> None:
    faults = NodeFaults(ManualClock())
    for number in range(8):
        faults.observe(f"n{number}", "no-agent", age_s=number + 1.0)
    explanation = Selector(fleet_of(host("n0"), host("n9")), own(), 1, node_faults=faults).explain(asked())
    shown = explanation_json(explanation)
    assert shown["refused"][0] == {"node": "n0", "reason": "no-agent", "age": 1.0}
    assert [best["node"] for best in shown["best"]] == ["n9", "n0"]
    out = StringIO()
    print_explanation(SimpleNamespace(out=Console(file=out, width=200)), explanation)  # type: ignore[arg-type]  # prints alone
    assert "ranked lower after a refusal: n0 (no-agent 1 s ago), n1 (no-agent 2 s ago)" in out.getvalue()
    assert ", …" in out.getvalue()


def test_nodes_that_refused_are_asked_again_if_no_other_node_is_left_or_some_time_has_passed() -> None:
    cell, (one, _) = cell_with_faulty_nodes()
    listeners = dict(cell.broker.transit.listeners)
    kill(cell)
    outcome_of(one.scheduler, "a")
    cell.broker.transit.listeners.update(listeners)
    [large] = one.scheduler.boot(parse(wanted("large", 32)))
    assert isinstance(large, Booted)
    assert large.node in FAULTY
    cell.run_for(FORGET_S)
    later = outcome_of(one.scheduler, "b")
    assert isinstance(later, Booted)
    assert later.node in FAULTY
    assert one.scheduler.explain(parse(wanted("c"))).refused == ()


@pytest.mark.parametrize("absent_s", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("more", [{}, {"force_nodes": ["good0"]}, {"group": {"name": "g", "policy": "anti-affinity"}}])
def test_boots_wait_while_all_agents_are_absent_for_a_moment(absent_s: float, more: dict[str, Any]) -> None:
    """The agents connect to another node of the RabbitMQ cluster; meanwhile every order comes back at once."""
    cell, (one, _) = cell_with_faulty_nodes()
    listeners, began = dict(cell.broker.transit.listeners), cell.clock.monotonic()
    cell.broker.transit.listeners.clear()
    boots = [boot for name in "ab" for boot in one.scheduler.submit(parse(wanted(name, **more)))]

    def are_done() -> bool:
        if cell.clock.monotonic() - began >= absent_s:
            cell.broker.transit.listeners.update(listeners)
        return all(boot.outcome is not None for boot in boots)

    one.scheduler.run(are_done, 30.0)
    assert [type(boot.outcome) for boot in boots] == [Booted, Booted], [str(boot.outcome) for boot in boots]
    assert one.scheduler.session.boots_under_way_count == 0


def test_a_boot_fails_if_no_agent_returns_in_time() -> None:
    cell, (one, _) = cell_with_faulty_nodes()
    cell.broker.transit.listeners.clear()
    began = cell.clock.monotonic()
    outcome = outcome_of(one.scheduler, "a")
    assert isinstance(outcome, Failed)
    assert {refusal.reason for refusal in outcome.refusals} == {"no-agent"}
    assert cell.clock.monotonic() - began < 2 * cell.config.answer_timeout_s


def test_a_node_that_does_not_answer_ranks_last_for_the_next_boot() -> None:
    cell, (one, two) = cell_with_faulty_nodes()
    arrive = cell.broker.transit.arrive
    cell.broker.transit.arrive = lambda message: None if message.kind == "order" else arrive(message)  # type: ignore[method-assign]  # loses orders
    [boot] = one.scheduler.submit(parse(wanted("a")))
    one.scheduler.step()
    silent = boot.placing.node
    cell.clock.advance(cell.config.answer_timeout_s)
    one.scheduler.step()
    cell.broker.transit.arrive = arrive  # type: ignore[method-assign]  # as it was
    one.scheduler.run(lambda: boot.outcome is not None, 30.0)
    two.scheduler.claim_table.read_records(cell.fleet.nodes())
    for scheduler in (one.scheduler, two.scheduler):
        assert [(fault.node, fault.reason) for fault in scheduler.selector.explain(parse(wanted("b"))).refused] == [
            (silent, "silent")
        ]


def test_an_instance_that_fails_everywhere_is_tried_on_a_limited_number_of_nodes() -> None:
    state = {"status": "up", "inventory": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000}}}
    cell = SchedulingCell({f"n{number}": state for number in range(60)})
    cell.wait_until_complete()
    one = cell.start_scheduler("one")

    def fail(*_: object) -> FullState:
        raise OrderFailedError("n", "no such image")

    cell.fleet.build = fail  # type: ignore[method-assign]  # fails
    outcome = outcome_of(one.scheduler, "a")
    assert isinstance(outcome, Failed)
    assert len(outcome.refusals) == MAX_FAULTY_NODES_COUNT["failed"] + MAX_NODES_COUNT


def test_failures_that_come_late_count_towards_the_limit_of_tries() -> None:
    """Each of them costs the user time."""
    cell, (one, _) = cell_with_faulty_nodes()
    break_down(cell)
    step_agents = cell.clock.run_others

    def step_later() -> None:
        cell.clock.busy = True
        cell.clock.sleep(1.0)
        cell.clock.busy = False
        step_agents()

    cell.clock.run_others = step_later
    outcome = outcome_of(one.scheduler, "a")
    assert isinstance(outcome, Failed)
    assert len(outcome.refusals) == MAX_NODES_COUNT


def test_the_loss_of_rank_falls_with_time_and_does_not_depend_on_the_weights() -> None:
    clock = ManualClock()
    faults = NodeFaults(clock)
    fleet = fleet_of(host("best", vcpu=80), host("good", vcpu=8))
    selector = Selector(fleet, own(), 1, node_faults=faults)
    request = asked(4, weights={"cpu": 900.0})
    faults.observe("best", "failed")
    seconds = 0
    while selector.best(request) == [1]:
        clock.advance(1.0)
        seconds += 1
    assert HALF_LIFE_S < seconds < FORGET_S
    assert selector.best(request, 2) == [0, 1]
    faults.observe("best", "failed", age_s=FORGET_S)
    faults.observe("best", "no-agent", age_s=seconds + 1.0)
    [known] = faults.recent()
    assert (known.reason, known.age_s) == ("failed", seconds)


def test_a_fault_is_written_again_if_another_scheduler_changed_the_record_first() -> None:
    parties = Parties("one", "two")
    parties.show(ChangingPartition(host("a"), host("b")).view)
    one, two = parties.parties
    one.claim_table.add_fault("a", "failed")
    two.take("a")
    one.claim_table.flush_all()
    assert two.take("a") is WriteStatus.CONFLICT
    two.take("a")
    record = parties.record("a")
    assert (record.fault, len(record.claims)) == ("failed", 2)


class FormerClaimRecord(msgspec.Struct, frozen=True, array_like=True):
    """A claim record as schedulers read it before it had faults."""

    born: float
    seen_incarnation: int = 0
    seen_generation: int = 0
    claims: tuple[Any, ...] = ()


def test_earlier_schedulers_read_records_with_a_fault() -> None:
    """They ignore the elements of an array that they do not know. A record without a fault is as they write it."""
    former = Codec(FormerClaimRecord)
    assert former.unpack(CLAIMS.pack(ClaimRecord(1.0, 2, 3, (), "failed", 4.0))) == FormerClaimRecord(1.0, 2, 3)
    assert CLAIMS.unpack(former.pack(FormerClaimRecord(1.0, 2, 3))) == ClaimRecord(1.0, 2, 3)
    assert CLAIMS.pack(ClaimRecord(1.0, 2, 3)) == former.pack(FormerClaimRecord(1.0, 2, 3))
