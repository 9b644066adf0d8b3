"""When views may not decide, Nova's own queries serve the whole request, and the log says so once."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nova import exception
from nova.scheduler import host_manager

from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.integrations.nova import install
from nodestate.integrations.nova.host_manager import NodestateHostManager
from tests.nova.mirrored_cloud import MirroredCloud, is_from_views
from tests.nova.nova_cloud import CONF, NovaCloud

NODES = 6
MAX_AGE_S = 3.0
LOGGER = "nodestate.integrations.nova.host_manager"


@pytest.fixture
def mirrored(cloud: NovaCloud, memcached: MemcachedServer, cell: str, tmp_path: Path) -> Iterator[MirroredCloud]:
    """A small cloud whose requests are served from views."""
    cloud.clear()
    for _ in range(NODES):
        cloud.add_node(random.Random(1))
    CONF.set_override("max_age", MAX_AGE_S, "nodestate")
    with MirroredCloud(cloud, memcached, cell, tmp_path) as mirrored:
        mirrored.wait_until_served()
        yield mirrored
    CONF.clear_override("max_age", "nodestate")


def wait_until_from_database(mirrored: MirroredCloud) -> None:
    """Every request on the way has all hosts, whichever source serves it."""

    def is_from_database() -> bool:
        mirrored.cloud.heartbeat()
        states = mirrored.ours_now()
        assert {state.host for state in states} == {state.host for state in mirrored.theirs_now()}
        return not is_from_views(states)

    wait_until(is_from_database, "requests are still served from views")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == LOGGER and one.levelno == logging.WARNING]


def test_a_request_from_views_sends_no_statement_to_the_database(mirrored: MirroredCloud) -> None:
    with mirrored.cloud.statements() as sent:
        states = mirrored.ours_now()
        assert [state.pci_stats.pools for state in states] == [[]] * NODES
        assert [len(state.instances) for state in states] == [0] * NODES
    assert is_from_views(states)
    assert sent == []


def test_a_stopped_mirror_costs_one_warning_and_no_host(
    mirrored: MirroredCloud, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer goes on, so the view stays fresh by its own age. Only the mirror's sign of life tells."""
    caplog.set_level(logging.INFO, LOGGER)
    before = mirrored.ours.counters["fell_back"]
    mirrored.cell.stop_agents()
    wait_until_from_database(mirrored)
    for _ in range(5):
        assert len(mirrored.ours_now()) == NODES
    [text] = warnings_of(caplog)
    assert "the database serves them" in text
    assert "the last sign of life of nova-mirror:" in text
    assert mirrored.ours.counters["fell_back"] == before + 6


def test_a_store_that_is_away_costs_one_warning_and_no_host(
    mirrored: MirroredCloud, memcached: MemcachedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests come back to the views by themselves once the store has every node again."""
    caplog.set_level(logging.INFO, LOGGER)
    memcached.kill()
    wait_until_from_database(mirrored)
    assert len(warnings_of(caplog)) == 1
    memcached.start()
    mirrored.wait_until_served()
    assert [one.getMessage() for one in caplog.records if one.levelno == logging.INFO and one.name == LOGGER] == [
        "nodestate serves requests again"
    ]
    assert len(mirrored.ours_now()) == NODES


def test_a_request_is_refused_if_the_operator_chose_so(mirrored: MirroredCloud) -> None:
    CONF.set_override("on_stale", "refuse", "nodestate")
    try:
        mirrored.cell.stop_agents()

        def is_refused() -> bool:
            try:
                mirrored.ours_now()
            except exception.NoValidHost as error:
                return "the last sign of life" in str(error)
            return False

        wait_until(is_refused, "requests are still served")
    finally:
        CONF.clear_override("on_stale", "nodestate")


def test_many_silent_services_are_left_to_the_database(mirrored: MirroredCloud) -> None:
    """The mirror cannot tell dead hosts from a replica that is behind, so Nova asks the database itself."""
    silent = [node.host for node in mirrored.cloud.nodes()[:2]]
    mirrored.cloud.heartbeat(*silent, ago_s=300)

    def is_from_database() -> bool:
        mirrored.cloud.heartbeat(exclude=silent)
        return not is_from_views(mirrored.ours_now())

    wait_until(is_from_database, "requests are still served from views")
    assert "the services of 2 of 6 nodes are silent" in mirrored.ours._reason
    mirrored.wait_until_served()


def test_a_switch_of_the_source_needs_no_restart(mirrored: MirroredCloud) -> None:
    """SIGHUP changes options that are mutable; the next request is served accordingly."""
    for source, from_views in (("database", False), ("nodestate", True), ("compare", False), ("nodestate", True)):
        CONF.set_override("source", source, "nodestate")
        mirrored.cloud.heartbeat()
        states = mirrored.ours_now()
        assert (is_from_views(states), len(states)) == (from_views, NODES)
    assert mirrored.ours.counters["compared"] == NODES


def test_compare_mode_counts_and_names_each_difference(
    mirrored: MirroredCloud, caplog: pytest.LogCaptureFixture
) -> None:
    """The mirror stands still, so the view does not change. With a long bound it is not refused."""
    mirrored.wait_until_equal()
    CONF.set_override("max_age", 600.0, "nodestate")
    CONF.set_override("service_down_time", 1_200)
    CONF.set_override("source", "compare", "nodestate")
    mirrored.cell.stop_agents()
    gone, changed, other, *_ = mirrored.cloud.nodes()
    mirrored.cloud.remove_node(gone)
    added = mirrored.cloud.add_node(random.Random(2))
    mirrored.cloud.run(
        "UPDATE compute_nodes SET vcpus_used = 99, updated_at = UTC_TIMESTAMP() WHERE uuid = :u", u=changed.uuid
    )
    mirrored.cloud.run("UPDATE compute_nodes SET vcpus_used = 98 WHERE uuid = :u", u=other.uuid)
    mirrored.ours_now()
    CONF.clear_override("service_down_time")
    counters = {kind: mirrored.ours.counters[kind] for kind in ("missing", "redundant", "older", "newer", "other")}
    assert counters == {"missing": 1, "redundant": 1, "older": 1, "newer": 0, "other": 1}
    texts = warnings_of(caplog)[-4:]
    assert any(f"redundant: {gone.host}" in text for text in texts)
    assert any(f"missing: {added.host}" in text for text in texts)
    assert any(f"other: {other.host} {other.host} vcpus_used: " in text and "instead of 98" in text for text in texts)


@pytest.mark.usefixtures("cloud")
def test_nova_conf_alone_installs_the_host_manager() -> None:
    """With the unchanged command nova-scheduler: Nova calls each function that ``available_filters`` names."""
    names = ["nova.scheduler.filters.all_filters", "nodestate.integrations.nova.install.filters"]
    CONF.set_override("available_filters", names, "filter_scheduler")
    try:
        manager = host_manager.HostManager()
    finally:
        CONF.clear_override("available_filters", "filter_scheduler")
    assert type(manager) is NodestateHostManager
    assert manager.counters == {}
    assert manager.enabled_filters
    with pytest.raises(RuntimeError, match="no host manager of Nova calls it"):
        install.filters()


def test_each_worker_opens_its_own_connections(mirrored: MirroredCloud) -> None:
    """Nova forks its workers after the host manager was made. A shared connection would mix their answers."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        count = -1
        try:
            states: list[Any] = []
            for _ in range(50):
                states = mirrored.ours_now()
            count = len(states) if is_from_views(states) else 0
        finally:
            os.write(writing, str(count).encode())
            os._exit(0)
    for _ in range(50):
        assert is_from_views(mirrored.ours_now())
    assert os.read(reading, 16) == str(NODES).encode()
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_a_cell_without_settings_is_left_to_the_database(mirrored: MirroredCloud) -> None:
    """A new Nova cell works before its mirror is set up."""
    found = mirrored.ours.readers.read(["another"], MAX_AGE_S, 0.2)
    assert found == "Nova's cell another has no nodestate cell: name it in [nodestate] cells"
