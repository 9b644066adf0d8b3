"""Measures OpenStack: Nova's host states over MariaDB, and Placement's allocation candidates.

Both run in a virtual environment of their own, whose folder NODESTATE_BENCH_OPENSTACK names, because their dependencies
conflict with nodestate's. The payload is Nova's own. Without NUMA it is about as large as a state of nodestate; with
NUMA, which libvirt reports for every host, decoding takes most of the time.
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
"""Five commands that create tables, and the measurement."""
ERROR_BYTES: Final = 2_000


class Openstack(NamedTuple):
    """OpenStack's virtual environment, with databases that have their tables."""

    python: Path
    folder: Path
    """A folder with the configurations."""
    variables: Mapping[str, str]
    """Environment variables for programs."""
    versions: Mapping[str, str]

    def run(self, script: str, *arguments: object) -> Any:
        """Run a program of this package; return the JSON of its last line.

        Raises ``WrongResultError`` if the program writes an ``error``.
        """
        # -I: otherwise the program would import openstack.py and redis.py of this folder instead of the libraries.
        command = [self.python, "-I", Path(__file__).with_name(script), self.folder]
        samples = json.loads(_run([*command, *map(str, arguments)], self.variables).splitlines()[-1])
        require("error" not in samples, str(samples.get("error")))
        return samples


@contextmanager
def openstack(report_progress: ReportProgress) -> Iterator[Openstack]:
    """Set up Nova and Placement on a MariaDB of their own. Raises ServerMissingError if something is not installed."""
    environment = Path(os.environ.get(VARIABLE) or "/dev/null")
    programs = {name: environment / "bin" / name for name in ("python", "nova-manage", "placement-manage")}
    if absent := [name for name, path in programs.items() if not path.exists()]:
        where = f"has no bin/{absent[0]}" if os.environ.get(VARIABLE) else "is not set"
        raise ServerMissingError(f"{VARIABLE} {where}: make {NEEDED}, and set the variable to its folder")
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nodestate-openstack-")))
        server = held.enter_context(MariadbServer(DATABASES))
        urls = {name: f"{server.url.removesuffix(DATABASE)}{name}?charset=utf8mb4" for name in DATABASES}
        variables = _configure(folder, urls)
        for step, command in enumerate(_schema(programs, folder, urls)):
            report_progress(f"openstack: {command[0].name} {command[3]}", step / STEPS_COUNT)
            _run(command, variables)
        versions = {**_versions(programs["python"]), "mariadb": server.version}
        yield Openstack(programs["python"], folder, variables, versions)


def measure_openstack(
    nodes: int, settings: Settings, report_progress: ReportProgress
) -> tuple[list[Case], dict[str, str]]:
    """Measure Nova, with and without NUMA, and Placement; return cases and versions. Raises ServerMissingError."""
    changed = min(settings.changed, nodes)
    with openstack(report_progress) as own:
        report_progress(f"openstack, {nodes:,} nodes: measuring", (STEPS_COUNT - 1) / STEPS_COUNT)
        samples = own.run("openstack_program.py", nodes, changed, settings.seconds, settings.seed)
    cases = [
        _nova("nova host states", samples["nova"], nodes, changed),
        _nova(NOVA_WITH_NUMA, samples["nova numa"], nodes, changed),
        _placement(samples["placement"], nodes),
    ]
    return cases, dict(own.versions)


def _configure(folder: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """Write the configurations; return the environment variables for programs."""
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
    """Yield the commands that create the tables, as an operator runs them."""
    nova = [programs["nova-manage"], "--config-file", folder / "nova.conf"]
    yield [*nova, "api_db", "sync"]
    yield [*nova, "cell_v2", "map_cell0", "--database_connection", urls["nova_cell0"]]
    yield [*nova, "cell_v2", "create_cell", "--name", "cell1"]
    yield [*nova, "db", "sync"]
    yield [programs["placement-manage"], "--config-file", folder / "placement.conf", "db", "sync"]


def _run(command: list[Any], environment: Mapping[str, str]) -> str:
    """Run a command and return its output. Raises ServerFailedError with the end of its output if it fails."""
    done = subprocess.run(  # noqa: S603 - programs of the environment that the user named
        command, env=environment, capture_output=True, text=True, check=False, timeout=PROGRAM_TIMEOUT_S
    )
    if done.returncode != 0:
        said = (done.stdout[-ERROR_BYTES:] + done.stderr[-ERROR_BYTES:]).strip()
        raise ServerFailedError(f"{Path(command[0]).name} ended with exit code {done.returncode}:\n{said}")
    return done.stdout


def _versions(python: Path) -> dict[str, str]:
    """Return the versions of nova and openstack-placement in that environment."""
    names = ("nova", "openstack-placement")
    asked = f"from importlib.metadata import version; print(*map(version, {names}))"
    return dict(zip(names, _run([python, "-c", asked], os.environ).split(), strict=True))


def _measures(samples: Mapping[str, list[float]]) -> dict[str, Measure]:
    return {name: Measure.of("ms", values) for name, values in samples.items()}


def _nova(label: str, samples: Mapping[str, list[float]], nodes: int, changed: int) -> Case:
    claim = f"in each read all {nodes:,} host states showed the usage that was saved last"
    return Case(label, nodes, {"changed": changed}, _measures(samples), {}, [claim])


def _placement(samples: Mapping[str, list[float]], nodes: int) -> Case:
    claim = "each answer had all nodes as candidates, up to the limit"
    return Case("placement candidates", nodes, {"limit": 1_000}, _measures(samples), {}, [claim])
