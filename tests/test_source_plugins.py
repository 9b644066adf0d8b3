"""Sources of state of installed packages: found by entry point, and harmless to others if they are broken."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nodestate.agent.agent import Agent
from nodestate.agent.sources import FullState
from nodestate.agent.sources.installed import installed_sources, open_installed_source
from nodestate.config import Config, load
from nodestate.errors import ConfigError
from nodestate.model import parse_event
from nodestate.scheduling import installed
from nodestate.testing import ManualClock
from tests.recording_sink import RecordingSink

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "write-a-source.md").read_text(encoding="utf-8")
CONFIG = Config(partitions=4, heartbeat_s=10.0)
BROKEN = """
from nodestate.agent.sources import FullState
from nodestate.errors import ConfigError

class Broken:
    name, every_s = "broken", 1.0
    def nodes(self): return ["b"]
    def poll(self, now):
        yield FullState("b", {"zone": "b"})
        if now > 1_000: raise KeyError("zone")
    def close(self): raise OSError("the device is gone")

class Strange(Broken):
    def poll(self, now): return ["b"]

def working(config): return Broken()
def strange(config): return Strange()
def failing(config): return 1 / 0
def refusing(config): raise ConfigError("give BROKEN_URL")
def no_source(config): return object()
number = 3
"""
Install = Callable[..., None]


def block(language: str) -> str:
    """Return the first code block of the page in a language."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found[0]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a package of one module with these entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package: str, code: str, **points: str) -> None:
        module = package.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {module}:{value}\n" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("".join(["[nodestate.sources]\n", *lines]))

    return put


@pytest.fixture
def rack(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the package of the page. Returns the folder that it reads."""
    points = tomllib.loads(block("toml"))["project"]["entry-points"]["nodestate.sources"]
    install("rack-folder", block("python"), **{name: value.partition(":")[2] for name, value in points.items()})
    folder = tmp_path / "rack"
    folder.mkdir()
    monkeypatch.setenv("RACK_FOLDER", str(folder))
    return folder


def run_agent(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``nodestate agent`` in a process of its own, which finds the packages that the test installed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"}
    command = [sys.executable, "-m", "nodestate.cli", "agent", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603


def test_an_agent_reports_the_nodes_of_the_source_of_the_page(rack: Path) -> None:
    """Nodes appear, change and are gone, and a file that is half written makes no difference."""
    (rack / "r1.json").write_text(json.dumps({"inventory": {"VCPU": {"total": 8}}}))
    (rack / "r2.json").write_text(json.dumps({"zone": "az1"}))
    source = open_installed_source("rack-folder", CONFIG)
    sink, clock = RecordingSink(), ManualClock()
    agent = Agent(CONFIG, [source], sink, clock, random.Random(1), inbox=sink, incarnation=7)

    def sent() -> list[tuple[str, str]]:
        agent.step()
        clock.advance(1.0)
        events, sink.sent = sink.sent, []
        return [(type(event).__name__, event.node) for event in (parse_event(body) for _, body in events)]

    assert sent() == [("Report", "r1"), ("Report", "r2")]
    (rack / "r2.json").write_text(json.dumps({"zone": "az2"}))
    assert [one for one in sent() if one[0] != "Heartbeat"] == [("Change", "r2")]
    (rack / "r1.json").write_text("{")
    (rack / "r2.json").unlink()
    assert [one for one in sent() if one[0] != "Heartbeat"] == [("Leave", "r2")]
    agent.close()


def test_help_names_the_sources_that_it_found(rack: Path, install: Install) -> None:
    """A broken package is listed, too: only its import could tell, and that is left to the agent that is asked for it.
    A name that is taken is nodestate's own source.
    """
    assert rack.exists()
    install("broken-rack", "raise RuntimeError('broken')", broken="nothing", host="nothing")
    assert installed_sources(["host"]) == ["broken", "rack-folder"]
    told = run_agent("--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "--source [host|simulated|libvirt|broken|rack-folder]" in told.stdout
    assert "rack_folder" not in sys.modules, "the module was imported to list its name"


def test_a_broken_package_ends_its_own_agent_only(install: Install) -> None:
    """The error has one line and names the entry point; the sources of nodestate work beside it."""
    install("broken-rack", "raise RuntimeError('no such hypervisor')", broken="nothing", host="nothing")
    servers = ["--broker", "amqp://guest:guest@127.0.0.1:1//", "--store", "memcached://127.0.0.1:1"]
    told = run_agent("--source", "broken", *servers)
    line = (
        "nodestate: entry point 'broken' of nodestate.sources (broken_rack:nothing) can't be loaded: no such "
        "hypervisor; mend or uninstall its package\n"
    )
    assert (told.returncode, told.stderr) == (2, line)
    told = run_agent("--source", "host", "--seconds", "0", *servers)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("failing", r"source 'it' of the package 'broken-rack' can't be opened: .*:failing failed: ZeroDivisionError"),
        ("refusing", r"source 'it' of the package 'broken-rack' can't be opened: give BROKEN_URL"),
        ("no_source", r"source 'it' of the package 'broken-rack' is no StateSource: .* returned a object without"),
        ("number", r"source 'it' .* failed: TypeError"),
        ("absent", r"entry point 'it' of nodestate\.sources .* can't be loaded"),
    ],
)
def test_an_error_names_the_source_and_its_package(install: Install, value: str, told: str) -> None:
    install("broken-rack", BROKEN, it=value)
    with pytest.raises(ConfigError, match=told):
        open_installed_source("it", CONFIG)


def test_a_source_of_two_packages_is_refused_with_both(install: Install) -> None:
    """Which of the two reports a node must not depend on the order of folders."""
    install("broken-rack", BROKEN, it="working")
    install("other-rack", BROKEN, it="working")
    with pytest.raises(ConfigError, match="several packages have a source 'it': broken-rack, other-rack"):
        open_installed_source("it", CONFIG)


def test_the_code_of_a_package_that_the_setting_does_not_name_is_not_run(rack: Path, install: Install) -> None:
    """The same setting names packages with filters, with weighers and with sources."""
    assert rack.exists()
    install("broken-rack", BROKEN, it="working")
    config = load({"plugins": "broken-rack"}, environ={})
    assert installed(config.plugins).filters, "a package with sources alone is no error for a scheduler"
    with pytest.raises(ConfigError, match="'rack-folder', which the setting plugins does not name"):
        open_installed_source("rack-folder", config)
    assert "rack_folder" not in sys.modules
    assert open_installed_source("it", config).nodes() == ["b"]


def test_a_source_whose_code_fails_costs_its_own_nodes_only(install: Install) -> None:
    """Its nodes get no heartbeats, the error is logged once, and the source beside it goes on, also at the end."""
    install("broken-rack", BROKEN, it="working", strange="strange")

    class Sound:
        name, every_s, closed = "sound", 1.0, False

        def nodes(self) -> list[str]:
            return ["s"]

        def poll(self, now: float) -> list[Any]:
            return [FullState("s", {"metrics": {"now": now}})]

        def close(self) -> None:
            self.closed = True

    sound, sink, clock = Sound(), RecordingSink(), ManualClock()
    sources = [open_installed_source("it", CONFIG), open_installed_source("strange", CONFIG), sound]
    agent = Agent(CONFIG, sources, sink, clock, random.Random(1), inbox=sink, incarnation=7)
    clock.advance(2_000)
    with capture_logs() as logs:
        for _ in range(30):
            agent.step()
            clock.advance(1.0)
    reasons = [one["reason"] for one in logs if "can't be read" in one["event"]]
    assert reasons == [
        "broken can't be read: its code failed: KeyError('zone')",
        "broken can't be read: it gave a str, no reading",
    ]
    events = [parse_event(body) for _, body in sink.sent]
    assert {event.node for event in events if type(event).__name__ == "Heartbeat"} == {"s"}
    assert sum(event.node == "s" for event in events) >= 30
    with capture_logs() as logs:
        agent.close()
    assert [one["event"] for one in logs] == ["source can't be closed"] * 2
    assert sound.closed
