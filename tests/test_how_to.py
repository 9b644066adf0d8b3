"""The how-to pages: every command of a page is run with real servers while agents report."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.commands import run_command
from harness.processes import COMMAND, start_module
from harness.servers import MariadbServer, MemcachedServer, RabbitServer
from harness.waiting import PATIENCE_S
from tests.conftest import MemcachedFactory

pytestmark = [pytest.mark.service, pytest.mark.thorough]
HOW_TO = Path(__file__).parent.parent / "docs" / "how-to"
PAGE_TIMEOUT_S = 4 * PATIENCE_S
PAGE = HOW_TO / "switch-designs.md"


def lines_of(page: Path, *, indented: bool = False) -> Iterator[str]:
    """Yield every line of every shell block; if ``indented``, also of blocks within lists."""
    margin = " *" if indented else ""
    blocks = rf"^{margin}```sh\n(.*?)^{margin}```"
    for block in re.findall(blocks, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from map(str.strip, block.splitlines()) if indented else block.splitlines()


def as_script(page: Path) -> str:
    """Return all shell blocks of a page as one bash script, which ends at the first command that fails.

    A line that begins with ``!`` must fail.
    """
    lines = [re.sub(r"^! (.*)$", r"if \1; then exit 99; fi", line) for line in lines_of(page)]
    return "\n".join(["set -e", "trap 'kill $(jobs -p)' EXIT", *lines, ""])


def test_all_commands_of_the_scheduling_page_succeed(
    memcached: MemcachedServer, rabbit: RabbitServer, cell: str, tmp_path: Path
) -> None:
    """Run the whole page as one bash script, from a new cell to an evacuated node."""
    servers = {"NODESTATE_STORE": memcached.url, "NODESTATE_BROKER": rabbit.url}
    env = {name: value for name, value in os.environ.items() if not name.startswith("NODESTATE_")}
    env |= {"NODESTATE_CELL": cell, "NODESTATE_STATE_DIR": str(tmp_path), "NODESTATE_HEARTBEAT_S": "2"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    script = as_script(HOW_TO / "schedule.md")
    for name, url in servers.items():
        script, count = re.subn(rf"(?m)^export {name}=.*$", f"export {name}={shlex.quote(url)}", script)
        assert count == 1
    env["PS4"] = "+ $(date +%T) "  # the log shows when each command started
    with (tmp_path / "script.log").open("w+") as log:
        done = subprocess.run(  # noqa: S603 - our own page; GNU timeout also ends the commands that bash waits for
            ["timeout", f"{PAGE_TIMEOUT_S:.0f}", "bash", "-x", "-c", script],  # noqa: S607
            env=env, cwd=tmp_path, stdout=log, stderr=log, check=False,
        )  # fmt: skip
        log.seek(0)
        told = log.read()
    assert done.returncode == 0, told[-4000:]
    assert re.search(r"the filter group removed the last \d+ of 50 nodes", told), told[-4000:]
    assert script.count("\nnodestate ") > 10, "the page has lost its commands"


def test_all_commands_of_the_design_switch_page_succeed(
    mariadb: MariadbServer, memcached: MemcachedServer, rabbit: RabbitServer, cell: str, tmp_path: Path
) -> None:
    """Run each command of the page in order, from the database to memcached and back; each must succeed."""
    servers = {"NODESTATE_SQL": mariadb.url, "NODESTATE_STORE": memcached.url, "NODESTATE_BROKER": rabbit.url}
    settings = {"NODESTATE_CELL": cell, "NODESTATE_STATE_DIR": str(tmp_path), "NODESTATE_HEARTBEAT_S": "2"}
    executed: list[str] = []
    with ExitStack() as processes:

        def start(*words: str) -> None:
            log = processes.enter_context((tmp_path / f"{len(executed)}.log").open("wb"))
            process = processes.enter_context(start_module(COMMAND, words, settings, stdout=log, stderr=log))
            processes.callback(process.kill)

        for line in lines_of(PAGE):
            words = shlex.split(line)
            if words[0] == "export":
                settings |= {
                    name: servers.get(name, value) for name, _, value in (one.partition("=") for one in words[1:])
                }
                continue
            assert words.pop(0) == "nodestate", line
            if words[-1] == "&":
                start(*words[:-1])
                if words[:-1] == ["consume", "--member", "2/2"]:  # not on the page: a fleet that changes all the time
                    start("agent", "--source", "simulated", "--nodes", "100", "--rate", "100")
            else:
                run_command(settings, *words)
            executed.append(line)
    assert len(executed) > 15, "the page has lost its commands"


def test_all_commands_of_the_page_about_a_lost_server_succeed(
    memcached_factory: MemcachedFactory, rabbit: RabbitServer, cell: str, tmp_path: Path
) -> None:
    """Run each command of the page in order, on three memcacheds, one RabbitMQ, and an agent that changes all the time.

    Each memcached returns empty. The commands that wait say when the next one may be restarted.
    """
    names = ["mc1", "mc2", "mc3"]
    stores = {name: memcached_factory() for name in names}
    servers = {
        "NODESTATE_STORE": ",".join([stores["mc1"].url, *(stores[name].address for name in names[1:])]),
        "NODESTATE_BROKER": rabbit.url,
    }
    settings = {"NODESTATE_CELL": cell, "NODESTATE_STATE_DIR": str(tmp_path), "NODESTATE_HEARTBEAT_S": "2"}
    restarted = []
    with ExitStack() as processes:
        for number, line in enumerate(lines_of(HOW_TO / "survive-a-lost-server.md", indented=True)):
            words = shlex.split(line)
            if words[0] == "export":
                given = dict(one.split("=", 1) for one in words[1:])
                settings |= {name: servers.get(name, value) for name, value in given.items()}
            elif words[0] == "ssh":
                assert words[2:] == ["systemctl", "restart", "memcached"], line
                stores[words[1]].kill()
                stores[words[1]].start()
                restarted.append(words[1])
            elif words[-1] == "&":
                log = processes.enter_context((tmp_path / f"{number}.log").open("wb"))
                process = processes.enter_context(start_module(COMMAND, words[1:-1], settings, stdout=log, stderr=log))
                processes.callback(process.kill)
            else:
                run_command(settings, *words[1:])
    assert restarted == names
