"""Reservations: all members or none, although schedulers die, agents do not answer or other users interfere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from nodestate.errors import NotFoundError, StaleViewError, StoreUnavailableError
from nodestate.model.orders import Build, decode_order
from nodestate.scheduling.claims import UNSURE_S, Claim
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed, NotConfirmed, NotReserved
from nodestate.testing import TransitMessage
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.machines.test_scheduling_replicas import ReplicatedCell
from tests.scheduling.cells import STATE, boot, cell_of, freeze_view, losing_answers, reserve, wanted


def test_an_instance_that_a_node_reports_is_not_reserved_again() -> None:
    """It would end up on two nodes, and neither allocation would be the authoritative one."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(1.0)
    held = two.scheduler.reservations.reserve(
        parse_group({"members": [wanted("a", force_nodes=["n0" if at == "n1" else "n1"])]})
    )
    assert isinstance(held, NotReserved)
    assert str(held.reason) == f"a is on {at} already"
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node) if claim.reservation] == []


def test_a_reservation_that_could_not_be_confirmed_is_no_longer_held() -> None:
    """The members that were built are ended, and their claims are given back."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b", vcpu=8)
    [last] = [member.node for member in held.members if member.instance == "b"]
    cell.fleet.set_status(last, "draining")
    cell.step_agents()
    assert isinstance(one.scheduler.reservations.confirm(held.id), NotConfirmed)
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node)] == []
    cell.run_for(2.0)
    assert two.scheduler.reservations.held() == []
    assert cell.nodes_by_instance() == {}


def test_a_reservation_is_kept_if_its_scheduler_has_not_seen_an_allocation_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record then demands a newer view than the scheduler has. The view arrives soon, and the nodes have room."""
    cell, (one, two) = cell_of(1)
    held = reserve(one.scheduler, "a")
    freeze_view(cell, one)
    boot(two.scheduler, "b")
    cell.run_for(1.0)
    two.scheduler.refresh()
    two.scheduler.drop_allocated_claims()
    table = one.scheduler.claim_table
    flush = table.flush

    def flush_before_the_view_arrives() -> Any:
        outcomes = flush()
        one.reader.lagging = False
        return outcomes

    monkeypatch.setattr(table, "flush", flush_before_the_view_arrives)
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)


def test_a_released_reservation_does_not_return_when_a_claim_record_is_lost() -> None:
    """The scheduler that made it sees that another scheduler released it, so it does not write the claims again."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b", hold_s=600.0)
    two.scheduler.reservations.release(held.id)
    cell.run_for(5.0)
    for node in ("n0", "n1"):
        cell.evict_claims(node)
    cell.run_for(20.0)
    assert two.scheduler.reservations.held() == []


def test_a_reservation_is_tried_again_if_records_stop_being_unsure_right_after_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All records of a new cell are created at once, so all of them stop being unsure at the same moment."""
    cell, (one,) = cell_of(2, schedulers=1)
    for number in range(len(cell.servers)):
        cell.flush_server(number)
    cell.run_for(5.0)
    reservations, clock = one.scheduler.reservations, cell.clock
    placer = one.scheduler.placer
    place = placer.place

    def place_slowly(*args: Any) -> None:
        place(*args)
        if one.scheduler.claim_table.unsure_nodes():
            for _ in range(4):
                clock.advance(1.0)
                cell.step_agents()

    monkeypatch.setattr(placer, "place", place_slowly)
    assert isinstance(reservations.reserve(parse_group({"members": [wanted("a"), wanted("b")]})), Reservation)


def test_the_reconciler_spares_members_while_others_are_still_being_built() -> None:
    """The build takes longer than the reconciler's grace, on nodes whose claims the other scheduler has not read."""
    cell, (one, two) = cell_of(9)
    held = reserve(one.scheduler, "a", "b")
    [at] = [member.node for member in held.members if member.instance == "a"]
    others = [node for node in cell.fleet.nodes() if node != at]
    for node in others:
        cell.fleet.kill(node)
    began = cell.clock.monotonic()

    def step_others() -> None:
        if cell.clock.monotonic() - began > cell.config.claim_ttl_s + 5.0:
            while others:
                cell.fleet.revive(others.pop())
        cell.step_agents()
        cell.clock.busy = True
        two.scheduler.step(0.0)
        cell.clock.busy = False

    cell.clock.run_others = step_others
    assert isinstance(one.scheduler.reservations.confirm(held.id, timeout_s=60.0), Confirmed)
    assert cell.clock.monotonic() - began > cell.config.claim_ttl_s
    assert cell.nodes_by_instance().keys() == {"a", "b"}


def test_terminating_a_member_while_others_are_built_ends_all_members() -> None:
    """All members or none, also if a user terminated the one."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    places = {member.instance: member.node for member in held.members}
    cell.fleet.kill(places["b"])
    ended: list[str] = []

    def step_others() -> None:
        cell.step_agents()
        if "a" in cell.nodes_by_instance() and not ended:
            ended.append("a")
            cell.clock.busy = True
            two.scheduler.refresh()
            two.scheduler.terminations.terminate([(places["a"], "a")])
            cell.clock.busy = False

    cell.clock.run_others = step_others
    outcome = one.scheduler.reservations.confirm(held.id)
    assert isinstance(outcome, NotConfirmed)
    assert [failed.instance for failed in outcome.failed] == ["a"]
    cell.run_for(2.0)
    assert cell.nodes_by_instance() == {}


def test_a_member_that_was_booted_on_another_node_meanwhile_is_not_built_again() -> None:
    """It would be on two nodes, and neither allocation would be the later one."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a")
    [member] = held.members
    elsewhere = boot(two.scheduler, "a", ignore_nodes=[member.node]).node
    cell.run_for(1.0)
    with pytest.raises(NotFoundError, match=f"a of {held.id} is on {elsewhere} already"):
        one.scheduler.reservations.confirm(held.id)
    assert cell.nodes_by_instance() == {"a": [elsewhere]}


@pytest.mark.parametrize("away", [0, 1])
def test_while_a_claim_server_is_down_reservations_use_the_nodes_of_the_others(away: int) -> None:
    """Also if claims on the server that is down are known."""
    cell, (one, two) = cell_of(8)
    reserve(two.scheduler, *"abcdef")
    one.scheduler.reservations.held()
    cell.servers[away].stop()
    full = parse_group({"members": [wanted(f"full {number}", vcpu=8) for number in range(8)]})
    assert isinstance(one.scheduler.reservations.reserve(full, timeout_s=1.0), NotReserved)
    [member] = reserve(one.scheduler, "g").members
    assert cell.server(member.node) is not cell.servers[away]


def test_members_of_a_confirmed_reservation_can_be_terminated_one_by_one() -> None:
    """The agents know that the reservation is placed, although the first orders that say so were lost.

    Otherwise the remaining members would look like a reservation that was never complete, and would be ended.
    """
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b")
    arrive, lost = cell.broker.transit.arrive, []

    def lose_two(message: TransitMessage) -> None:
        order = decode_order(message.body) if message.kind == "order" else None
        if isinstance(order, Build) and order.in_place and len(lost) < 2:
            lost.append(order)
        else:
            arrive(message)

    cell.broker.transit.arrive = lose_two  # type: ignore[method-assign]
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert len(lost) == 2
    cell.replace_dead(one)
    [node] = cell.nodes_by_instance()["a"]
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([(node, "a")])
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance().keys() == {"b"}


def test_confirm_waits_for_a_view_that_shows_all_members_before_it_marks_them_as_placed() -> None:
    """An older view could not show that a user terminated a member meanwhile."""
    cell, (one, _) = cell_of(2)
    held = reserve(one.scheduler, "a", "b")
    cell.consumer_frozen = True
    with pytest.raises(TimeoutError, match="all members are built, and no view shows it"):
        one.scheduler.reservations.confirm(held.id, timeout_s=6.0)
    assert cell.nodes_by_instance().keys() == {"a", "b"}
    cell.consumer_frozen = False
    cell.run_for(2 * cell.config.claim_ttl_s)
    for [node] in cell.nodes_by_instance().values():
        [allocation] = cell.fleet.resources_of(node).allocations.values()
        assert allocation["hints"]["placed"]


def test_a_member_that_is_booted_again_begins_another_lifetime() -> None:
    """Terminations and roll-backs of the first lifetime do not end the second one."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b", hold_s=600.0)
    cell.agent_frozen = True
    assert isinstance(one.scheduler.reservations.boot_member(held.id, "a"), Failed)
    cell.agent_frozen = False
    cell.run_for(2.0)
    first = one.scheduler.reservations.boot_member(held.id, "a")
    assert isinstance(first, Booted)
    cell.run_for(3.0)
    two.scheduler.terminations.terminate([(first.node, "a")])
    cell.run_for(8.0)
    assert cell.nodes_by_instance() == {}
    if (again := one.scheduler.claim([parse(wanted("a"))])[0]).claim is not None:
        one.scheduler.placer.give_back([again])
    second = boot(one.scheduler, "a")
    cell.run_for(20.0)
    assert cell.nodes_by_instance() == {"a": [second.node]}


def test_a_reservation_can_be_confirmed_only_once() -> None:
    """It holds no claim from then on."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert [claim for node in cell.fleet.nodes() for claim in cell.claims(node)] == []
    cell.run_for(0.5)
    [at] = cell.nodes_by_instance()["a"]
    two.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    with pytest.raises(NotFoundError):
        one.scheduler.reservations.confirm(held.id)
    cell.run_for(5.0)
    assert cell.nodes_by_instance().keys() == {"b"}


def test_confirming_again_after_a_timeout_builds_no_member_twice() -> None:
    """The agents have carried out the orders of the first confirmation meanwhile."""
    cell, (one, _) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    cell.consumer_frozen = True
    with pytest.raises(TimeoutError):
        one.scheduler.reservations.confirm(held.id, timeout_s=2.0)
    cell.consumer_frozen = False
    cell.clock.advance(0.5)
    cell.step_agents()
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert {name: len(nodes) for name, nodes in cell.nodes_by_instance().items()} == {"a": 1, "b": 1}


def test_listing_and_confirming_fail_while_a_claim_server_is_down() -> None:
    cell, (one, _) = cell_of(8)
    held = reserve(one.scheduler, *"abcdef", hold_s=600.0)
    cell.servers[0].stop()
    for call in (one.scheduler.reservations.held, lambda: one.scheduler.reservations.confirm(held.id)):
        with pytest.raises((StoreUnavailableError, StaleViewError)):
            call()


@pytest.mark.parametrize("answers", ["arrive", "are lost"])
@pytest.mark.parametrize("view", ["is new", "is old"])
@pytest.mark.parametrize("calls", range(2, 14, 2))
def test_a_second_confirm_after_the_death_of_the_first_builds_all_members_or_none(
    calls: int, view: str, answers: str
) -> None:
    """Wherever the first one died: its members are known by the view, or by the refusals of the agents."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b", hold_s=120.0)
    if view == "is old":
        freeze_view(cell, two)
    with losing_answers(cell) if answers == "are lost" else nullcontext(), cell.crashing(one, calls):
        one.scheduler.reservations.confirm(held.id, timeout_s=12.0)
    cell.step_agents()
    second: object = None
    with suppress(NotFoundError):
        second = two.scheduler.reservations.confirm(held.id, timeout_s=20.0)
    two.reader.lagging = False
    cell.run_for(5 * cell.config.claim_ttl_s)
    placed = {instance: len(nodes) for instance, nodes in cell.nodes_by_instance().items()}
    assert placed in ({}, {"a": 1, "b": 1})
    assert bool(placed) or not isinstance(second, Confirmed)


def cut_off(process: SchedulerProcess, *servers: int) -> None:
    """Let a scheduler reach no server of claims but the others."""
    for number, store in enumerate(process.claim_stores):
        store.is_cut_off = number in servers


def cut_off_at_renewal(monkeypatch: pytest.MonkeyPatch, process: SchedulerProcess, *servers: int) -> None:
    """Cut a scheduler off from these servers right before it renews the claims of a reservation."""
    claims = process.scheduler.reservations._claims
    keep = claims.keep

    def keep_without_servers(*args: Any, **more: Any) -> Any:
        cut_off(process, *servers)
        return keep(*args, **more)

    monkeypatch.setattr(claims, "keep", keep_without_servers)


@pytest.mark.parametrize("extends", [0, 1])
def test_a_reservation_is_held_although_the_claim_servers_do_not_answer_while_it_is_extended(
    extends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler that made it extends it, or another one. Regression: its claims were dropped."""
    cell, processes = cell_of(2)
    held = reserve(processes[0].scheduler, "a", "b", hold_s=300.0)
    one = processes[extends]
    cut_off_at_renewal(monkeypatch, one, 0, 1)
    with pytest.raises(StoreUnavailableError):
        one.scheduler.reservations.extend(held.id, 600.0)
    cut_off(one)
    cell.run_for(10.0)
    [after] = processes[1].scheduler.reservations.held()
    assert (after.id, after.whole, len(after.members)) == (held.id, True, 2)
    monkeypatch.undo()
    assert one.scheduler.reservations.extend(held.id, 600.0).seconds == 600.0


@pytest.mark.parametrize("extends", [0, 1])
def test_a_reservation_is_held_although_the_answer_to_its_extension_is_lost(
    extends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a scheduler that had not made it took its claim for one that had to be given back."""
    cell, processes = cell_of(1)
    held = reserve(processes[0].scheduler, "a", hold_s=300.0)
    one = processes[extends]
    store = one.claim_stores[cell.servers.index(cell.server("n0"))]
    write, calls = store.write, 0

    def write_without_answer(writes: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            write(writes)
        raise StoreUnavailableError(store.name, "no reply within 1 s")

    monkeypatch.setattr(store, "write", write_without_answer)
    with pytest.raises(StoreUnavailableError):
        one.scheduler.reservations.extend(held.id, 600.0)
    monkeypatch.undo()
    cell.run_for(10.0)
    [after] = processes[1].scheduler.reservations.held()
    assert (after.id, after.whole) == (held.id, True)
    assert after.seconds > 500.0


@pytest.mark.parametrize("away", [0, 1])
def test_no_reservation_is_made_whose_last_write_reaches_one_copy_only(
    away: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it was held, and the other copy had the deadline of a claim that is still being made."""
    cell = ReplicatedCell({"n0": STATE}, servers=2, designs=("snapshot", "snapshot_replica"), replicas=2)
    cell.wait_until_complete()
    one, two = (cell.start_scheduler(name) for name in ("s0", "s1"))
    cell.run_for(UNSURE_S + 2.0)
    cut_off_at_renewal(monkeypatch, one, away)
    outcome = one.scheduler.reservations.reserve(parse_group({"members": [wanted("a")]}), timeout_s=1.0)
    assert isinstance(outcome, NotReserved)
    monkeypatch.undo()
    cut_off(one)
    cell.run_for(5.0)
    assert two.scheduler.reservations.held() == []
    assert cell.claims("n0") == []
    held = reserve(one.scheduler, "a")
    cut_off(one, away)
    assert one.scheduler.reservations.extend(held.id, 600.0).seconds == 600.0, "an extension is better than none"


# -- extended by one scheduler, released by another one --------------------------------------------


def claims_of(cell: SchedulingCell, reservation: str) -> list[Claim]:
    """Return the claims of a reservation, from the bytes in the servers."""
    return [claim for node in cell.fleet.nodes() for claim in cell.claims(node) if claim.reservation == reservation]


@pytest.mark.parametrize("act", ["extend", "confirm", "boot a member"])
def test_a_released_reservation_is_used_by_no_scheduler_that_knew_it_before(act: str) -> None:
    """Regression: the scheduler wrote the claims again that it had read earlier, and built the members."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    reservations = two.scheduler.reservations
    assert [known.id for known in reservations.held()] == [held.id]
    one.scheduler.reservations.release(held.id)
    acts: dict[str, Callable[[], object]] = {
        "extend": lambda: reservations.extend(held.id, 600.0),
        "confirm": lambda: reservations.confirm(held.id),
        "boot a member": lambda: reservations.boot_member(held.id, "a"),
    }
    with pytest.raises(NotFoundError):
        acts[act]()
    cell.run_for(10.0)
    assert (claims_of(cell, held.id), cell.nodes_by_instance()) == ([], {})


@pytest.mark.parametrize("made_by", [0, 1])
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_extension_does_not_bring_a_reservation_back_that_is_released_meanwhile(replicas: int, made_by: int) -> None:
    """Another scheduler releases it before one of the calls of the extension, each one in turn.

    Regression: the extension lost its compare-and-swap, and then wrote the claim again that the other one had removed.
    """
    designs = ("snapshot", "snapshot_replica")[:replicas]
    at, is_released = 0, True
    while is_released:
        cell, (one, two) = cell_of(3, replicas=replicas, designs=designs)
        held = reserve((one, two)[made_by].scheduler, "a", "b")
        calls, is_released, released = itertools.count(), False, one.scheduler.reservations.release

        def release_before(_call: str = "", number: int = at) -> None:
            nonlocal is_released
            if next(calls) == number:  # noqa: B023 - it is called in this round only
                is_released = True
                released(held.id)  # noqa: B023

        two.scheduler.reservations.held()
        two.crash_point.count_call = release_before  # type: ignore[method-assign]  # called before each call
        with suppress(NotFoundError):
            two.scheduler.reservations.extend(held.id, 600.0)
        two.crash_point.count_call = lambda _call="": None  # type: ignore[method-assign]
        cell.run_for(10.0)
        assert bool(claims_of(cell, held.id)) is not is_released, at
        at += 1
    assert at > 3, "it was released before each of several calls"


def test_a_scheduler_extends_its_reservation_although_a_claim_record_was_just_lost() -> None:
    """Regression: it said that the reservation had expired or was released, and wrote the lost claim again later."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b")
    cell.clock.advance(1.0)
    cell.evict_claims(held.members[0].node)
    assert one.scheduler.reservations.extend(held.id, 600.0).seconds == 600.0
    [after] = two.scheduler.reservations.held()
    assert (after.whole, after.seconds > 500.0) == (True, True)


@pytest.mark.parametrize("releases", [0, 1])
@pytest.mark.parametrize("fails", ["does not answer", "writes nothing"])
def test_a_release_that_may_have_left_claims_says_so(
    releases: int, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler that made the reservation releases it, or another one. One server is away, or refuses to write.

    Regression: the reservation counted as released, and its nodes on that server were held until its time was over.
    """
    cell, processes = cell_of(9)
    held = reserve(processes[0].scheduler, *"abcdef", hold_s=600.0)
    homes = {cell.servers.index(cell.server(member.node)) for member in held.members}
    assert homes == {0, 1}
    one = processes[releases]
    reservations, server = one.scheduler.reservations, one.claim_stores[0]
    assert [known.id for known in reservations.held()] == [held.id]

    def fail(_writes: object) -> Any:
        raise StoreUnavailableError(server.name, "made to fail")

    with monkeypatch.context() as patch:
        if fails == "does not answer":
            cut_off(one, 0)
        else:
            patch.setattr(server, "write", fail)
        with pytest.raises(StoreUnavailableError):
            reservations.release(held.id)
    cut_off(one)
    with suppress(NotFoundError):
        reservations.release(held.id)
    assert claims_of(cell, held.id) == []
    cell.run_for(10.0)
    assert claims_of(cell, held.id) == []


def test_a_member_whose_claim_server_does_not_answer_may_still_be_held() -> None:
    """Regression: the error said that it was not."""
    cell, (_, one) = cell_of(9)
    held = reserve(one.scheduler, *"abcdef")
    member = next(member for member in held.members if cell.server(member.node) is cell.servers[0])
    cut_off(one, 0)
    with pytest.raises(StoreUnavailableError):
        one.scheduler.reservations.boot_member(held.id, member.instance)


def test_a_member_may_need_no_resources() -> None:
    _, (one,) = cell_of(schedulers=1)
    held = one.scheduler.reservations.reserve(parse_group({"members": [{"instances": ["a"], "resources": {}}]}))
    assert isinstance(held, Reservation)
