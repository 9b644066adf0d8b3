"""Ids come from an injected source: random in production, and the same in every run of a seeded simulation."""

from __future__ import annotations

import re
import uuid

import pytest

from nodestate.ports.ids import IdSource, SeededIds, SystemIds
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from tests.scheduling.cells import boot, cell_of, reserve

ROUNDS = 200


@pytest.mark.parametrize("source", [SystemIds(), SeededIds(1)], ids=["system", "seeded"])
def test_both_sources_give_ids_of_the_same_form_and_none_twice(source: IdSource) -> None:
    """Order ids are compared as text and parsed by their form; a simulation must exercise the same form."""
    suffixes = {source.order_suffix() for _ in range(ROUNDS)}
    instances = {source.instance_id() for _ in range(ROUNDS)}
    messages = {source.message_id() for _ in range(ROUNDS)}
    assert len(suffixes) == len(instances) == len(messages) == ROUNDS
    assert all(re.fullmatch(r"[0-9a-f]{12}", one) for one in suffixes)
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in messages)
    assert all(uuid.UUID(one).version == 4 and str(uuid.UUID(one)) == one for one in instances)


def test_a_seeded_source_repeats_and_another_seed_gives_other_ids() -> None:
    """A failing simulation is repeated by its seed."""

    def ids_of(seed: int) -> list[str]:
        source = SeededIds(seed)
        return [source.order_suffix(), source.instance_id(), source.message_id(), source.order_suffix()]

    assert ids_of(1) == ids_of(1)
    assert set(ids_of(1)).isdisjoint(ids_of(2))


def test_a_request_without_instance_ids_keeps_the_ones_that_it_got_first() -> None:
    """A request that is selected for and then booted is about the same instances."""
    request = parse({"resources": {"VCPU": 1}, "count": 2})
    assert request.instance_ids(SeededIds(1)) == request.instance_ids(SeededIds(2))


def test_a_seeded_simulation_of_two_schedulers_repeats_exactly() -> None:
    """After boots without instance ids, a reservation, a migration and a termination, all ids are the same again."""

    def allocations_after_a_run() -> dict[str, object]:
        cell, [one, two] = cell_of(nodes=4, seed=7)
        made = one.scheduler.boot(parse({"resources": {"VCPU": 1}, "count": 3}))
        boot(two.scheduler, "named")
        held = reserve(two.scheduler, "first", "second")
        one.scheduler.reservations.confirm(held.id)
        two.scheduler.migrations.migrate("named")
        _end(one.scheduler, made[0].instance)
        return {node: dict(cell.fleet.resources_of(node).allocations) for node in cell.fleet.nodes()}

    first = allocations_after_a_run()
    assert sum(map(len, first.values())) == 5  # type: ignore[arg-type]  # the values are maps of allocations
    assert first == allocations_after_a_run()


def _end(scheduler: Scheduler, instance: str) -> None:
    scheduler.terminations.terminate_everywhere([instance])
