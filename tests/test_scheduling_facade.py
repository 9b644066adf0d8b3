"""The scheduler that a user holds: what it says where something is not there, too old, unclear or new."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate import scheduling
from nodestate.errors import BadRequestError, NotFoundError
from nodestate.scheduling import Booted, Confirmed, Failed, NotReserved, Reservation, Scheduler, parse, parse_group
from nodestate.scheduling.claims import UNSURE_S
from tests.machines.scheduling_cell import SchedulingCell
from tests.test_library import imported_after

STATE: dict[str, Any] = {"inventory": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000}}}


def cell_with_nodes(count: int = 2, **states: Any) -> SchedulingCell:
    cell = SchedulingCell({**{f"n{n}": STATE for n in range(1, count + 1)}, **states}, servers=1)
    cell.wait_until_complete()
    return cell


def wanted(instance: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    return {"instances": [instance], "resources": {"VCPU": vcpu, "MEMORY_MB": 500}, **more}


def boot(scheduler: Scheduler, instance: str, vcpu: int = 1, **more: Any) -> Booted:
    [outcome] = scheduler.boot(parse(wanted(instance, vcpu, **more)))
    assert isinstance(outcome, Booted)
    return outcome


def test_it_exports_what_it_says() -> None:
    assert all(hasattr(scheduling, name) for name in scheduling.__all__)
    assert len(set(scheduling.__all__)) == len(scheduling.__all__)


def test_who_only_reads_imports_no_scheduling() -> None:
    """And who schedules imports no broker: it is given one."""
    script = (
        "import nodestate, sys; assert not [name for name in sys.modules if name.startswith('nodestate.scheduling')]"
    )
    assert imported_after(script) == set()
    assert imported_after("import nodestate.scheduling") == set()


def test_one_object_does_from_the_reservation_to_the_move() -> None:
    cell = cell_with_nodes(3)
    scheduler = cell.start_scheduler("s").scheduler
    cell.run_for(UNSURE_S)
    group = {"members": [wanted("a"), wanted("b")], "group": {"name": "g", "policy": "anti-affinity"}}
    held = scheduler.reservations.reserve(parse_group(group), owner="alice")
    assert isinstance(held, Reservation)
    assert [one.id for one in scheduler.reservations.held()] == [held.id]
    assert scheduler.reservations.extend(held.id, 100.0).seconds == 100.0
    confirmed = scheduler.reservations.confirm(held.id, owner="alice")
    assert isinstance(confirmed, Confirmed)
    cell.run_for(2.0)
    before = {one.instance: one.node for one in confirmed.members}
    moved = scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert moved.node not in before.values()
    cell.run_for(2.0)
    [outcome] = scheduler.migrations.evacuate(moved.node)
    assert isinstance(outcome, Booted)


def test_the_first_reservation_of_a_cell_waits_until_its_records_are_sure() -> None:
    """Nobody can tell a new record from one that was lost, so it takes ``UNSURE_S``: less than the default timeout."""
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    hasty = scheduler.reservations.reserve(parse_group({"members": [wanted("a")]}), timeout_s=1.0)
    assert isinstance(hasty, NotReserved)
    assert str(hasty.reason) == (
        "claims may be missing from the records of all 2 nodes, which were created less than 10 s ago; try again"
    )
    assert isinstance(scheduler.reservations.reserve(parse_group({"members": [wanted("a")]})), Reservation)


def test_a_boot_that_wants_a_fresher_view_fails_alone() -> None:
    """Whoever asks for more than there is must not keep the others from what they asked for."""
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    [hasty] = scheduler.submit(parse(wanted("hasty", max_age=0.001)))
    [patient] = scheduler.submit(parse(wanted("patient")))
    scheduler.run(lambda: hasty.outcome is not None and patient.outcome is not None, 10.0)
    assert isinstance(hasty.outcome, Failed)
    assert "and the request's max_age is 0.001 s" in str(hasty.outcome.reason)
    assert isinstance(patient.outcome, Booted)


def test_nodes_that_gave_no_sign_of_life_are_passed_over() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    scheduler.refresher.node_max_age = 25.0
    request = parse(wanted("a", count=1))
    assert scheduler.select(request)[0].node is not None
    cell.fleet.kill("n1")
    cell.run_for(40.0)
    assert {scheduler.select(parse(wanted(f"a{n}")))[0].node for n in range(10)} == {"n2"}


def test_what_is_not_there_is_told_from_what_can_not_be_right() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    for ask in (
        lambda: scheduler.migrations.migrate("nobody"),
        lambda: scheduler.migrations.evacuate("nowhere"),
        lambda: scheduler.reservations.release("never"),
        lambda: scheduler.reservations.confirm("never"),
    ):
        with pytest.raises(NotFoundError):
            ask()
    booted = boot(scheduler, "a")
    cell.run_for(2.0)
    for ask, field in (
        (lambda: scheduler.migrations.migrate("a", to=booted.node), "to"),
        (lambda: scheduler.migrations.resize("a", {"VCPV": 1}), "resources.VCPV"),
        (lambda: scheduler.migrations.resize("a", {"VCPU": -1}), "resources.VCPU"),
        (lambda: scheduler.reservations.extend("never", 0.0), "hold_s"),
    ):
        with pytest.raises(BadRequestError) as caught:
            ask()
        assert not isinstance(caught.value, NotFoundError)
        assert caught.value.field == field


def test_a_resize_changes_the_classes_that_it_names() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    node = boot(scheduler, "a", 2).node
    cell.run_for(2.0)
    assert isinstance(scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    assert cell.fleet.room(node).allocations["a"]["resources"] == {"VCPU": 3, "MEMORY_MB": 500}
    cell.run_for(2.0)
    assert isinstance(scheduler.migrations.resize("a", {"MEMORY_MB": 0}), Booted)
    assert cell.fleet.room(node).allocations["a"]["resources"] == {"VCPU": 3}


def test_an_evacuation_does_what_it_can_of_what_others_put_there() -> None:
    """An allocation that nobody booted by a request can't be asked for again: that is its outcome, and no error."""
    odd = {
        **STATE,
        "usage": {"VCPU": 2},
        "allocations": {
            "odd": {"resources": {"VCPU": 1}, "group": "g", "hints": {"group_policy": "love"}},
            "even": {"resources": {"VCPU": 1}},
        },
    }
    cell = cell_with_nodes(1, odd=odd)
    scheduler = cell.start_scheduler("s").scheduler
    outcomes = {outcome.instance: outcome for outcome in scheduler.migrations.evacuate("odd")}
    assert isinstance(outcomes["even"], Booted)
    assert isinstance(outcomes["odd"], Failed)
    assert "group.policy" in str(outcomes["odd"].reason)


def test_a_node_that_was_asked_for_by_name_is_named_in_the_refusal() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    node = boot(scheduler, "a", 5).node
    [other] = {"n1", "n2"} - {node}
    boot(scheduler, "b", 5, force_nodes=[other])
    cell.run_for(2.0)
    failed = scheduler.migrations.migrate("a", to=other)
    assert isinstance(failed, Failed)
    assert str(failed.reason) == f"{other} does not pass resources; VCPU: 5 wanted, 3 free"


def test_the_room_of_an_instance_that_ended_is_free_at_once() -> None:
    """Its claim would hold the room until ``claim_ttl_s`` is over: who ends it, or goes before it ends, drops that."""
    cell = cell_with_nodes(1)
    scheduler = cell.start_scheduler("s").scheduler
    for instance, ends in (("a", scheduler), ("b", cell.start_scheduler("another").scheduler)):
        boot(scheduler, instance, 8)
        cell.run_for(1.0)
        scheduler.refresh()
        if ends is not scheduler:
            scheduler.drop_allocated_claims()
            assert cell.claims("n1") == []
        ends.terminations.terminate([("n1", instance)])
        cell.run_for(1.0)
        other = cell.start_scheduler(f"who did not see {instance}").scheduler
        for one in (scheduler, other):
            assert one.select(parse(wanted("next", 8)))[0].node == "n1"


def test_a_weigher_that_is_not_there_is_refused_before_anything_is_begun() -> None:
    """Only a scheduler knows which there are. Found out in the midst of a step it took all other boots with it."""
    cell = cell_with_nodes(2)
    scheduler = cell.start_scheduler("s").scheduler
    [other] = scheduler.submit(parse(wanted("vm1")))
    odd = wanted("vm2", weights={"luck": 1.0})
    for refused, field in (
        (lambda: scheduler.submit(parse(odd)), "weights.luck"),
        (lambda: scheduler.claim([parse(wanted("vm3")), parse(odd)]), "weights.luck"),
        (
            lambda: scheduler.reservations.reserve(parse_group({"members": [wanted("vm3"), odd]})),
            "members[1].weights.luck",
        ),
    ):
        with pytest.raises(BadRequestError) as error:
            refused()
        assert error.value.field == field
    scheduler.run(lambda: other.outcome is not None, 10.0)
    assert isinstance(other.outcome, Booted)
