"""Measures decisions of OpenStack's scheduler, by its own code, on a given fleet.

A program that runs in the virtual environment of ``openstack_program``. The file hosts.json in the folder has nodes and
flavours. Arguments: folder, seconds, seed. The program writes one JSON object: milliseconds by measure, for Nova and
for Placement, and the numbers of filters and weighers; or ``error``.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("openstack_program", Path(__file__).with_name("openstack_program.py"))
assert _spec is not None
assert _spec.loader is not None
inside = module_from_spec(_spec)
_spec.loader.exec_module(inside)  # before any other import of Nova, because it patches the standard library

import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from nova import config, objects
from nova.conf import CONF
from nova.db.main import api as main_db
from nova.objects import request_spec

ROUNDS_MIN: Final = 3
CANDIDATES_COUNT: Final = 1_000
ROWS_COUNT: Final = 1_000
VCPU_RATIO: Final = 4.0

Node = Mapping[str, Mapping[str, int]]
Note = Callable[[str, float], None]


def rounds(seconds: float) -> Iterator[int]:
    """Yield the number of each round, for at least ``ROUNDS_MIN`` rounds and ``seconds``."""
    began, done = time.monotonic(), 0
    while done < ROUNDS_MIN or time.monotonic() - began < seconds:
        yield done
        done += 1


# -- Nova -----------------------------------------------------------------------------------------


def set_usage(context: Any, nodes: Sequence[Node]) -> None:
    """Set capacity and usage of all nodes in Nova's database as the fleet has them."""
    statement = sa.text(
        "UPDATE compute_nodes SET vcpus = :vcpus, vcpus_used = :vcpus_used, memory_mb = :memory,"
        " memory_mb_used = :memory_used, free_ram_mb = :memory - :memory_used, local_gb = :disk, local_gb_used = "
        ":disk_used, free_disk_gb = :disk - :disk_used, disk_available_least = :disk - :disk_used WHERE uuid = :uuid"
    )
    rows = [
        {
            "uuid": inside.provider(number),
            "vcpus": int(node["capacity"]["VCPU"] / VCPU_RATIO),
            "vcpus_used": node["usage"]["VCPU"],
            "memory": node["capacity"]["MEMORY_MB"],
            "memory_used": node["usage"]["MEMORY_MB"],
            "disk": node["capacity"]["DISK_GB"],
            "disk_used": node["usage"]["DISK_GB"],
        }
        for number, node in enumerate(nodes)
    ]
    engine = main_db.get_engine(context=context)
    for at in range(0, len(rows), ROWS_COUNT):
        with engine.begin() as connection:
            connection.execute(statement, rows[at : at + ROWS_COUNT])


def wanted(context: Any, flavour: Mapping[str, int]) -> Any:
    """Return a request as Nova's conductor makes it."""
    given = objects.Flavor(
        id=1,
        flavorid="1",
        name="m1",
        memory_mb=flavour["MEMORY_MB"],
        vcpus=flavour["VCPU"],
        root_gb=flavour["DISK_GB"],
        ephemeral_gb=0,
        swap=0,
        rxtx_factor=1.0,
        is_public=True,
        disabled=False,
        extra_specs={},
        vcpu_weight=0,
        projects=[],
    )
    image = objects.ImageMeta(
        id=str(uuid.uuid4()),
        name="cirros",
        status="active",
        size=1,
        min_ram=0,
        min_disk=0,
        container_format="bare",
        disk_format="qcow2",
        owner="p",
        checksum="x",
        properties=objects.ImageMetaProps(),
    )
    spec = objects.RequestSpec(
        context,
        flavor=given,
        image=image,
        project_id="p",
        user_id="u",
        num_instances=1,
        instance_uuid=str(uuid.uuid4()),
        availability_zone=None,
        ignore_hosts=None,
        force_hosts=None,
        force_nodes=None,
        requested_destination=None,
        retry=None,
        limits=objects.SchedulerLimits(),
        instance_group=None,
        scheduler_hints={},
        numa_topology=None,
        pci_requests=objects.InstancePCIRequests(requests=[]),
        security_groups=objects.SecurityGroupList(objects=[]),
        network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
        is_bfv=False,
        requested_resources=[],
        request_level_params=request_spec.RequestLevelParams(),
        requested_networks=objects.NetworkRequestList(objects=[]),
    )
    spec.obj_reset_changes()
    return spec


def measure_nova(
    nodes: Sequence[Node], flavours: Sequence[Mapping[str, int]], seconds: float, seed: int, note: Note
) -> dict[str, int]:
    """Time filtering and weighing of the host states of all nodes; return the numbers of filters and weighers."""
    context = inside.fill_nova(len(nodes))
    set_usage(context, nodes)
    manager = inside.host_manager(len(nodes))
    states = inside.host_states(manager)
    for number, node in enumerate(nodes):
        state = states[inside.host(number)]
        shown = state.vcpus_used, state.free_ram_mb
        used = node["usage"]
        inside.require(
            shown == (used["VCPU"], node["capacity"]["MEMORY_MB"] - used["MEMORY_MB"]),
            f"Nova's host state of {state.host} shows {shown}",
        )
    picks = random.Random(seed)
    for _ in rounds(seconds):
        spec = wanted(context, picks.choice(flavours))
        began = time.perf_counter()
        left = list(manager.get_filtered_hosts(iter(states.values()), spec))
        weighed = manager.get_weighed_hosts(left, spec)
        note("filter and weigh", time.perf_counter() - began)
        weights = [one.weight for one in weighed]
        inside.require(
            len(weights) == len(nodes), f"{len(weights)} of {len(nodes)} nodes passed Nova's filters; all should"
        )
        inside.require(weights == sorted(weights, reverse=True), "Nova's nodes are not in the order of their weights")
    return {"filters": len(manager.enabled_filters), "weighers": len(manager.weighers)}


# -- Placement ------------------------------------------------------------------------------------


def fill_placement(application: Any, url: str, nodes: Sequence[Node]) -> sa.Engine:
    """Create a resource provider for each node; the usage of the node is reserved."""
    inside.ask(application, "POST", "/resource_providers", {"uuid": inside.provider(0), "name": inside.host(0)})
    path = f"/resource_providers/{inside.provider(0)}/inventories"
    inventories = {name: {"total": amount} for name, amount in nodes[0]["capacity"].items()}
    inside.ask(application, "PUT", path, {"resource_provider_generation": 0, "inventories": inventories})
    engine = sa.create_engine(url)
    providers = sa.Table("resource_providers", sa.MetaData(), autoload_with=engine)
    owned = sa.Table("inventories", sa.MetaData(), autoload_with=engine)
    classes = sa.Table("resource_classes", sa.MetaData(), autoload_with=engine)
    others = ({"uuid": inside.provider(n), "name": inside.host(n)} for n in range(1, len(nodes)))
    inside.copy_rows(engine, "resource_providers", others)
    with engine.begin() as connection:
        connection.execute(sa.update(providers).values(root_provider_id=providers.c.id))
        ids = list(connection.execute(sa.select(providers.c.id).order_by(providers.c.id)).scalars())
        name_of = {row.id: row.name for row in connection.execute(sa.select(classes))}
        mine = [dict(row) for row in connection.execute(sa.select(owned)).mappings()]
        connection.execute(sa.delete(owned))
        rows = []
        for one, node in zip(ids, nodes, strict=True):
            for row in mine:
                name = name_of[row["resource_class_id"]]
                amounts = {"total": node["capacity"][name], "reserved": node["usage"][name]}
                given = {"resource_provider_id": one, "max_unit": node["capacity"][name], **amounts}
                rows.append({key: value for key, value in {**row, **given}.items() if key != "id"})
        for at in range(0, len(rows), ROWS_COUNT):
            connection.execute(sa.insert(owned), rows[at : at + ROWS_COUNT])
    return engine


def measure_placement(
    url: str,
    nodes: Sequence[Node],
    flavours: Sequence[Mapping[str, int]],
    seconds: float,
    seed: int,
    note: Note,
) -> None:
    """Time requests for candidates, then claims of one client, each on a node that has room and no earlier claim."""
    from placement.wsgi import init_application  # noqa: PLC0415 - the import reads the path of its configuration

    application = init_application()
    engine = fill_placement(application, url, nodes)
    picks = random.Random(seed)
    for _ in rounds(seconds):
        flavour = picks.choice(flavours)
        resources = ",".join(f"{name}:{amount}" for name, amount in flavour.items())
        began = time.perf_counter()
        path = f"/allocation_candidates?resources={resources}&limit={CANDIDATES_COUNT}"
        found = inside.ask(application, "GET", path)
        note("candidates", time.perf_counter() - began)
        fitting = sum(has_room(node, flavour) for node in nodes)
        count = len(found["allocation_requests"])
        inside.require(
            count == min(fitting, CANDIDATES_COUNT),
            f"Placement found {count} candidates, but {fitting} nodes have room",
        )
    order = list(range(len(nodes)))
    picks.shuffle(order)
    claims = 0
    for at in rounds(seconds):
        if at >= len(order):
            break
        flavour = picks.choice([flavour for flavour in flavours if has_room(nodes[order[at]], flavour)] or [{}])
        if not flavour:
            continue
        claim = {
            "allocations": {inside.provider(order[at]): {"resources": flavour}},
            "consumer_generation": None,
            "project_id": "p",
            "user_id": "u",
            "consumer_type": "INSTANCE",
        }
        began = time.perf_counter()
        inside.ask(application, "PUT", f"/allocations/{uuid.UUID(int=picks.getrandbits(128))}", claim)
        note("claim", time.perf_counter() - began)
        claims += len(flavour)
    with engine.begin() as connection:
        held = connection.execute(sa.text("SELECT count(*) FROM allocations")).scalar()
    inside.require(held == claims, f"Placement holds {held} amounts, but {claims} were claimed")


def has_room(node: Node, flavour: Mapping[str, int]) -> bool:
    """Return whether a node has enough of every resource class."""
    return all(node["capacity"][name] - node["usage"][name] >= amount for name, amount in flavour.items())


def main() -> None:
    """Measure Nova, then Placement."""
    folder, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]) / 3, int(sys.argv[3])
    given = json.loads((folder / "hosts.json").read_bytes())
    samples: dict[str, dict[str, list[float]]] = {"nova": {}, "placement": {}}

    def noted(side: str) -> Note:
        return lambda name, seconds: samples[side].setdefault(name, []).append(seconds * 1e3)

    config.parse_args(["bench", "--config-file", str(folder / "nova.conf")])
    CONF.set_override("service_down_time", inside.SERVICE_DOWN_S)
    CONF.set_override("track_instance_changes", False, "filter_scheduler")
    objects.register_all()
    counts = measure_nova(given["nodes"], given["flavours"], seconds, seed, noted("nova"))
    url = os.environ["PLACEMENT_URL"]
    measure_placement(url, given["nodes"], given["flavours"], seconds, seed, noted("placement"))
    print(json.dumps({**samples, **counts}))


if __name__ == "__main__":
    main()
