"""Sources of state: this host, libvirt's test hypervisor, a simulated fleet and a static fleet."""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodestate.agent.allocation_file import AllocationFile
from nodestate.agent.sources import FullState, NodeSilent, StatePatch
from nodestate.agent.sources.host import HostSource, clean_name
from nodestate.agent.sources.libvirt import LibvirtSource
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.errors import ConfigError, OrderFailedError, SourceUnavailableError
from nodestate.model import State, merge_patch, parse_state

libvirt = pytest.mark.skipif(
    importlib.util.find_spec("libvirt") is None,
    reason="libvirt-python is not installed: pip install nodestate[libvirt]",
)


def _valid(state: Any) -> State:
    return parse_state(msgspec.msgpack.encode(state))


# -- this host ------------------------------------------------------------------------------------


def test_the_host_source_gives_a_valid_state_of_one_node() -> None:
    source = HostSource(zone="az1")
    [reading] = source.poll(0.0)
    assert isinstance(reading, FullState)
    assert source.nodes() == (reading.node,) == (source.name,)
    state = _valid(reading.state)
    assert state.status == "up"
    assert state.inventory.keys() == state.usage.keys() == {"VCPU", "MEMORY_MB", "DISK_GB"}
    for name, inventory in state.inventory.items():
        assert 0 <= state.usage[name] <= inventory.total
    assert state.metrics.keys() == {"cpu.percent", "load.1m", "memory.percent", "disk.percent"}


@pytest.mark.parametrize(
    ("host", "name"),
    [("web-1.example.org", "web-1.example.org"), ("böse maus", "b-se-maus"), ("", "host"), ("x" * 300, "x" * 200)],
)
def test_a_hostname_becomes_a_valid_node_name(host: str, name: str) -> None:
    assert clean_name(host) == name


# -- a simulated fleet ----------------------------------------------------------------------------


def _states(fleet: SimulatedFleet) -> dict[str, dict[str, Any]]:
    """Every node's state, from the first poll."""
    readings = list(fleet.poll(0.0))
    assert all(isinstance(reading, FullState) for reading in readings)
    return {reading.node: msgspec.msgpack.decode(msgspec.msgpack.encode(reading.state)) for reading in readings}


def test_a_simulated_fleet_gives_every_state_once_and_then_only_changes() -> None:
    fleet = SimulatedFleet(200, changes_per_s=40)
    assert list(_states(fleet)) == fleet.nodes()
    later = [reading for tick in range(1, 11) for reading in fleet.poll(tick * 0.25)]
    assert len(later) == 100
    assert all(isinstance(reading, StatePatch) for reading in later)


def test_patches_of_a_simulated_fleet_add_up_to_its_states() -> None:
    fleet = SimulatedFleet(20, changes_per_s=100)
    states = _states(fleet)
    for tick in range(1, 100):
        for reading in fleet.poll(tick * 0.5):
            assert isinstance(reading, StatePatch)
            states[reading.node] = merge_patch(
                states[reading.node], msgspec.msgpack.decode(msgspec.msgpack.encode(reading.patch))
            )
    for name, state in states.items():
        expected = fleet.state(name)
        assert {**state, "metrics": {}} == {**expected, "metrics": {}}
        assert state["metrics"].keys() == expected["metrics"].keys()


def test_states_of_a_simulated_fleet_are_valid_and_never_over_capacity() -> None:
    fleet = SimulatedFleet(20, changes_per_s=2_000)
    _states(fleet)
    for tick in range(1, 30):
        list(fleet.poll(float(tick)))
        for name in fleet.nodes():
            state = _valid(fleet.state(name))
            used = dict.fromkeys(state.inventory, 0)
            for allocation in state.allocations.values():
                for resource, amount in allocation.resources.items():
                    used[resource] += amount
            assert state.usage == used
            assert all(amount <= state.inventory[resource].capacity for resource, amount in used.items())


def test_states_of_a_simulated_fleet_have_the_size_of_real_states() -> None:
    """The published figures are for states of 1 KB, so a simulated fleet must have states of that size."""
    fleet = SimulatedFleet(2_000, changes_per_s=4_000)
    sizes = [len(msgspec.msgpack.encode(state)) for state in _states(fleet).values()]
    assert 800 < statistics.mean(sizes) < 1_200
    for tick in range(1, 60):
        list(fleet.poll(tick * 0.5))
    later = [len(msgspec.msgpack.encode(fleet.state(name))) for name in fleet.nodes()]
    assert 800 < statistics.mean(later) < 1_200


def test_the_same_seed_gives_the_same_simulated_fleet() -> None:
    runs = [
        [list(fleet.poll(tick * 0.3)) for tick in range(20)]
        for fleet in (SimulatedFleet(50, seed=4), SimulatedFleet(50, seed=4), SimulatedFleet(50, seed=5))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_simulated_fleet_skips_changes_of_a_long_pause_between_polls() -> None:
    fleet = SimulatedFleet(50, changes_per_s=100)
    _states(fleet)
    assert len(list(fleet.poll(3_600.0))) == 100


def test_a_simulated_fleet_has_racks_zones_and_gpus() -> None:
    states = _states(SimulatedFleet(1_200))
    assert {state["zone"] for state in states.values()} == {"az1", "az2"}
    assert len({state["aggregates"][0] for state in states.values()}) == 30
    assert sum("CUSTOM_GPU" in state["inventory"] for state in states.values()) in range(120, 240)
    assert states["compute-0041"]["aggregates"] == ["rack-1", "az1"]


def test_an_order_changes_the_nodes_state_and_returns_the_change_as_a_reading() -> None:
    fleet = SimulatedFleet(1, changes_per_s=0.0)
    [before] = _states(fleet).values()
    [name] = fleet.nodes()
    allocation = {"resources": {"VCPU": 8}, "group": "web", "hints": {"group_policy": "anti-affinity"}}
    built = fleet.build(name, "vm-1", allocation)
    used = before["usage"]["VCPU"]
    assert built == StatePatch(name, {"usage": {"VCPU": used + 8}, "allocations": {"vm-1": allocation}})
    assert fleet.state(name)["allocations"]["vm-1"] == allocation
    assert fleet.resources_of(name).usage["VCPU"] == used + 8
    assert fleet.end(name, "vm-1") == StatePatch(name, {"usage": {"VCPU": used}, "allocations": {"vm-1": None}})
    assert fleet.resources_of(name).allocations.keys() == before["allocations"].keys()
    assert list(fleet.poll(1.0)) == []


def test_the_patch_of_a_resize_removes_fields_that_are_no_longer_asked_for() -> None:
    """A merge patch of the new fields alone would leave the old group and hints in every view."""
    fleet = StaticFleet({"n1": {"inventory": {"VCPU": {"total": 8}}}})
    fleet.build("n1", "vm-1", {"resources": {"VCPU": 1, "DISK_GB": 5}, "group": "web", "hints": {"a": 1, "b": 2}})
    resized = fleet.build("n1", "vm-1", {"resources": {"VCPU": 3}, "hints": {"b": 2}})
    patch = {"resources": {"VCPU": 3, "DISK_GB": None}, "group": None, "hints": {"a": None}}
    assert resized == StatePatch("n1", {"usage": {"VCPU": 3, "DISK_GB": 0}, "allocations": {"vm-1": patch}})


def test_hints_that_no_patch_can_set_come_as_a_full_state() -> None:
    fleet = StaticFleet({"n1": {"inventory": {"VCPU": {"total": 8}}}})
    reading = fleet.build("n1", "vm-1", {"resources": {"VCPU": 1}, "hints": {"boot_volume": None}})
    assert isinstance(reading, FullState)
    assert reading.state["allocations"]["vm-1"]["hints"] == {"boot_volume": None}


def test_a_node_that_is_revived_before_the_first_poll_is_not_silent() -> None:
    """Regression: a simulated agent that restarted between the two stayed silent, and its copies were never ended."""
    fleet = StaticFleet({"n1": {"inventory": {"VCPU": {"total": 8}}}})
    fleet.kill("n1")
    fleet.revive("n1")
    assert not any(isinstance(reading, NodeSilent) for reading in fleet.poll(0.0))


def test_an_ordered_instance_does_not_end_by_itself() -> None:
    fleet = SimulatedFleet(3, changes_per_s=1_000.0)
    _states(fleet)
    for name in fleet.nodes():
        fleet.build(name, "vm-1", {"resources": {"VCPU": 1}})
    for tick in range(1, 40):
        list(fleet.poll(float(tick)))
    assert all("vm-1" in fleet.state(name)["allocations"] for name in fleet.nodes())


# -- a static fleet -------------------------------------------------------------------------------


def test_a_fleet_that_starts_again_keeps_the_order_of_a_task_that_was_adopted(tmp_path: Path) -> None:
    """The same seed makes the same tasks again. A task in place of the adopted one would have no order and no tag."""

    def later(fleet: SimulatedFleet) -> SimulatedFleet:
        for number in range(200):
            list(fleet.poll(number * 1.0))
        return fleet

    def started() -> SimulatedFleet:
        return SimulatedFleet(2, seed=3, changes_per_s=1.0, allocations=AllocationFile(tmp_path, "fleet"))

    first = started()
    at_start = {node: set(first.resources_of(node).allocations) for node in first.nodes()}
    later(first)
    adopted = {
        (node, task): {"resources": allocation["resources"], "hints": {"order": f"order-{task}"}}
        for node in first.nodes()
        for task, allocation in first.resources_of(node).allocations.items()
        if task not in at_start[node]
    }
    assert adopted
    for (node, task), allocation in adopted.items():
        first.build(node, task, allocation)
    first.save()
    first.close()
    second = later(started())
    for (node, task), allocation in adopted.items():
        assert second.resources_of(node).allocations[task] == allocation
    second.close()


def test_nodes_of_a_static_fleet_change_only_when_they_are_told_to() -> None:
    states = {
        "n1": {"status": "up", "zone": "az1", "inventory": {"VCPU": {"total": 8}}, "usage": {"VCPU": 3}},
        "n2": {"inventory": {"VCPU": {"total": 4}}},
    }
    fleet = StaticFleet(states)
    assert list(fleet.poll(0.0)) == [
        FullState("n1", {**states["n1"], "allocations": {}}),
        FullState("n2", {**states["n2"], "usage": {"VCPU": 0}, "allocations": {}}),
    ]
    assert list(fleet.poll(60.0)) == []
    fleet.set_status("n1", "draining")
    fleet.kill("n2")
    assert list(fleet.poll(61.0)) == [StatePatch("n1", {"status": "draining"}), NodeSilent("n2")]
    assert fleet.resources_of("n1").status == "draining"
    fleet.revive("n2")
    [reading] = fleet.poll(62.0)
    assert (reading.node, type(reading)) == ("n2", FullState)
    assert states["n1"]["status"] == "up"


def test_a_revived_node_gives_its_state_as_of_the_poll() -> None:
    """An order may come between ``revive`` and the poll. Its instance would be on the node and in no view."""
    fleet = StaticFleet({"n1": {"inventory": {"VCPU": {"total": 4}}}})
    list(fleet.poll(0.0))
    fleet.kill("n1")
    list(fleet.poll(1.0))
    fleet.revive("n1")
    fleet.build("n1", "a", {"resources": {"VCPU": 1}})
    assert [reading.state["allocations"].keys() for reading in fleet.poll(2.0) if isinstance(reading, FullState)] == [
        {"a"}
    ]


# -- libvirt --------------------------------------------------------------------------------------


@libvirt
def test_domains_of_libvirt_are_allocations() -> None:
    source = LibvirtSource("test:///default", name="hyper visor", zone="az1")
    assert source.nodes() == ("hyper-visor",)
    [reading] = source.poll(0.0)
    assert isinstance(reading, FullState)
    state = _valid(reading.state)
    assert [allocation.resources for allocation in state.allocations.values()] == [{"VCPU": 2, "MEMORY_MB": 8_192}]
    assert (state.usage["VCPU"], state.usage["MEMORY_MB"]) == (2, 8_192)
    assert state.inventory["VCPU"].total == 16
    source.close()


@libvirt
def test_two_polls_of_an_unchanged_hypervisor_give_the_same_state() -> None:
    source = LibvirtSource("test:///default", name="hv")
    first, second = itertools.chain(source.poll(0.0), source.poll(1.0))
    assert first == second
    source.close()


@libvirt
def test_a_stopped_domain_that_no_order_built_has_no_allocation() -> None:
    import libvirt as binding  # noqa: PLC0415 - optional

    source = LibvirtSource("test:///default", name="hv")
    connection = binding.open("test:///default")
    source._connection = connection  # the test driver keeps its state per connection
    connection.lookupByName("test").destroy()
    [reading] = source.poll(0.0)
    assert isinstance(reading, FullState)
    state = _valid(reading.state)
    assert state.allocations == {}
    assert state.usage["VCPU"] == 0
    source.close()


ORDERED: dict[str, Any] = {
    "resources": {"VCPU": 4, "MEMORY_MB": 2_048},
    "group": "web",
    "hints": {"group_policy": "anti-affinity", "note": "<&> \x00 ü", "nothing": None},
}
VM = "4f6f2d3a-1111-4222-8333-444455556666"


@pytest.fixture
def hypervisor() -> Iterator[LibvirtSource]:
    source = LibvirtSource("test:///default", name="hv")
    yield source
    source.close()


@libvirt
def test_an_order_starts_a_domain_whose_group_and_hints_come_with_every_report(hypervisor: LibvirtSource) -> None:
    """I10: they are in the domain's metadata, which libvirt stores."""
    built = hypervisor.build("hv", VM, ORDERED)
    [reading] = hypervisor.poll(0.0)
    assert built == reading
    state = _valid(reading.state)
    assert reading.state["allocations"][VM] == ORDERED
    assert state.usage["VCPU"] == 2 + 4
    domain = hypervisor._connection.lookupByUUIDString(VM)
    assert (domain.name(), domain.isActive(), domain.isPersistent()) == (VM, 1, 1)
    domain.destroy()  # as its guest may do, or a power cut: the allocation is still promised
    assert hypervisor.state()["allocations"][VM] == ORDERED


@libvirt
def test_an_instance_id_need_not_be_a_uuid(hypervisor: LibvirtSource) -> None:
    hypervisor.build("hv", "job.17", ORDERED)
    assert hypervisor.state()["allocations"]["job.17"] == ORDERED
    assert hypervisor._connection.lookupByName("job.17").isActive()


@libvirt
def test_an_end_order_deletes_the_domain(hypervisor: LibvirtSource) -> None:
    hypervisor.build("hv", VM, ORDERED)
    ended = hypervisor.end("hv", VM)
    assert VM not in ended.state["allocations"]
    assert [domain.name() for domain in hypervisor._connection.listAllDomains()] == ["test"]


@libvirt
def test_the_hints_of_a_running_domain_can_change_and_the_amounts_of_a_stopped_one(hypervisor: LibvirtSource) -> None:
    hypervisor.build("hv", VM, ORDERED)
    moved = {**ORDERED, "hints": {"move": 2}}
    assert hypervisor.build("hv", VM, moved).state["allocations"][VM] == moved
    larger = {**moved, "resources": {"VCPU": 6, "MEMORY_MB": 4_096}}
    with pytest.raises(OrderFailedError, match="change the amounts of a domain that runs"):
        hypervisor.build("hv", VM, larger)
    assert hypervisor.state()["allocations"][VM] == moved
    hypervisor._connection.lookupByName(VM).destroy()
    assert hypervisor.build("hv", VM, larger).state["allocations"][VM] == larger


@libvirt
def test_a_domain_that_no_order_built_is_never_changed(hypervisor: LibvirtSource) -> None:
    [foreign] = hypervisor.state()["allocations"]
    for order in (lambda: hypervisor.end("hv", foreign), lambda: hypervisor.build("hv", foreign, ORDERED)):
        with pytest.raises(OrderFailedError, match="no order built"):
            order()


@libvirt
@pytest.mark.parametrize("instance", ["a/b", "test"])
def test_an_order_that_libvirt_refuses_changes_nothing(hypervisor: LibvirtSource, instance: str) -> None:
    before = hypervisor.state()
    with pytest.raises(OrderFailedError, match="could not"):
        hypervisor.build("hv", instance, ORDERED)
    with pytest.raises(OrderFailedError, match="without VCPU and MEMORY_MB"):
        hypervisor.build("hv", VM, {"resources": {"VCPU": 1}})
    assert hypervisor.state() == before


@libvirt
def test_a_read_only_hypervisor_refuses_orders() -> None:
    source = LibvirtSource("test:///default", name="hv")
    source._libvirt = ReadOnly(source._libvirt)
    before = source.state()
    with pytest.raises(OrderFailedError, match="access denied"):
        source.build("hv", VM, ORDERED)
    assert source.state() == before
    source.close()


class ReadOnly:
    """libvirt's binding as it behaves for a user without write access."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)

    def open(self, uri: str) -> Any:
        raise self._binding.libvirtError(f"access denied: {uri}")


@libvirt
def test_a_hypervisor_that_does_not_answer_raises_and_is_tried_again_at_the_next_poll() -> None:
    source = LibvirtSource("test:///nonexistent/file", name="hv")
    for _ in range(2):
        with pytest.raises(SourceUnavailableError, match="can't be read"):
            list(source.poll(0.0))
    source.close()


def test_without_the_libvirt_binding_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(ConfigError, match=r"pip install nodestate\[libvirt\]"):
        LibvirtSource("test:///default")
