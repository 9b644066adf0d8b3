"""Nova's databases on MariaDB, filled and changed through Nova's own objects."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import nova.conf
import sqlalchemy as sa
from nova import config, objects
from nova import context as nova_context
from nova.db.main import api as main_db
from oslo_utils import timeutils

from harness.databases import create_database
from harness.servers import MariadbServer
from nodestate.integrations.nova import options

CONF: Final = nova.conf.CONF
COMMAND_TIMEOUT_S: Final = 600
MEMORY_MB: Final = 262_144
DISK_GB: Final = 3_600
CPUS: Final = 64


def topology(used: int) -> str:
    """Return the NUMA topology of a host with two cells of 16 cores with two threads each, as a row has it."""
    cells = [
        objects.NUMACell(
            id=cell,
            socket=cell,
            cpuset={first + cpu for first in (16 * cell, 32 + 16 * cell) for cpu in range(16)},
            pcpuset=set(),
            memory=MEMORY_MB // 2,
            cpu_usage=used,
            memory_usage=512 * used,
            pinned_cpus=set(),
            siblings=[{16 * cell + core, 32 + 16 * cell + core} for core in range(16)],
            mempages=[objects.NUMAPagesTopology(size_kb=4, total=2**25, used=0, reserved=0)],
            network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
        )
        for cell in range(2)
    ]
    return str(objects.NUMATopology(cells=cells)._to_json())


class NovaCloud:
    """Nova's API database, cell0 and one cell.

    Args:
        folder: for nova.conf and the log.
        server: the server on which the databases are created.
    """

    def __init__(self, folder: Path, server: MariadbServer) -> None:
        self.folder = folder
        self.server = server
        self.file = folder / "nova.conf"
        """nova.conf, for commands of Nova and of nodestate."""
        urls = {name: f"{create_database(server)}?charset=utf8mb4" for name in ("api", "cell0", "cell1")}
        self.url = urls["cell1"]
        """The URL of the cell's database."""
        self.file.write_text(
            f"[DEFAULT]\ntransport_url = fake://\nstate_path = {folder}\nlog_file = {folder / 'nova.log'}\n"
            f"[api_database]\nconnection = {urls['api']}\n[database]\nconnection = {urls['cell1']}\n"
            "[placement]\nauth_type = none\nendpoint_override = http://127.0.0.1:1\n"
            f"[oslo_concurrency]\nlock_path = {folder}\n[nodestate]\nconfig = {folder / 'nodestate.toml'}\n",
            encoding="utf-8",
        )
        for words in (
            ["api_db", "sync"],
            ["cell_v2", "map_cell0", "--database_connection", urls["cell0"]],
            ["cell_v2", "create_cell", "--name", "cell1"],
            ["db", "sync"],
        ):
            self._manage(*words)
        options.register(CONF)
        config.parse_args(["nova", "--config-file", str(self.file)])
        CONF.set_override("track_instance_changes", False, "filter_scheduler")
        objects.register_all()
        self.context = nova_context.get_admin_context()
        [self.mapping] = [one for one in objects.CellMappingList.get_all(self.context) if not one.is_cell0()]
        self.cell_context = nova_context.get_admin_context()
        nova_context.set_target_cell(self.cell_context, self.mapping)
        self.engine: sa.Engine = main_db.get_engine(context=self.cell_context)
        self.added = 0
        """Number of compute nodes that were ever added."""

    def _manage(self, *words: str) -> None:
        command = [Path(sys.executable).with_name("nova-manage"), "--config-file", self.file, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)  # noqa: S603
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def clear(self) -> None:
        """Delete all rows that tests make."""
        tables = ("compute_nodes", "services", "instances", "instance_extra", "instance_info_caches")
        self.run("SET FOREIGN_KEY_CHECKS = 0", *(f"DELETE FROM {table}" for table in tables))  # noqa: S608
        for aggregate in objects.AggregateList.get_all(self.context):
            for host in list(aggregate.hosts):
                aggregate.delete_host(host)
            aggregate.destroy()
        for mapping in objects.HostMappingList.get_by_cell_id(self.context, self.mapping.id):
            mapping.destroy()

    def run(self, *statements: str, **values: Any) -> None:
        """Execute statements in the cell's database, in one transaction."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), values)

    # -- what Nova writes

    def nodes(self) -> list[Any]:
        """Return all compute nodes."""
        return list(objects.ComputeNodeList.get_all(self.cell_context))

    def service(self, host: str) -> Any:
        """Return the nova-compute service of a host."""
        return objects.Service.get_by_compute_host(self.cell_context, host)

    def add_node(self, picks: random.Random, host: str = "") -> Any:
        """Add a compute node with its service, as a new nova-compute does."""
        number, self.added = self.added, self.added + 1
        host = host or f"compute-{number:05d}"
        node = objects.ComputeNode(
            self.cell_context,
            uuid=str(uuid.uuid4()),
            host=host,
            hypervisor_hostname=host,
            host_ip=f"10.0.{number // 250}.{number % 250 + 1}",
            hypervisor_type="QEMU",
            hypervisor_version=8_002_000,
            cpu_info=json.dumps({"arch": "x86_64", "model": "Nehalem"}),
            vcpus=CPUS,
            memory_mb=MEMORY_MB,
            local_gb=DISK_GB,
            cpu_allocation_ratio=4.0,
            ram_allocation_ratio=1.5,
            disk_allocation_ratio=1.0,
            mapped=1,
            supported_hv_specs=[objects.HVSpec.from_list(["x86_64", "kvm", "hvm"])],
            pci_device_pools=objects.PciDevicePoolList(objects=[]),
            metrics="[]",
            **self._usage(picks),
        )
        node.create()
        service = objects.Service(
            self.cell_context, host=host, binary="nova-compute", topic="compute", disabled=False, forced_down=False
        )
        service.create()
        self.heartbeat(host)
        with_mapping = objects.HostMapping(self.context, host=host, cell_mapping=self.mapping)
        with_mapping.create()
        return node

    def remove_node(self, node: Any) -> None:
        """Delete a compute node with its service, as the API does."""
        node.destroy()
        self.service(node.host).destroy()
        objects.HostMapping.get_by_host(self.context, node.host).destroy()

    def save(self, node: Any, picks: random.Random) -> None:
        """Save another usage of a node, as the resource tracker does."""
        for name, value in self._usage(picks).items():
            setattr(node, name, value)
        node.save()

    def _usage(self, picks: random.Random) -> dict[str, Any]:
        used = picks.randrange(CPUS)
        return {
            "vcpus_used": used,
            "memory_mb_used": 512 * used,
            "local_gb_used": 10 * used,
            "free_ram_mb": MEMORY_MB - 512 * used,
            "free_disk_gb": DISK_GB - 10 * used,
            "disk_available_least": picks.choice([None, DISK_GB - 12 * used]),
            "current_workload": picks.randrange(3),
            "running_vms": used,
            "stats": {"num_instances": str(used), "io_workload": str(used % 4), "failed_builds": str(used % 2)},
            "numa_topology": picks.choice([None, topology(used % 8)]),
        }

    def set_pci(self, node: Any, picks: random.Random) -> None:
        """Save PCI pools and a metric of a node."""
        tags = {"physical_network": "p", "dev_type": "type-PF"}
        pool = objects.PciDevicePool(
            vendor_id="8086", product_id="1563", numa_node=picks.randrange(2), count=picks.randrange(9), tags=tags
        )
        node.pci_device_pools = objects.PciDevicePoolList(objects=[pool])
        metric = {"name": "cpu.percent", "value": picks.randrange(9), "timestamp": "2026-11-29T00:00:00", "source": "s"}
        node.metrics = json.dumps([metric])
        node.save()

    def heartbeat(self, *hosts: str, ago_s: float = 0.0, exclude: Collection[str] = ()) -> None:
        """Let the services of these hosts report; if none is named, of all hosts that ``exclude`` lacks."""
        seen = timeutils.utcnow().replace(microsecond=0) - timedelta(seconds=ago_s)
        with self.engine.begin() as connection:
            services = sa.table("services", sa.column("host"), sa.column("last_seen_up"), sa.column("report_count"))
            statement = sa.update(services).values(last_seen_up=seen, report_count=services.c.report_count + 1)
            named = services.c.host.in_(hosts) if hosts else services.c.host.not_in(exclude)
            connection.execute(statement.where(named))

    def add_instance(self, node: Any) -> Any:
        """Add an instance on a compute node; on none if it is None."""
        flavor = objects.Flavor(name="m1", vcpus=1, memory_mb=512, root_gb=1, ephemeral_gb=0, swap=0, flavorid="1")
        instance = objects.Instance(
            self.cell_context,
            uuid=str(uuid.uuid4()),
            project_id="p",
            user_id="u",
            **self.place(node),
            vcpus=1,
            memory_mb=512,
            root_gb=1,
            ephemeral_gb=0,
            flavor=flavor,
            old_flavor=None,
            new_flavor=None,
        )
        instance.create()
        return instance

    @staticmethod
    def place(node: Any) -> dict[str, Any]:
        """Return the fields with which an instance names its compute node."""
        if node is None:
            return {"host": None, "node": None, "compute_id": None}
        return {"host": node.host, "node": node.hypervisor_hostname, "compute_id": node.id}

    # -- what Nova's scheduler asks

    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """Collect the statements that are sent to the cell's database."""
        sent: list[str] = []
        listener: Callable[..., None] = lambda *given: sent.append(given[2])  # noqa: E731
        sa.event.listen(self.engine, "before_cursor_execute", listener)
        try:
            yield sent
        finally:
            sa.event.remove(self.engine, "before_cursor_execute", listener)


def request_spec(context: Any, **fields: Any) -> Any:
    """Return a small request for one instance, as Nova's conductor makes it."""
    flavor = objects.Flavor(
        id=1, flavorid="1", name="m1", memory_mb=512, vcpus=1, root_gb=1, ephemeral_gb=0, swap=0, extra_specs={}
    )
    given: dict[str, Any] = {
        "flavor": flavor,
        "image": objects.ImageMeta(properties=objects.ImageMetaProps()),
        "num_instances": 1,
        "instance_uuid": str(uuid.uuid4()),
        "numa_topology": None,
        "pci_requests": objects.InstancePCIRequests(requests=[]),
        "instance_group": None,
        "requested_resources": [],
        "ignore_hosts": None,
        "force_hosts": None,
        "force_nodes": None,
        "requested_destination": None,
        "limits": objects.SchedulerLimits(),
        "scheduler_hints": {},
        **fields,
    }
    return objects.RequestSpec(context, **given)
