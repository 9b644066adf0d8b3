"""Host states from nodestate equal Nova's own, attribute by attribute, after random changes of the database."""

from __future__ import annotations

import copy
import inspect
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nova import objects
from nova.scheduler import host_manager

from harness.servers import MemcachedServer
from nodestate.integrations.nova.comparison import ATTRIBUTES, comparable, different_attributes
from nodestate.integrations.nova.host_state import ComputeRow
from nodestate.integrations.nova.row_form import RATIOS
from tests.nova.mirrored_cloud import MirroredCloud
from tests.nova.nova_cloud import NovaCloud, request_spec

NODES = 50
ROUNDS = 5
CHANGES = 25


class RandomChanges:
    """Changes as Nova's services make them, each chosen at random."""

    def __init__(self, mirrored: MirroredCloud, seed: int) -> None:
        self.cloud, self.mirrored = mirrored.cloud, mirrored
        self.picks = random.Random(seed)
        self.instances: list[Any] = []
        self.changes: list[Callable[[], None]] = [
            self.save, self.save, self.save, self.set_pci, self.set_nulls, self.delete, self.add, self.delete_and_add,
            self.disable, self.force_down, self.silence, self.boot, self.move, self.end, self.aggregate,
            self.delete_service,
        ]  # fmt: skip

    def make(self) -> None:
        """Make one change."""
        self.picks.choice(self.changes)()

    def node(self) -> Any:
        return self.picks.choice(self.cloud.nodes())

    def save(self) -> None:
        self.cloud.save(self.node(), self.picks)

    def set_pci(self) -> None:
        self.cloud.set_pci(self.node(), self.picks)

    def set_nulls(self) -> None:
        """Columns that old or new compute services leave null; ``free_disk_gb`` is null until usage was reported."""
        column = self.picks.choice(
            ["free_disk_gb", "metrics", "numa_topology", "disk_available_least", "pci_stats", "host_ip"]
        )
        self.cloud.run(
            f"UPDATE compute_nodes SET {column} = NULL, free_ram_mb = -5, updated_at = UTC_TIMESTAMP() "  # noqa: S608
            "WHERE uuid = :u",
            u=self.node().uuid,
        )

    def delete(self) -> None:
        with_service = [node for node in self.cloud.nodes() if self.has_service(node.host)]
        if len(with_service) > NODES // 2:
            self.cloud.remove_node(self.picks.choice(with_service))

    def has_service(self, host: str) -> bool:
        services = objects.ServiceList.get_by_host(self.cloud.cell_context, host)
        return len(services) > 0

    def add(self) -> None:
        self.cloud.add_node(self.picks)

    def delete_and_add(self) -> None:
        node = self.node()
        if self.has_service(node.host):
            self.cloud.remove_node(node)
            self.cloud.add_node(self.picks, node.host)

    def disable(self) -> None:
        host = self.node().host
        if self.has_service(host):
            service = self.cloud.service(host)
            service.disabled = not service.disabled
            service.disabled_reason = "maintenance" if service.disabled else None
            service.save()

    def force_down(self) -> None:
        host = self.node().host
        if self.has_service(host):
            service = self.cloud.service(host)
            service.forced_down = not service.forced_down
            service.save()

    def silence(self) -> None:
        """A service stops, as one that stopped some seconds or days ago; or a service that stopped returns."""
        silenced = self.mirrored.silenced
        if len(silenced) >= NODES // 10:
            silenced.remove(self.picks.choice(sorted(silenced)))
            return
        host = self.node().host
        self.cloud.heartbeat(host, ago_s=self.picks.choice([0, 10, 300, 100_000]))
        silenced.add(host)

    def delete_service(self) -> None:
        host = self.node().host
        if self.has_service(host):
            self.cloud.service(host).destroy()
            objects.HostMapping.get_by_host(self.cloud.context, host).destroy()

    def boot(self) -> None:
        self.instances.append(self.cloud.add_instance(self.picks.choice([None, self.node(), self.node()])))

    def move(self) -> None:
        if self.instances:
            instance = self.picks.choice(self.instances)
            for name, value in self.cloud.place(self.node()).items():
                setattr(instance, name, value)
            instance.save()

    def end(self) -> None:
        if self.instances:
            self.instances.pop(self.picks.randrange(len(self.instances))).destroy()

    def aggregate(self) -> None:
        """Both host managers learn of it by RPC, as in a cloud."""
        name = self.picks.choice(["ssd", "gpu"])
        known = {one.name: one for one in objects.AggregateList.get_all(self.cloud.context)}
        aggregate = known.get(name)
        if aggregate is None:
            aggregate = objects.Aggregate(self.cloud.context, name=name, metadata={name: "true"})
            aggregate.create()
        host = self.node().host
        if host in aggregate.hosts:
            aggregate.delete_host(host)
        else:
            aggregate.add_host(host)
        for manager in (self.mirrored.ours, self.mirrored.theirs):
            manager.update_aggregates(aggregate)


@pytest.fixture
def filled(cloud: NovaCloud) -> NovaCloud:
    cloud.clear()
    picks = random.Random(1)
    for _ in range(NODES):
        cloud.add_node(picks)
    return cloud


def test_host_states_equal_novas_after_random_changes(
    filled: NovaCloud, memcached: MemcachedServer, cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All attributes of a host state, with their types, and whether the service is up."""
    with MirroredCloud(filled, memcached, cell, tmp_path) as mirrored:
        mirrored.wait_until_served()
        mirrored.wait_until_equal()
        changes = RandomChanges(mirrored, seed=7)
        for _ in range(ROUNDS):
            for _ in range(CHANGES):
                changes.make()
            mirrored.wait_until_equal()
        uuids = [node.uuid for node in filled.nodes()[::3]] + ["00000000-0000-0000-0000-000000000000"]
        assert {state.host for state in mirrored.ours_now(uuids)} == {s.host for s in mirrored.theirs_now(uuids)}
        fell_back = mirrored.ours.counters["fell_back"]
    with capsys.disabled():
        print(  # noqa: T201 - how much was really compared
            f"\n{mirrored.served} host states from nodestate with {mirrored.values} values equal Nova's, "
            f"after {ROUNDS * CHANGES} changes; {fell_back} requests fell back to the database"
        )
    assert mirrored.served > NODES


def test_a_host_state_has_no_attribute_that_the_comparison_does_not_know(filled: NovaCloud) -> None:
    """Otherwise a new Nova could add an attribute, and the comparison would call host states without it equal."""
    manager = host_manager.HostManager()
    spec = request_spec(filled.context)
    for state in manager.get_host_states_by_uuids(filled.context, None, spec):
        assert set(vars(state)) == set(ATTRIBUTES)


def test_nova_reads_no_field_of_a_compute_node_that_is_not_carried() -> None:
    """A Nova that reads another field must fail here, and not by an AttributeError in a scheduler."""
    source = inspect.getsource(host_manager.HostState._update_from_compute_node)
    read = set(re.findall(r"\bcompute\.(\w+)", source))
    row = ComputeRow("00000000-0000-0000-0000-000000000000", dict.fromkeys(RATIOS, 1.0))
    assert {name for name in read if not hasattr(row, name)} == set()


def test_consumption_changes_the_states_of_one_request_only_and_as_in_nova(
    filled: NovaCloud, memcached: MemcachedServer, cell: str, tmp_path: Path
) -> None:
    """A request for three instances consumes a host three times. The next request must not see it."""
    node = filled.nodes()[3]
    filled.set_pci(node, random.Random(3))
    while node.numa_topology is None:
        filled.save(node, random.Random(filled.added))
        filled.added += 1
    asked = objects.InstanceNUMACell(
        id=0, cpuset={0, 1}, pcpuset=set(), memory=1024, cpu_policy=None, cpu_thread_policy=None, pagesize=None
    )
    with MirroredCloud(filled, memcached, cell, tmp_path) as mirrored:
        mirrored.wait_until_served()
        mirrored.wait_until_equal()
        [ours], [theirs] = mirrored.ours_now([node.uuid]), mirrored.theirs_now([node.uuid])
        before = {name: comparable(name, getattr(ours, name)) for name in ATTRIBUTES}
        for _ in range(3):
            spec = request_spec(filled.context, numa_topology=objects.InstanceNUMATopology(cells=[asked]))
            ours.consume_from_request(copy.deepcopy(spec))
            theirs.consume_from_request(copy.deepcopy(spec))
        theirs.updated = ours.updated  # both are the present time
        assert different_attributes(ours, theirs) == []
        assert comparable("numa_topology", ours.numa_topology) != before["numa_topology"]
        [again] = mirrored.ours_now([node.uuid])
        after = {name: comparable(name, getattr(again, name)) for name in ATTRIBUTES}
        assert after == before
