"""Which nodes of a view Nova's host manager may serve, and when the view may not decide."""

from __future__ import annotations

import math
import random

import pytest
import sqlalchemy as sa

from nodestate.errors import CorruptItemError
from nodestate.integrations.nova.cell_nodes import CellNodes
from nodestate.integrations.nova.row_form import RATIOS, mirror_name, node_state, nova_node
from nodestate.scheduling.fleet import Fleet
from tests.integrations.nova_cell import CELL, MAX_AGE_S, SILENT_AFTER_S, SILENT_SHARE, NovaCell, uuid_of

HOSTS = [f"c{number}" for number in range(10)]


@pytest.fixture
def cell() -> NovaCell:
    cell = NovaCell()
    for host in HOSTS:
        cell.add_host(host)
    cell.begin()
    return cell


def served(cell: NovaCell) -> set[str]:
    cell.view()
    return set(cell.nodes.entries)


def test_a_complete_view_of_a_living_mirror_may_decide(cell: NovaCell) -> None:
    assert cell.problem() == ""
    assert served(cell) == set(map(uuid_of, HOSTS))


def test_a_cell_without_a_mirror_may_not_decide() -> None:
    cell = NovaCell()
    for _ in range(40):
        cell.poll(mirrors=False)
    assert cell.problem().startswith("the view has no mirror")


def test_the_own_node_of_a_mirror_is_never_served_and_never_placed_on(cell: NovaCell) -> None:
    name = mirror_name(CELL, "ctl1")
    assert name in cell.view().nodes
    assert name not in served(cell)
    fleet = Fleet()
    fleet.advance(cell.view())
    assert not fleet.usable[fleet.rows[name]]


def test_a_dead_mirror_stops_the_view_from_deciding_before_a_node_counts_as_down(cell: NovaCell) -> None:
    """Consumers confirm that the view is fresh also while no event comes. So its age alone would never refuse it, and
    after ``service_down_time`` every host would look down.
    """
    cell.poll(MAX_AGE_S / 2, mirrors=False)
    assert cell.problem() == ""
    cell.poll(MAX_AGE_S, mirrors=False)
    assert "the last sign of life of nova-mirror:" in cell.problem()
    assert cell.view().age < MAX_AGE_S
    cell.poll()
    assert cell.problem() == ""


def test_a_database_that_is_away_stops_the_view_from_deciding(cell: NovaCell) -> None:
    with cell.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE services RENAME TO away"))
    cell.poll(2 * MAX_AGE_S)
    assert "the last sign of life" in cell.problem()


def test_a_restarted_mirror_decides_once_it_has_published_every_node(cell: NovaCell) -> None:
    """Nodes that were deleted while no mirror ran stay in the view. Without the incarnation they would be served."""
    cell.delete("compute_nodes", "c0")
    cell.poll(30.0, mirrors=False)
    assert uuid_of("c0") in served(cell)
    cell.start_mirror()
    cell.report_services()
    cell.poll()
    assert uuid_of("c0") in cell.view().nodes
    assert served(cell) == set(map(uuid_of, HOSTS[1:]))
    assert cell.problem() == ""


def test_a_node_that_the_mirror_could_not_publish_stops_the_view_from_deciding(cell: NovaCell) -> None:
    """Otherwise this host alone would get no instance, without a word."""
    cell.add_host("c10", cpu_info="x" * 300_000)
    cell.poll()
    assert cell.problem().endswith("says that the cell has 11 nodes, and the view has 10")
    cell.update("compute_nodes", "c10", cpu_info="{}")
    cell.poll()
    assert cell.problem() == ""


def silence(cell: NovaCell, *hosts: str) -> None:
    for _ in range(math.ceil(SILENT_AFTER_S / 5) + 1):
        cell.report_services(*hosts)
        cell.poll(5.0)


def test_one_silent_service_changes_nothing_for_the_others(cell: NovaCell) -> None:
    silence(cell, "c1")
    assert cell.problem() == ""
    assert served(cell) == set(map(uuid_of, HOSTS))


def test_many_silent_services_stop_the_view_from_deciding(cell: NovaCell) -> None:
    """A mirror that reads a replica which is behind, or has a wrong clock, sees every service silent at once."""
    silent = HOSTS[: int(SILENT_SHARE * len(HOSTS)) + 1]
    silence(cell, *silent)
    assert cell.problem() == "the services of 3 of 10 nodes are silent, over the share of 0.2"
    for host in silent:
        cell.update("services", host, disabled=True)
    cell.poll()
    assert cell.problem() == "", "an operator has disabled them, so they are meant to be away"
    silence(cell)
    assert cell.problem() == ""


def test_a_wrong_cell_is_refused(cell: NovaCell) -> None:
    nodes = CellNodes("another")
    nodes.advance(cell.view())
    assert nodes.problem(cell.view(), MAX_AGE_S, SILENT_SHARE).endswith(
        f"mirrors Nova's cell {CELL}, and this is another: check [nodestate] cells"
    )


def test_a_later_form_is_refused(cell: NovaCell) -> None:
    state = node_state(CELL, dict.fromkeys(RATIOS, 1.0), None, {})
    state["namespaces"]["nova"]["v"] = 2
    publisher = cell.agent.publishers[uuid_of("c1")]
    publisher.report(state)
    cell.poll()
    with pytest.raises(CorruptItemError, match="version 2 and this program reads 1"):
        nova_node(cell.nodes.entries[uuid_of("c1")].record)


def test_an_incomplete_view_may_not_decide(cell: NovaCell) -> None:
    """A lost change is noticed by the next one. Until the node's report comes, its newest state is not known."""
    publisher = cell.agent.publishers[uuid_of("c1")]
    sink, publisher._sink = publisher._sink, cell.broker.__class__(2).sink()
    cell.update("compute_nodes", "c1", vcpus_used=2)
    cell.agent.step()
    cell.clock.advance(1.5)
    cell.agent.step()
    publisher._sink = sink
    cell.update("compute_nodes", "c1", vcpus_used=3)
    cell.clock.advance(1.5)
    cell.agent.step()
    cell.consumer.step()
    assert cell.problem() == f"the view is incomplete: {uuid_of('c1')}"
    cell.poll()
    assert cell.problem() == ""


def test_entries_equal_the_view_after_random_changes_and_follow_the_changes_only(cell: NovaCell) -> None:
    """The entry of a node that did not change keeps its host state, because making one costs most of a request."""
    picks = random.Random(7)
    for number in range(20):
        kept = dict(cell.nodes.entries)
        before = cell.nodes.changed_count
        cell.report_services()
        host = picks.choice(HOSTS)
        if picks.random() < 0.2:
            cell.start_mirror(f"ctl{number}")
            cell.poll()
            assert all(cell.nodes.entries[name] is not entry for name, entry in kept.items())
        else:
            cell.update("compute_nodes", host, vcpus_used=number)
            cell.poll()
            assert {name for name, entry in kept.items() if cell.nodes.entries[name] is not entry} == {uuid_of(host)}
            assert cell.nodes.changed_count - before == 2, "the node's record, and that of the mirror's own node"
        assert {n: e.record for n, e in cell.nodes.entries.items()} == {
            record.name: record for record in cell.view().nodes.records() if record.name in served(cell)
        }
