"""Boots and terminations: every boot gets an outcome, and a terminated instance is gone in the end."""

from __future__ import annotations

import pytest

from nodestate.agent.admission import allocation_of
from nodestate.errors import PolicyError, StaleViewError
from nodestate.model.orders import Build, decode_order
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S
from nodestate.scheduling.request import parse
from nodestate.testing import TransitMessage
from nodestate.view.view import View
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import boot, cell_of, freeze_view, wanted


def test_cancelling_the_future_of_a_boot_changes_nothing() -> None:
    """Otherwise ``set_result`` would raise in ``step``, and the other boots of the batch would never get an outcome."""
    _, (one, _) = cell_of(2)
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    assert not boots[0].future.cancel()
    one.scheduler.run(lambda: all(boot.future.done() for boot in boots), 5.0)
    assert all(isinstance(boot.outcome, Booted) for boot in boots)


def test_boots_get_an_outcome_although_a_filter_raises() -> None:
    """``step`` raises the error for the filter's author, and the outcome of each boot names it."""
    cell, (one, _) = cell_of(2)

    def faulty(*_: object) -> bool:
        raise ZeroDivisionError("an unforeseen case")

    filters = one.scheduler.selector.policies.filters
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    filters["faulty"] = faulty
    message = f"filter 'faulty' ({__name__}:{faulty.__qualname__}) failed: ZeroDivisionError('an unforeseen case')"
    with pytest.raises(PolicyError) as raised:
        one.scheduler.step()
    assert str(raised.value) == message
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    del filters["faulty"]
    reasons = [str(outcome.reason) for boot in boots if isinstance(outcome := boot.future.result(0), Failed)]
    assert reasons == [f"no node could be chosen: {message}"] * 2
    cell.run_for(2.0)
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node)] == []


def test_instance_that_a_failed_migration_built_is_ended_when_its_node_returns() -> None:
    """The target's agent died after it stored the instance and before it answered.

    The user was told that the migration failed, so the original stays and the copy is ended.
    """
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    other = "n1" if at == "n0" else "n0"
    cell.run_for(2.0)
    cell.fleet.kill(other)
    taken: list[Build] = []
    arrive = cell.broker.transit.arrive

    def watch(message: TransitMessage) -> None:
        order = decode_order(message.body) if message.kind == "order" else None
        if isinstance(order, Build) and order.node == other:
            taken.append(order)
        arrive(message)

    cell.broker.transit.arrive = watch  # type: ignore[method-assign]  # observes orders
    assert isinstance(one.scheduler.migrations.migrate("a", to=other), Failed)
    [order] = taken
    cell.run_for(2 * TERMINATION_RETRY_S)
    cell.fleet.build(other, "a", allocation_of(order))
    cell.fleet.revive(other)
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [at]}


def test_lost_termination_of_an_instance_that_no_view_shows_yet_is_sent_again() -> None:
    """The first ``End`` is lost; the scheduler knows of the instance by the agent's answer alone."""
    cell, (one, _) = cell_of(2)
    freeze_view(cell, one)
    booted = boot(one.scheduler, "a")
    cell.broker.transit.holding = True
    one.scheduler.terminations.terminate([(booted.node, "a")])
    cell.broker.transit.under_way.clear()
    cell.broker.transit.holding = False
    one.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_terminating_an_instance_on_its_former_node_ends_it_on_its_present_node() -> None:
    """The user wants the instance gone and does not know that another scheduler has migrated it."""
    cell, (one, two) = cell_of(2)
    booted = boot(one.scheduler, "a")
    cell.run_for(2.0)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    cell.run_for(2.0)
    one.scheduler.terminations.terminate([(booted.node, "a")])
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_an_instance_that_is_migrated_while_it_is_terminated_is_ended() -> None:
    cell, (one, two) = cell_of(3)
    boot(one.scheduler, "a")
    freeze_view(cell, one)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    cell.clock.run_others = lambda: (setattr(one.reader, "lagging", False), cell.step_agents())[1]
    one.scheduler.terminations.terminate_everywhere(["a"], 20.0)
    assert cell.nodes_by_instance() == {}


def test_a_termination_that_times_out_names_the_node_that_still_has_the_instance() -> None:
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.agent_frozen = True
    with pytest.raises(TimeoutError, match=f"views still show a on {at} 5 s after the termination"):
        one.scheduler.terminations.terminate_everywhere(["a"], 5.0)


def hold_answers_to(cell: SchedulingCell, process: SchedulerProcess) -> list[TransitMessage]:
    """Return a list in which all answers to a scheduler wait from now on."""
    waiting: list[TransitMessage] = []
    arrive = cell.broker.transit.arrive
    queue = process.courier.reply_to

    def arrive_unless_held(message: TransitMessage) -> None:
        if message.kind == "answer" and message.to == queue:
            waiting.append(message)
        else:
            arrive(message)

    cell.broker.transit.arrive = arrive_unless_held  # type: ignore[method-assign]  # for this test alone
    return waiting


def test_a_boot_whose_answer_is_lost_succeeds_if_a_view_shows_its_instance() -> None:
    """No ``End`` is sent: it would undo a boot that succeeded."""
    cell, (one, _) = cell_of(2)
    freeze_view(cell, one)
    hold_answers_to(cell, one)
    [lost] = one.scheduler.submit(parse(wanted("a")))
    one.scheduler.step()
    cell.step_agents()
    [node] = cell.nodes_by_instance()["a"]
    cell.clock.advance(cell.config.answer_timeout_s)
    cell.step_agents()
    cell.clock.advance(1.0)
    cell.step_agents()
    one.reader.lagging = False
    one.scheduler.step()
    assert isinstance(lost.outcome, Booted), lost.outcome
    assert (lost.outcome.node, lost.outcome.refusals) == (node, ())
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {"a": [node]}


def test_an_answer_that_arrives_in_time_counts_although_a_slow_store_delays_the_view_for_another_boot() -> None:
    """Regression: the answer waited in its queue while the view was read, and its boot was ended and built again."""
    cell, (one, _) = cell_of(3)
    freeze_view(cell, one)
    arrive, read = cell.broker.transit.arrive, one.reader.read
    waiting = hold_answers_to(cell, one)
    boots = []
    for instance in ("lost", "answered"):
        boots += one.scheduler.submit(parse(wanted(instance)))
        one.scheduler.step()
        cell.step_agents()
        cell.clock.advance(1.0)
    [node] = cell.nodes_by_instance()["answered"]
    cell.clock.advance(cell.config.answer_timeout_s - 2.0)

    def read_slowly(**_: object) -> View:
        arrive(waiting[1])
        cell.clock.advance(2.0)
        raise StaleViewError(9.0, 5.0, [], (), "the store does not answer")

    one.reader.read = read_slowly  # type: ignore[method-assign]  # for one step
    one.scheduler.step()
    one.reader.read, one.reader.lagging = read, False  # type: ignore[method-assign]  # as it was
    cell.broker.transit.arrive = arrive  # type: ignore[method-assign]  # as it was
    cell.run_for(5.0)
    outcome = boots[1].outcome
    assert isinstance(outcome, Booted), outcome
    assert (outcome.node, outcome.refusals) == (node, ())


@pytest.mark.parametrize("pinned", [False, True])
def test_a_boot_whose_answer_is_late_is_told_where_another_scheduler_evacuated_the_instance(pinned: bool) -> None:
    cell, (late, other) = cell_of(2)
    freeze_view(cell, late)
    hold_answers_to(cell, late)
    [wanted_boot] = late.scheduler.submit(parse({"instances": ["a"], "resources": {"VCPU": 1}}))
    if pinned:
        wanted_boot.pin_to(0)
    late.scheduler.step()
    cell.step_agents()
    cell.clock.advance(1.0)
    [node] = cell.nodes_by_instance()["a"]
    cell.step_agents()
    [moved] = other.scheduler.migrations.evacuate(node)
    assert isinstance(moved, Booted), moved
    late.reader.lagging = False
    cell.clock.advance(10.0)
    cell.step_agents()
    late.scheduler.run(lambda: wanted_boot.outcome is not None, 60.0)
    assert isinstance(wanted_boot.outcome, Booted), wanted_boot.outcome
    assert wanted_boot.outcome.node == moved.node
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {"a": [moved.node]}


def test_a_migration_whose_answer_is_late_is_told_where_another_scheduler_evacuated_the_instance() -> None:
    cell, (late, other) = cell_of(3)
    at = boot(late.scheduler, "a").node
    cell.run_for(2.0)
    resident = late.scheduler.migrations.find("a")
    migration = late.scheduler.migrations.boot_of(resident, resident.request)
    migration.avoid(resident.row)
    late.scheduler.session.orders.boots.add([migration])
    hold_answers_to(cell, late)
    late.scheduler.step()
    cell.step_agents()
    cell.clock.advance(1.0)
    cell.step_agents()
    [target] = [node for node in cell.nodes_by_instance()["a"] if node != at]
    [moved] = other.scheduler.migrations.evacuate(target)
    assert isinstance(moved, Booted), moved
    cell.clock.advance(10.0)
    cell.step_agents()
    late.scheduler.run(lambda: migration.outcome is not None, 60.0)
    assert isinstance(migration.outcome, Booted), migration.outcome
    assert migration.outcome.node == moved.node
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {"a": [moved.node]}


def test_a_boot_that_failed_without_an_answer_leaves_no_instance_behind() -> None:
    """Another scheduler evacuates the instance before the ``End`` arrives; its user was told that it is nowhere."""
    cell, (late, other) = cell_of(2)
    freeze_view(cell, late)
    hold_answers_to(cell, late)
    [failing] = late.scheduler.submit(parse({"instances": ["a"], "resources": {"VCPU": 1}}))
    failing.pin_to(0)
    late.scheduler.step()
    cell.step_agents()
    cell.agent_frozen = True
    late.scheduler.refresher.max_age = 20.0  # its view stays as old as before the boot
    late.scheduler.run(lambda: failing.outcome is not None, 60.0)
    assert isinstance(failing.outcome, Failed), failing.outcome
    for sink in cell.broker.transit.listeners["n0"]:
        sink.order_messages.clear()  # the End is lost
    cell.agent_frozen = late.reader.lagging = False
    cell.step_agents()
    cell.clock.advance(1.0)
    cell.step_agents()
    [moved] = other.scheduler.migrations.evacuate("n0")
    assert isinstance(moved, Booted), moved
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {}
