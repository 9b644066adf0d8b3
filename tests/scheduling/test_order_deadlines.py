"""Deadlines of orders: nothing is built for a claim that is over, however long its scheduler was frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nodestate.model.orders import Order
from nodestate.ports import WriteStatus
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import VCPU, boot, cell_of, reserve, wanted

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
