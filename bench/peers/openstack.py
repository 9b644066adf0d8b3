"""OpenStack's own path: Nova's host states over MariaDB, and Placement's candidates.

Both come from a virtual environment of their own, named by NODESTATE_BENCH_OPENSTACK: what they need would not fit
beside what nodestate needs. The payload is theirs, of about the size that Nova's takes for such a node without NUMA; with NUMA, as libvirt
reports it of every host, decoding takes most of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.peer_servers import DATABASE, MariadbServer
from bench.record import Case, Measure
from bench.scenario import ReportProgress, Settings
from bench.workload import require
from harness.servers import ServerFailedError, ServerMissingError

__all__ = ["NOVA_WITH_NUMA", "Openstack", "measure_openstack", "openstack"]

NOVA_WITH_NUMA: Final = "nova host states, numa"

VARIABLE: Final = "NODESTATE_BENCH_OPENSTACK"
NEEDED: Final = "a virtual environment with PyPI's nova, openstack-placement and pymysql"
DATABASES: Final = ("nova_api", "nova_cell0", "nova", "placement")
PROGRAM_TIMEOUT_S: Final = 1_800
STEPS_COUNT: Final = 6
"""Five commands that make tables, and the measuring."""
ERROR_BYTES: Final = 2_000


class Openstack(NamedTuple):
    """An environment with databases that have their tables; ``folder`` is its own."""

    python: Path
    folder: Path
    around: Mapping[str, str]
    versions: Mapping[str, str]

    def run(self, script: str, *arguments: object) -> Any:
        """What a script of this package writes as its last line, in JSON. Raises ``WrongResultError`` with its ``error``."""
        # Isolated, or this folder would be where that program looks for packages named openstack and redis.
        inside = [self.python, "-I", Path(__file__).with_name(script), self.folder]
        samples = json.loads(_run([*inside, *map(str, arguments)], self.around).splitlines()[-1])
        require("error" not in samples, str(samples.get("error")))
        return samples


@contextmanager
def openstack(report_progress: ReportProgress) -> Iterator[Openstack]:
    """Nova and Placement on a MariaDB of their own. Raises ServerMissingError."""
    environment = Path(os.environ.get(VARIABLE) or "/dev/null")
    programs = {name: environment / "bin" / name for name in ("python", "nova-manage", "placement-manage")}
    if absent := [name for name, path in programs.items() if not path.exists()]:
        where = f"has no bin/{absent[0]}" if os.environ.get(VARIABLE) else "is not set"
        raise ServerMissingError(f"{VARIABLE} {where}: make {NEEDED}, and name its folder there")
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nodestate-openstack-")))
        server = held.enter_context(MariadbServer(DATABASES))
        urls = {name: f"{server.url.removesuffix(DATABASE)}{name}?charset=utf8mb4" for name in DATABASES}
        around = _configure(folder, urls)
        for step, command in enumerate(_schema(programs, folder, urls)):
            report_progress(f"openstack: {command[0].name} {command[3]}", step / STEPS_COUNT)
            _run(command, around)
        versions = {**_versions(programs["python"]), "mariadb": server.version}
        yield Openstack(programs["python"], folder, around, versions)


def measure_openstack(
    nodes: int, settings: Settings, report_progress: ReportProgress
) -> tuple[list[Case], dict[str, str]]:
    """Both cases, with versions. Raises ServerMissingError."""
    changed = min(settings.changed, nodes)
    with openstack(report_progress) as own:
        report_progress(f"openstack, {nodes:,} nodes: measures", (STEPS_COUNT - 1) / STEPS_COUNT)
        samples = own.run("openstack_program.py", nodes, changed, settings.seconds, settings.seed)
    cases = [
        _nova("nova host states", samples["nova"], nodes, changed),
        _nova(NOVA_WITH_NUMA, samples["nova numa"], nodes, changed),
        _placement(samples["placement"], nodes),
    ]
    return cases, dict(own.versions)


def _configure(folder: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """Write the configurations; returns the environment to run programs in."""
    (folder / "nova.conf").write_text(
        "[DEFAULT]\ntransport_url = fake://\n"
        f"state_path = {folder}\nlog_file = {folder / 'nova.log'}\n"
        f"[api_database]\nconnection = {urls['nova_api']}\n"
        f"[database]\nconnection = {urls['nova']}\n"
        f"[oslo_concurrency]\nlock_path = {folder}\n",
        encoding="utf-8",
    )
    (folder / "placement.conf").write_text(
        f"[DEFAULT]\nlog_file = {folder / 'placement.log'}\n[api]\nauth_strategy = noauth2\n"
        f"[placement_database]\nconnection = {urls['placement']}\n",
        encoding="utf-8",
    )
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "OS_PLACEMENT_CONFIG_DIR": str(folder),
        "PLACEMENT_URL": urls["placement"],
    }


def _schema(programs: Mapping[str, Path], folder: Path, urls: Mapping[str, str]) -> Iterator[list[Any]]:
    """The commands that make the tables, as an operator runs them."""
    nova = [programs["nova-manage"], "--config-file", folder / "nova.conf"]
    yield [*nova, "api_db", "sync"]
    yield [*nova, "cell_v2", "map_cell0", "--database_connection", urls["nova_cell0"]]
    yield [*nova, "cell_v2", "create_cell", "--name", "cell1"]
    yield [*nova, "db", "sync"]
    yield [programs["placement-manage"], "--config-file", folder / "placement.conf", "db", "sync"]


def _run(command: list[Any], environment: Mapping[str, str]) -> str:
    """What it printed; raises ServerFailedError with the end of what it complained of."""
    done = subprocess.run(  # noqa: S603 - the caller's own environment
        command, env=environment, capture_output=True, text=True, check=False, timeout=PROGRAM_TIMEOUT_S
    )
    if done.returncode != 0:
        said = (done.stdout[-ERROR_BYTES:] + done.stderr[-ERROR_BYTES:]).strip()
        raise ServerFailedError(f"{Path(command[0]).name} ended with {done.returncode}:\n{said}")
    return done.stdout


def _versions(python: Path) -> dict[str, str]:
    """Of both, as that environment has them."""
    names = ("nova", "openstack-placement")
    asked = f"from importlib.metadata import version; print(*map(version, {names}))"
    return dict(zip(names, _run([python, "-c", asked], os.environ).split(), strict=True))


def _measures(samples: Mapping[str, list[float]]) -> dict[str, Measure]:
    return {name: Measure.of("ms", values) for name, values in samples.items()}


def _nova(label: str, samples: Mapping[str, list[float]], nodes: int, changed: int) -> Case:
    claim = f"each time, all {nodes:,} host states showed the usage that was saved last"
    return Case(label, nodes, {"changed": changed}, _measures(samples), {}, [claim])


def _placement(samples: Mapping[str, list[float]], nodes: int) -> Case:
    claim = "each time, as many nodes were candidates as there are, up to the limit"
    return Case("placement candidates", nodes, {"limit": 1_000}, _measures(samples), {}, [claim])
