"""The scheduler's public facade: its operations, and its errors for unknown names, old views and bad requests."""

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


def test_every_name_of_all_is_defined_once() -> None:
    assert all(hasattr(scheduling, name) for name in scheduling.__all__)
    assert len(set(scheduling.__all__)) == len(scheduling.__all__)


def test_importing_nodestate_imports_no_scheduling() -> None:
    """And importing the scheduler imports no broker: it is given a courier."""
    script = (
        "import nodestate, sys; assert not [name for name in sys.modules if name.startswith('nodestate.scheduling')]"
    )
    assert imported_after(script) == set()
    assert imported_after("import nodestate.scheduling") == set()


def test_one_scheduler_reserves_confirms_migrates_and_evacuates() -> None:
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


def test_the_first_reservation_of_a_cell_waits_until_no_claim_record_is_unsure() -> None:
    """A new record can't be told from a lost one, so it waits ``UNSURE_S``: less than the default timeout."""
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    hasty = scheduler.reservations.reserve(parse_group({"members": [wanted("a")]}), timeout_s=1.0)
    assert isinstance(hasty, NotReserved)
    assert str(hasty.reason) == (
        "claims may be missing from the records of all 2 nodes, which were created less than 10 s ago; try again"
    )
    assert isinstance(scheduler.reservations.reserve(parse_group({"members": [wanted("a")]})), Reservation)


def test_only_the_boot_that_demands_a_fresher_view_fails() -> None:
    """A demanding request must not hold back the others."""
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    [hasty] = scheduler.submit(parse(wanted("hasty", max_age=0.001)))
    [patient] = scheduler.submit(parse(wanted("patient")))
    scheduler.run(lambda: hasty.outcome is not None and patient.outcome is not None, 10.0)
    assert isinstance(hasty.outcome, Failed)
    assert "and the request's max_age is 0.001 s" in str(hasty.outcome.reason)
    assert isinstance(patient.outcome, Booted)


def test_nodes_without_a_sign_of_life_are_not_selected() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    scheduler.refresher.node_max_age = 25.0
    request = parse(wanted("a", count=1))
    assert scheduler.select(request)[0].node is not None
    cell.fleet.kill("n1")
    cell.run_for(40.0)
    assert {scheduler.select(parse(wanted(f"a{n}")))[0].node for n in range(10)} == {"n2"}


def test_unknown_names_raise_not_found_and_impossible_values_raise_bad_request() -> None:
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
        (lambda: scheduler.migrations.resize("a", {"no class": 1}), "resources.no class"),
        (lambda: scheduler.migrations.resize("a", {"VCPU": -1}), "resources.VCPU"),
        (lambda: scheduler.reservations.extend("never", 0.0), "hold_s"),
    ):
        with pytest.raises(BadRequestError) as caught:
            ask()
        assert not isinstance(caught.value, NotFoundError)
        assert caught.value.field == field


def test_a_resize_changes_only_the_resource_classes_that_it_names() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    node = boot(scheduler, "a", 2).node
    cell.run_for(2.0)
    assert isinstance(scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    assert cell.fleet.resources_of(node).allocations["a"]["resources"] == {"VCPU": 3, "MEMORY_MB": 500}
    cell.run_for(2.0)
    assert isinstance(scheduler.migrations.resize("a", {"MEMORY_MB": 0}), Booted)
    assert cell.fleet.resources_of(node).allocations["a"]["resources"] == {"VCPU": 3}


def test_an_evacuation_fails_only_the_allocations_without_a_valid_request() -> None:
    """An allocation that no scheduler made may have other hints: that is its outcome, and no error of the
    evacuation."""
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


def test_the_failure_of_a_migration_to_a_named_node_names_that_node() -> None:
    cell = cell_with_nodes()
    scheduler = cell.start_scheduler("s").scheduler
    node = boot(scheduler, "a", 5).node
    [other] = {"n1", "n2"} - {node}
    boot(scheduler, "b", 5, force_nodes=[other])
    cell.run_for(2.0)
    failed = scheduler.migrations.migrate("a", to=other)
    assert isinstance(failed, Failed)
    assert str(failed.reason) == f"{other} does not pass resources; VCPU: 5 wanted, 3 free"


def test_the_room_of_a_terminated_instance_is_free_at_once() -> None:
    """Its claim would hold the room for ``claim_ttl_s``: the terminating or the leaving scheduler drops it."""
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
        other = cell.start_scheduler(f"without a view of {instance}").scheduler
        for one in (scheduler, other):
            assert one.select(parse(wanted("next", 8)))[0].node == "n1"


def test_a_request_with_an_unknown_weigher_is_refused_before_any_boot_begins() -> None:
    """Regression: the error was raised within a step, and all other boots of that step failed with it."""
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
