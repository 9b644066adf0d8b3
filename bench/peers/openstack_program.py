"""Measures the reads of OpenStack's scheduler, by its own code.

A program that ``openstack`` runs in a virtual environment with nova, openstack-placement and PyMySQL. Its folder has
nova.conf and placement.conf, which name databases with tables.

Nova cannot read only the nodes that have changed: every request reads the host states of all nodes and decodes them
into objects. Nova's and Placement's own code creates the first node; the other nodes are copies of its rows.

Arguments: folder, nodes, changed, seconds, seed. The program writes one JSON object: milliseconds by measure, or
``error``.
"""

from __future__ import annotations

from nova import monkey_patch

monkey_patch.patch(backend="threading")  # before all other imports, as nova-scheduler does

import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import webob
from nova import config, objects
from nova import context as nova_context
from nova.conf import CONF
from nova.db.api import api as api_db
from nova.db.main import api as main_db
from nova.scheduler.host_manager import HostManager
from oslo_utils import timeutils

ROUNDS_MIN: Final = 3
INSERT_ROWS: Final = 1_000
CANDIDATES_COUNT: Final = 1_000
"""The default of Nova's option max_placement_results."""
SERVICE_DOWN_S: Final = 86_400
PLACEMENT_VERSION: Final = "placement 1.39"
WANTED: Final = {"VCPU": 1, "MEMORY_MB": 1_024, "DISK_GB": 10}
PAGES_KB: Final = (4, 2_048, 1_048_576)
TOTALS: Final = {"VCPU": 64, "MEMORY_MB": 262_144, "DISK_GB": 3_600}


def host(number: int) -> str:
    """Return the name of a node."""
    return f"compute-{number:07d}"


def provider(number: int) -> str:
    """Return the id of a node, which Nova and Placement share."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, host(number)))


def require(claim: bool, otherwise: str) -> None:
    """Unless the claim holds, write an error instead of figures and end.

    The exit code is 0, because the caller reads the error and raises it.
    """
    if not claim:
        print(json.dumps({"error": otherwise}))
        sys.exit(0)


def copy_rows(engine: sa.Engine, table: str, changes: Iterable[dict[str, Any]]) -> None:
    """Insert copies of the first row of a table, one for each of these changes of the row."""
    reflected = sa.Table(table, sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        first = dict(connection.execute(sa.select(reflected).limit(1)).mappings().one())
        first.pop("id")
        rows = [first | change for change in changes]
        for at in range(0, len(rows), INSERT_ROWS):
            connection.execute(sa.insert(reflected), rows[at : at + INSERT_ROWS])


# -- Nova -----------------------------------------------------------------------------------------


def first_node(context: Any, cell: Any, admin: Any) -> None:
    """Create node 0 by Nova's own objects, without NUMA."""
    node = objects.ComputeNode(
        context,
        uuid=provider(0),
        host=host(0),
        hypervisor_hostname=host(0),
        host_ip="127.0.0.1",
        hypervisor_type="QEMU",
        hypervisor_version=8_002_000,
        cpu_info="{}",
        vcpus=TOTALS["VCPU"],
        memory_mb=TOTALS["MEMORY_MB"],
        local_gb=TOTALS["DISK_GB"],
        vcpus_used=0,
        memory_mb_used=0,
        local_gb_used=0,
        free_ram_mb=TOTALS["MEMORY_MB"],
        free_disk_gb=TOTALS["DISK_GB"],
        disk_available_least=TOTALS["DISK_GB"],
        current_workload=0,
        running_vms=0,
        cpu_allocation_ratio=4.0,
        ram_allocation_ratio=1.0,
        disk_allocation_ratio=1.0,
        mapped=1,
        stats={"num_instances": "0", "io_workload": "0"},
        supported_hv_specs=[objects.HVSpec.from_list(["x86_64", "kvm", "hvm"])],
        pci_device_pools=objects.PciDevicePoolList(objects=[]),
        metrics="[]",
    )
    node.create()
    service = objects.Service(
        context, host=host(0), binary="nova-compute", topic="compute", report_count=1, disabled=False, forced_down=False
    )
    service.create()
    service.last_seen_up = timeutils.utcnow()
    service.save()
    objects.HostMapping(admin, host=host(0), cell_mapping=cell).create()


def fill_nova(nodes: int) -> Any:
    """Create all nodes; return the context in which to read and write them."""
    admin = nova_context.get_admin_context()
    cell = next(one for one in objects.CellMappingList.get_all(admin) if not one.is_cell0())
    context = nova_context.get_admin_context()
    nova_context.set_target_cell(context, cell)
    first_node(context, cell, admin)
    engine = main_db.get_engine(context=context)
    others = range(1, nodes)
    copy_rows(
        engine,
        "compute_nodes",
        ({"uuid": provider(n), "host": host(n), "hypervisor_hostname": host(n)} for n in others),
    )
    copy_rows(engine, "services", ({"uuid": str(uuid.uuid4()), "host": host(n)} for n in others))
    copy_rows(api_db.get_engine(), "host_mappings", ({"host": host(n)} for n in others))
    return context


def host_manager(nodes: int) -> HostManager:
    """Return a scheduler's host manager to which every node has reported that it has no instances.

    Without these reports the host manager would query the instances of each node.
    """
    manager = HostManager()
    context = nova_context.get_admin_context()
    for number in range(nodes):
        manager.update_instance_info(context, host(number), objects.InstanceList(objects=[]))
    return manager


def host_states(manager: HostManager) -> dict[str, Any]:
    """Read all host states. A scheduling request begins with this unless Placement's answer is limited."""
    states = manager.get_host_states_by_uuids(nova_context.get_admin_context(), None, None)
    return {state.host: state for state in states}


def with_numa(context: Any) -> None:
    """Set the NUMA topology of all nodes to that of a host with two sockets of 16 cores with two threads each."""
    cells = [
        objects.NUMACell(
            id=cell,
            socket=cell,
            cpuset={first + cpu for first in (16 * cell, 32 + 16 * cell) for cpu in range(16)},
            pcpuset=set(),
            memory=TOTALS["MEMORY_MB"] // 2,
            cpu_usage=0,
            memory_usage=0,
            pinned_cpus=set(),
            siblings=[{16 * cell + core, 32 + 16 * cell + core} for core in range(16)],
            mempages=[
                objects.NUMAPagesTopology(size_kb=size, total=0 if size > 4 else 2**25, used=0, reserved=0)
                for size in PAGES_KB
            ],
            network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
        )
        for cell in range(2)
    ]
    topology = objects.NUMATopology(cells=cells)._to_json()  # noqa: SLF001 - as ComputeNode stores it
    engine = main_db.get_engine(context=context)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE compute_nodes SET numa_topology = :topology"), {"topology": topology})


def measure_nova(
    context: Any, nodes: int, changed: int, seconds: float, seed: int, note: Callable[[str, float], None]
) -> None:
    """Time rounds in which K nodes are saved and all host states are read."""
    picks = random.Random(seed)
    computes = {node.host: node for node in objects.ComputeNodeList.get_all(context)}
    manager = host_manager(nodes)
    used = {name: node.vcpus_used for name, node in computes.items()}

    def timed(name: str) -> None:
        began = time.perf_counter()
        states = host_states(manager)
        note(name, time.perf_counter() - began)
        require(
            {one: state.vcpus_used for one, state in states.items()} == used,
            "a host state of Nova shows another usage than was saved",
        )

    timed("cold")
    began = time.monotonic()
    rounds = 0
    while rounds < ROUNDS_MIN or time.monotonic() - began < seconds:
        rounds += 1
        names = [host(number) for number in picks.sample(range(nodes), changed)]
        saving = time.perf_counter()
        for name in names:
            used[name] = rounds % TOTALS["VCPU"]
            computes[name].vcpus_used = used[name]
            computes[name].save()
        note("write", time.perf_counter() - saving)
        timed("refresh, decoded")
        timed("nothing")


# -- Placement ------------------------------------------------------------------------------------


def ask(application: Any, method: str, path: str, body: Any = None) -> Any:
    """Send a request through all of Placement, but without a socket; return the decoded answer."""
    request = webob.Request.blank(path, method=method)
    request.headers.update({"X-Auth-Token": "admin", "OpenStack-API-Version": PLACEMENT_VERSION})
    if body is not None:
        request.content_type = "application/json"
        request.body = json.dumps(body).encode()
    response = request.get_response(application)
    require(response.status_int < 300, f"Placement answers {response.status} to {method} {path}: {response.text[:200]}")
    return json.loads(response.body) if response.body else None


def measure_placement(url: str, nodes: int, seconds: float, note: Callable[[str, float], None]) -> None:
    """Time requests for candidates for a small instance."""
    from placement.wsgi import init_application  # noqa: PLC0415 - the import reads the path of its configuration

    application = init_application()
    ask(application, "POST", "/resource_providers", {"uuid": provider(0), "name": host(0)})
    inventories = {name: {"total": total} for name, total in TOTALS.items()}
    path = f"/resource_providers/{provider(0)}/inventories"
    ask(application, "PUT", path, {"resource_provider_generation": 0, "inventories": inventories})
    engine = sa.create_engine(url)
    providers = sa.Table("resource_providers", sa.MetaData(), autoload_with=engine)
    owned = sa.Table("inventories", sa.MetaData(), autoload_with=engine)
    copy_rows(engine, "resource_providers", ({"uuid": provider(n), "name": host(n)} for n in range(1, nodes)))
    with engine.begin() as connection:
        connection.execute(sa.update(providers).values(root_provider_id=providers.c.id))
        ids = list(connection.execute(sa.select(providers.c.id).order_by(providers.c.id)).scalars())
        mine = [dict(row) for row in connection.execute(sa.select(owned)).mappings()]
        for row in mine:
            row.pop("id")
        rows = [row | {"resource_provider_id": one} for one in ids[1:] for row in mine]
        for at in range(0, len(rows), INSERT_ROWS):
            connection.execute(sa.insert(owned), rows[at : at + INSERT_ROWS])
    resources = ",".join(f"{name}:{amount}" for name, amount in WANTED.items())
    began = time.monotonic()
    rounds = 0
    while rounds < ROUNDS_MIN or time.monotonic() - began < seconds:
        rounds += 1
        asking = time.perf_counter()
        found = ask(application, "GET", f"/allocation_candidates?resources={resources}&limit={CANDIDATES_COUNT}")
        note("candidates", time.perf_counter() - asking)
        count = len(found["allocation_requests"])
        require(count == min(nodes, CANDIDATES_COUNT), f"Placement found {count} candidates among {nodes} nodes")


def main() -> None:
    """Nova without and with NUMA, and Placement, a third of the seconds each."""
    folder, *numbers = sys.argv[1:]
    nodes, changed, seconds, seed = int(numbers[0]), int(numbers[1]), float(numbers[2]) / 3, int(numbers[3])
    samples: dict[str, dict[str, list[float]]] = {"nova": {}, "nova numa": {}, "placement": {}}

    def noted(side: str) -> Callable[[str, float], None]:
        return lambda name, seconds: samples[side].setdefault(name, []).append(seconds * 1e3)

    config.parse_args(["bench", "--config-file", str(Path(folder, "nova.conf"))])
    CONF.set_override("service_down_time", SERVICE_DOWN_S)
    CONF.set_override("track_instance_changes", False, "filter_scheduler")
    objects.register_all()
    context = fill_nova(nodes)
    measure_nova(context, nodes, changed, seconds, seed, noted("nova"))
    with_numa(context)
    measure_nova(context, nodes, changed, seconds, seed, noted("nova numa"))
    measure_placement(os.environ["PLACEMENT_URL"], nodes, seconds, noted("placement"))
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
