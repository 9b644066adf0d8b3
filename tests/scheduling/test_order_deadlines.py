"""Deadlines of orders: nothing is built for a claim that is over, however long its scheduler was frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from nodestate.findings.agent_checks import examine_clocks
from nodestate.findings.node_checks import EXPIRED_S
from nodestate.model.orders import Build, Order
from nodestate.ports import WriteStatus
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import VCPU, boot, cell_of, reserve, tell_no_time, wanted

SETTINGS: dict[str, Any] = {"claim_ttl_s": 10.0, "answer_timeout_s": 5.0}
FREEZE_S = 12.0


def freeze_after_claim(process: SchedulerProcess, meanwhile: Callable[[], object]) -> None:
    """Freeze a scheduler once, right after its next compare-and-swap of claim records."""
    flush = process.scheduler.claim_table.flush

    def flush_and_freeze() -> dict[str, Any]:
        outcomes = flush()
        if WriteStatus.STORED in outcomes.values():
            process.scheduler.claim_table.flush = flush  # type: ignore[method-assign]  # as it was
            meanwhile()
        return outcomes

    process.scheduler.claim_table.flush = flush_and_freeze  # type: ignore[method-assign]  # for one claim


def freeze_before_order(process: SchedulerProcess, meanwhile: Callable[[], object]) -> None:
    """Freeze a scheduler once, right before its next order leaves, after all of its checks."""
    send = process.courier.send

    def freeze_and_send(orders: Sequence[Order], expires_s: float) -> None:
        process.courier.send = send  # type: ignore[method-assign]  # as it was
        meanwhile()
        send(orders, expires_s)

    process.courier.send = freeze_and_send  # type: ignore[method-assign]  # for one order


def pass_time(cell: SchedulingCell, seconds: float) -> None:
    """Let time pass for everything but the schedulers."""
    for _ in range(int(seconds)):
        cell.clock.advance(1.0)
        cell.step_agents()


@pytest.mark.parametrize("freeze", [freeze_after_claim, freeze_before_order])
def test_a_scheduler_that_froze_between_claim_and_order_breaks_no_reservation(
    freeze: Callable[[SchedulerProcess, Callable[[], object]], None],
) -> None:
    """Its claim has expired, and another scheduler has promised the room to a reservation meanwhile."""
    cell, (frozen, other) = cell_of(1, **SETTINGS)
    held: list[Reservation] = []

    def meanwhile() -> None:
        pass_time(cell, FREEZE_S)
        held.append(reserve(other.scheduler, "b", vcpu=VCPU))

    freeze(frozen, meanwhile)
    [outcome] = frozen.scheduler.boot(parse(wanted("a", VCPU)), timeout_s=60.0)
    assert isinstance(outcome, Failed), outcome
    assert cell.nodes_by_instance() == {}
    assert isinstance(other.scheduler.reservations.confirm(held[0].id), Confirmed)
    assert cell.nodes_by_instance() == {"b": ["n0"]}


@pytest.mark.parametrize("freeze", [freeze_after_claim, freeze_before_order])
def test_a_migration_or_resize_whose_scheduler_froze_breaks_no_reservation(
    freeze: Callable[[SchedulerProcess, Callable[[], object]], None],
) -> None:
    cell, (frozen, other) = cell_of(2, **SETTINGS)
    at = boot(frozen.scheduler, "a", VCPU // 2).node
    cell.run_for(2.0)
    held: list[Reservation] = []

    def meanwhile() -> None:
        pass_time(cell, FREEZE_S)
        held.append(reserve(other.scheduler, "b", "c", vcpu=VCPU // 2))

    freeze(frozen, meanwhile)
    outcome = frozen.scheduler.migrations.resize("a", {"VCPU": VCPU})
    assert isinstance(outcome, Failed), outcome
    assert isinstance(other.scheduler.reservations.confirm(held[0].id), Confirmed)
    assert cell.nodes_by_instance()["a"] == [at]


def test_a_claim_that_is_over_before_its_order_is_made_again() -> None:
    """The frozen scheduler sends nothing for the claim that is over, claims again, and boots the instance."""
    cell, (frozen, _) = cell_of(2, **SETTINGS)
    freeze_after_claim(frozen, lambda: pass_time(cell, FREEZE_S))
    booted = boot(frozen.scheduler, "a", VCPU)
    assert booted.refusals == ()
    assert booted.conflicts == 1
    cell.run_for(20.0)
    assert cell.nodes_by_instance() == {"a": [booted.node]}
    assert cell.claims("n0") == cell.claims("n1") == []


def test_a_member_is_booted_at_the_end_of_its_reservation() -> None:
    """Its claim is renewed first, because no order is sent for a claim that is nearly over."""
    cell, (one, _) = cell_of(2, **SETTINGS)
    held = reserve(one.scheduler, "a", "b", hold_s=20.0)
    pass_time(cell, 18.0)
    [node] = [member.node for member in held.members if member.instance == "a"]
    outcome = one.scheduler.reservations.boot_member(held.id, "a")
    assert isinstance(outcome, Booted), outcome
    assert (outcome.node, outcome.conflicts) == (node, 0)


# -- clocks that differ ----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [10.0, 3_600.0, -10.0])
def test_instances_are_booted_resized_and_migrated_although_the_agents_clock_differs(ahead_s: float) -> None:
    """An hour is more than the time to live of a claim, and 10 s more than ``answer_timeout_s``."""
    cell, (one, _) = cell_of(2, **SETTINGS)
    cell.agent_clock.ahead_s = ahead_s
    booted = boot(one.scheduler, "a")
    assert (booted.refusals, booted.conflicts) == ((), 0)
    cell.run_for(2.0)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 2}), Booted)
    cell.run_for(2.0)
    assert isinstance(one.scheduler.migrations.migrate("a"), Booted)
    cell.run_for(20.0)
    assert len(cell.nodes_by_instance()["a"]) == 1


def marks(cell: SchedulingCell) -> list[bool]:
    """Return the hint ``placed`` of each allocation."""
    nodes = (cell.fleet.resources_of(node) for node in cell.fleet.nodes())
    return [allocation["hints"]["placed"] for node in nodes for allocation in node.allocations.values()]


def test_a_reservation_is_confirmed_and_marked_although_the_agents_clock_is_ahead() -> None:
    cell, (one, _) = cell_of(2, **SETTINGS)
    cell.agent_clock.ahead_s = 10.0
    held = reserve(one.scheduler, "a", "b")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert marks(cell) == [True, True]


def test_a_scheduler_that_finishes_a_reservation_of_another_one_learns_the_agents_clock() -> None:
    """Nothing waits for the answer to the mark, but the answer tells the time."""
    cell, (one, _) = cell_of(2, **SETTINGS)
    held = reserve(one.scheduler, "a", "b")
    one.courier.send = _without_marks(one.courier.send)  # type: ignore[method-assign]  # it dies before it marks them
    with suppress(TimeoutError):
        one.scheduler.reservations.confirm(held.id, timeout_s=10.0)
    cell.processes.remove(one)
    assert marks(cell) == [False, False]
    cell.agent_clock.ahead_s = 10.0
    cell.run_for(40.0)
    assert marks(cell) == [True, True]


def _without_marks(send: Callable[[Sequence[Order], float], None]) -> Callable[[Sequence[Order], float], None]:
    """Return a ``send`` that loses the orders which only mark a member as placed."""

    def send_others(orders: Sequence[Order], expires_s: float) -> None:
        send([order for order in orders if not (isinstance(order, Build) and order.hints.get("placed"))], expires_s)

    return send_others


def test_doctor_names_nodes_whose_clocks_are_ahead_and_nodes_that_call_orders_expired() -> None:
    cell, (one, _) = cell_of(2, **SETTINGS)
    cell.agent_clock.ahead_s = 10.0
    booted = boot(one.scheduler, "a")
    cell.run_for(1.0)
    ahead, expired = examine_clocks(one.scheduler.refresh(), cell.clock.time())
    assert ahead.says.startswith("1 node has a clock ahead of this machine's, ")
    assert expired.says == f"1 of 2 nodes refused orders as expired, for example {booted.node}"
    cell.run_for(EXPIRED_S + 20.0)
    assert list(examine_clocks(one.scheduler.refresh(), cell.clock.time())) == []


def test_deadlines_follow_an_agents_clock_that_is_set_right() -> None:
    """The agent refuses the first order, because its deadline is by the clock before, and gets it again at once."""
    cell, (one, _) = cell_of(1, **SETTINGS)
    cell.agent_clock.ahead_s = 10.0
    boot(one.scheduler, "a")
    clocks = one.scheduler.session.orders.boots._sender.clocks
    assert clocks.ahead_s("n0") == pytest.approx(10.0, abs=0.5)
    cell.agent_clock.ahead_s = 0.0
    booted = boot(one.scheduler, "b")
    assert (booted.refusals, booted.conflicts) == ((), 0)
    assert clocks.ahead_s("n0") == 0.0


@pytest.mark.parametrize(
    ("ahead_s", "set_to_s"),
    [(-20.0, -20.0), (10.0, 0.0), (3_600.0, 0.0), (0.0, -20.0), (-20.0, -40.0)],
    ids=[
        "behind",
        "ahead, then set right",
        "an hour ahead, then set right",
        "right, then set back",
        "set back further",
    ],
)
def test_no_order_is_carried_out_after_its_claim_whatever_the_agents_clock_says(
    ahead_s: float, set_to_s: float
) -> None:
    """I8, I9: a difference that the scheduler remembers must not extend the deadline after the clock was set."""
    cell, (frozen, other) = cell_of(1, **SETTINGS)
    cell.agent_clock.ahead_s = ahead_s
    boot(frozen.scheduler, "x")
    held: list[Reservation] = []

    def meanwhile() -> None:
        cell.agent_clock.ahead_s = set_to_s
        pass_time(cell, FREEZE_S)
        held.append(reserve(other.scheduler, "b", vcpu=VCPU - 1))

    freeze_before_order(frozen, meanwhile)
    [outcome] = frozen.scheduler.boot(parse(wanted("a", VCPU - 1)), timeout_s=60.0)
    assert isinstance(outcome, Failed), outcome
    assert isinstance(other.scheduler.reservations.confirm(held[0].id), Confirmed)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (1, "n0 refused it: expired; the clocks of n0 and of this scheduler differ: set the time of both machines"),
        (3, "all 3 nodes that were asked refused it: expired; their clocks are ahead of this scheduler's own clock"),
    ],
)
def test_a_boot_that_all_agents_call_expired_names_the_clocks(nodes: int, expected: str) -> None:
    """If all agents say so, the scheduler's own clock is probably wrong."""
    cell, (one, _) = cell_of(nodes, **SETTINGS)
    tell_no_time(cell)
    cell.agent_clock.ahead_s = 10.0
    [outcome] = one.scheduler.boot(parse(wanted("a")), timeout_s=60.0)
    assert isinstance(outcome, Failed)
    assert str(outcome.reason).startswith(expected)
