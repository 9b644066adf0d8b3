"""The mirror's source of state: each change in the database of a Nova cell comes to the view, and nothing else does."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from nodestate.errors import SourceUnavailableError
from nodestate.integrations.nova.database_source import OVERLAP_S, WHOLE_S
from tests.integrations.nova_cell import CELL, SILENT_AFTER_S, NovaCell, uuid_of


@pytest.fixture
def cell() -> NovaCell:
    cell = NovaCell()
    for host in ("c1", "c2", "c3"):
        cell.add_host(host)
    cell.add_instance("vm1", "c1")
    cell.begin()
    return cell


def events(cell: NovaCell) -> tuple[int, int, int]:
    """Reports, changes and leaves of nodes; not the changes of the mirror's own node."""
    stats = cell.agent.stats
    return stats.reports, stats.changes - (cell.source.polls - 1), stats.leaves


def test_a_node_has_its_row_its_service_and_its_instances(cell: NovaCell) -> None:
    state = cell.state("c1")
    nova = state["namespaces"]["nova"]
    assert (nova["v"], nova["cell"]) == (1, CELL)
    assert (nova["compute"]["vcpus_used"], nova["compute"]["hypervisor_hostname"]) == (1, "c1")
    assert (nova["service"]["host"], nova["service"]["disabled"]) == ("c1", False)
    assert list(state["allocations"]) == [uuid_of("vm1")]
    assert state["inventory"]["VCPU"] == {"total": 8, "allocation_ratio": 4.0}
    assert (state["status"], state["usage"]["MEMORY_MB"]) == ("up", 512)


def test_null_columns_are_left_out_and_a_null_ratio_is_that_of_the_settings(cell: NovaCell) -> None:
    """A merge patch cannot set a null, so a state with one would turn each change into a full report."""
    cell.update("compute_nodes", "c1", cpu_allocation_ratio=None, ram_allocation_ratio=0.0, free_disk_gb=None)
    cell.poll()
    compute = cell.state("c1")["namespaces"]["nova"]["compute"]
    assert (compute["cpu_allocation_ratio"], compute["ram_allocation_ratio"]) == (16.0, 16.0)
    assert "free_disk_gb" not in compute
    assert "numa_topology" not in compute


def test_one_changed_row_is_one_change_and_reports_of_services_are_none(cell: NovaCell) -> None:
    """Each service writes its row every ten seconds. As an event each, the mirror would be as dear as the database."""
    before = events(cell)
    for _ in range(3):
        cell.report_services()
        cell.poll(12.0)
    assert events(cell) == before
    cell.update("compute_nodes", "c2", vcpus_used=3)
    cell.poll()
    assert cell.state("c2")["usage"]["VCPU"] == 3
    assert events(cell) == (before[0], before[1] + 1, before[2])


def test_a_row_that_commits_after_a_later_one_is_read(cell: NovaCell) -> None:
    """``updated_at`` is set before the commit. Without an overlap the poll between both would be the last chance."""
    earlier = cell.utc()
    cell.poll(10.0)
    cell.update("compute_nodes", "c2", vcpus_used=5, updated_at=earlier)
    cell.poll()
    assert cell.state("c2")["usage"]["VCPU"] == 5


def test_the_whole_comparison_finds_rows_that_a_wrong_clock_hid(cell: NovaCell) -> None:
    cell.poll(2 * OVERLAP_S)
    cell.update("compute_nodes", "c2", vcpus_used=5, updated_at=None)
    with cell.engine.begin() as connection:
        connection.execute(sa.delete(cell.tables["compute_nodes"]).where(cell.tables["compute_nodes"].c.host == "c3"))
    cell.poll()
    assert cell.state("c2")["usage"]["VCPU"] == 1
    for _ in range(int(WHOLE_S / 10) + 1):
        cell.report_services()
        cell.poll(10.0)
    assert cell.state("c2")["usage"]["VCPU"] == 5
    assert uuid_of("c3") not in cell.view().nodes


def test_instances_follow_their_host(cell: NovaCell) -> None:
    cell.add_instance("vm2", None)
    cell.poll()
    assert list(cell.state("c1")["allocations"]) == [uuid_of("vm1")]
    cell.update("instances", "c1", host="c2", node="c2")
    cell.poll()
    assert (list(cell.state("c1")["allocations"]), list(cell.state("c2")["allocations"])) == ([], [uuid_of("vm1")])
    cell.delete("instances", "c2")
    cell.poll()
    assert list(cell.state("c2")["allocations"]) == []


def test_instances_of_a_host_with_two_nodes_are_on_the_node_that_they_name(cell: NovaCell) -> None:
    """If each node of the host had them, nodestate's scheduler would see one instance on two nodes, and end one."""
    names = {"uuid": uuid_of("c1b"), "host": "c1", "hypervisor_hostname": "c1b"}
    cell.insert("compute_nodes", **{**cell.state("c1")["namespaces"]["nova"]["compute"], **names, "updated_at": None})
    cell.add_instance("vm2", "c1", node="c1b")
    cell.add_instance("vm3", "c1", node="renamed")
    cell.poll()
    assert list(cell.state("c1b")["allocations"]) == [uuid_of("vm2")]
    assert set(cell.state("c1")["allocations"]) == {uuid_of("vm1"), uuid_of("vm3")}


def test_a_deleted_node_leaves_the_view_even_if_it_had_instances(cell: NovaCell) -> None:
    """A node that leaves with allocations stays in views, ``down``: Nova would then see a host that it deleted."""
    cell.delete("compute_nodes", "c1")
    cell.poll()
    assert uuid_of("c1") not in cell.view().nodes
    assert set(cell.nodes.entries) == {uuid_of("c2"), uuid_of("c3")}


def test_a_host_that_is_deleted_and_added_again_is_another_node(cell: NovaCell) -> None:
    cell.delete("compute_nodes", "c1")
    names = {"uuid": uuid_of("c1 again"), "host": "c1", "hypervisor_hostname": "c1"}
    cell.insert("compute_nodes", **{**cell.state("c2")["namespaces"]["nova"]["compute"], **names, "updated_at": None})
    cell.poll()
    assert uuid_of("c1") not in cell.view().nodes
    assert list(cell.view().nodes[uuid_of("c1 again")].state["allocations"]) == [uuid_of("vm1")]


@pytest.mark.parametrize(
    ("columns", "status"),
    [({"disabled": True, "disabled_reason": "disk"}, "maintenance"), ({"forced_down": True}, "down")],
)
def test_a_service_that_an_operator_closed_closes_the_node(
    cell: NovaCell, columns: dict[str, object], status: str
) -> None:
    cell.update("services", "c1", **columns)
    cell.poll()
    service = cell.state("c1")["namespaces"]["nova"]["service"]
    assert {name: service[name] for name in columns} == columns
    assert cell.state("c1")["status"] == status
    cell.update("services", "c1", disabled=False, disabled_reason=None, forced_down=False)
    cell.poll()
    assert cell.state("c1")["status"] == "up"


def test_a_silent_service_costs_one_change_that_has_the_time_of_its_last_report(cell: NovaCell) -> None:
    """Nova compares this time with its own clock, so a node counts as down at the same second as with the database."""
    cell.report_services()
    seen = cell.utc()
    before = events(cell)
    while (cell.utc() - seen).total_seconds() < SILENT_AFTER_S + 20:
        cell.report_services("c1")
        cell.poll(5.0)
    assert cell.state("c1")["namespaces"]["nova"]["service"]["last_seen_up"] == seen.isoformat() + "+00:00"
    assert cell.state("c1")["status"] == "down"
    assert events(cell) == (before[0], before[1] + 1, before[2])
    cell.report_services()
    cell.poll()
    assert cell.state("c1")["status"] == "up"
    assert "last_seen_up" not in cell.state("c1")["namespaces"]["nova"]["service"]


def test_a_node_without_a_service_is_down(cell: NovaCell) -> None:
    cell.delete("services", "c1")
    cell.poll()
    assert cell.state("c1")["status"] == "down"
    assert "service" not in cell.state("c1")["namespaces"]["nova"]


def test_a_database_that_is_away_stops_every_sign_of_life(cell: NovaCell) -> None:
    heartbeats, polls = cell.agent.stats.heartbeats, cell.source.polls
    with cell.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE services RENAME TO away"))
    with pytest.raises(SourceUnavailableError, match="no such table"):
        cell.source.poll(cell.clock.monotonic())
    cell.poll(30.0)
    assert (cell.agent.stats.heartbeats, cell.source.polls) == (heartbeats, polls)
    with cell.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO services"))
    cell.poll()
    assert cell.source.polls > polls


def test_the_mirror_sends_no_statement_that_writes(cell: NovaCell) -> None:
    """It needs a user of the database that may only read."""
    sent: list[str] = []
    before = cell.source.polls
    sa.event.listen(cell.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    for _ in range(int(WHOLE_S / 60) + 1):
        cell.poll(60.0)
    assert {statement.split()[0] for statement in sent} == {"SELECT"}
    assert len(sent) == 3 * (cell.source.polls - before)
