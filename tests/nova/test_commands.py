"""The commands beside Nova as real processes: the mirror over RabbitMQ, and nova-scheduler with nodestate's manager."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from nova.scheduler import host_manager, manager

from harness.databases import run_sql
from harness.members import Member
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.integrations.nova import install
from nodestate.integrations.nova.comparison import compare_host_states
from nodestate.integrations.nova.host_manager import NodestateHostManager
from tests.nova.mirrored_cloud import is_from_views
from tests.nova.nova_cloud import CONF, NovaCloud, request_spec

NODES = 5
MAX_AGE_S = 4.0
BIN = Path(sys.executable).parent
READER = "mirror"
"""A user of the database that may only read, and only the tables that the mirror needs."""


class MirrorProcess:
    """``nodestate-nova-mirror`` as an operator starts it."""

    def __init__(self, log: Path, *files: Path) -> None:
        self._log = log
        self._words = [str(BIN / "nodestate-nova-mirror"), *(f"--config-file={file}" for file in files)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log)  # noqa: S603 - our own command

    def require_alive(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, f"the mirror ended by itself:\n{self._log.read_text()[-4000:]}"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(PATIENCE_S)


@pytest.fixture
def settings(
    cloud: NovaCloud, memcached: MemcachedServer, rabbit: RabbitServer, cell: str, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """nodestate's settings of a cell whose consumer runs. The scheduler's options name the same file."""
    values: dict[str, Any] = {
        "cell": cell,
        "broker": rabbit.url,
        "store": memcached.url,
        "partitions": 4,
        "designs": "snapshot",
        "read_design": "snapshot",
        "renew_s": 0.3,
        "standby_s": 0.5,
        "heartbeat_s": 1.0,
        "resync_jitter_s": 0.3,
        "state_dir": str(tmp_path),
    }
    lines = [f"{name} = {value if isinstance(value, (int, float)) else repr(value)}" for name, value in values.items()]
    (tmp_path / "nodestate.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "nodestate.toml").chmod(0o600)  # it holds a password
    cloud.clear()
    for _ in range(NODES):
        cloud.add_node(random.Random(1))
    consumer = Member(tmp_path, 1, 1, {f"NODESTATE_{name.upper()}": str(value) for name, value in values.items()})
    options = {"config": str(tmp_path / "nodestate.toml"), "source": "nodestate", "max_age": MAX_AGE_S}
    for name, value in options.items():
        CONF.set_override(name, value, "nodestate")
    try:
        consumer.start()
        yield values
        consumer.stop()
    finally:
        consumer.kill()
        for name in options:
            CONF.clear_override(name, "nodestate")


def mirror_conf(cloud: NovaCloud, folder: Path) -> Path:
    """Write the mirror's own options, with the user that may only read; create this user."""
    api, own = sa.make_url(CONF.api_database.connection), sa.make_url(cloud.url)
    tables = {api: ("cell_mappings",), own: ("compute_nodes", "services", "instances")}
    run_sql(
        cloud.server.admin_url,
        f"CREATE OR REPLACE USER '{READER}'@'127.0.0.1' IDENTIFIED BY 'only reads'",
        *(f"GRANT SELECT ON {url.database}.{name} TO '{READER}'@'127.0.0.1'" for url in tables for name in tables[url]),
    )
    path = folder / "mirror.conf"
    connection = api.set(username=READER, password="only reads").render_as_string(hide_password=False)  # noqa: S106
    path.write_text(
        f"[api_database]\nconnection = {connection}\n[nodestate]\nconfig = {folder / 'nodestate.toml'}\n"
        f"mirror_user = {READER}\nmirror_password = only reads\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.usefixtures("settings")
def test_a_killed_mirror_is_replaced_by_the_database_until_it_runs_again(cloud: NovaCloud, tmp_path: Path) -> None:
    """From SIGKILL on, each request has all hosts: from the view while it is young enough, then from the database."""
    ours, theirs = NodestateHostManager(), host_manager.HostManager()
    mirror = MirrorProcess(tmp_path / "mirror.log", cloud.file, mirror_conf(cloud, tmp_path))

    def states_of(one: Any) -> list[Any]:
        return list(one.get_host_states_by_uuids(cloud.context, None, request_spec(cloud.context)))

    def is_equal() -> bool:
        mirror.require_alive()
        cloud.heartbeat()
        states = states_of(ours)
        return is_from_views(states) and not compare_host_states(states, states_of(theirs))

    def is_from_database() -> bool:
        cloud.heartbeat()
        states = states_of(ours)
        assert len(states) == NODES
        return not is_from_views(states)

    mirror.start()
    try:
        wait_until(is_equal, lambda: f"the mirror does not serve: {ours._reason}")
        cloud.save(cloud.nodes()[0], random.Random(5))
        wait_until(is_equal, lambda: f"the change does not come: {ours._reason}")
        mirror.kill()
        wait_until(is_from_database, "requests are still served from views")
        assert "the last sign of life of nova-mirror:" in ours._reason
        cloud.remove_node(cloud.nodes()[0])
        cloud.add_node(random.Random(1))
        mirror.start()
        wait_until(is_equal, lambda: f"the mirror does not serve again: {ours._reason}")
        assert mirror.terminate() == 0
    finally:
        mirror.kill()
        ours.readers.close()


def test_novas_scheduler_has_the_host_manager_of_nodestate(cloud: NovaCloud) -> None:
    before = host_manager.HostManager
    install.install()
    try:
        assert type(manager.SchedulerManager().host_manager) is NodestateHostManager
    finally:
        host_manager.HostManager = before
    assert cloud.mapping.uuid


@pytest.mark.parametrize("command", ["nodestate-nova-scheduler", "nodestate-nova-mirror"])
def test_the_commands_take_novas_options(command: str) -> None:
    done = subprocess.run([BIN / command, "--help"], capture_output=True, text=True, check=False, timeout=PATIENCE_S)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert "--config-file" in done.stdout
