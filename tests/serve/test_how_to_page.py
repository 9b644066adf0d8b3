"""The page about the HTTP API: its commands are run in order, against a service of a cell of doubles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.waiting import PATIENCE_S
from nodestate.serve.access import Access
from nodestate.serve.tokens import TokenFile
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-the-http-api.md"
START = "nodestate serve --tokens tokens"


def run_script(lines: list[str], folder: Path) -> str:
    """Run lines in bash, which stops at the first error. A line that begins with ``!`` must fail."""
    script = "\n".join(re.sub(r"^! (.*)$", r"if \1; then exit 99; fi", line) for line in ["set -e", *lines])
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "no_proxy": "*"}
    done = subprocess.run(  # noqa: S603 - our own page
        ["bash", "-x", "-c", script],  # noqa: S607 - the one on PATH
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


def test_the_commands_of_the_page_succeed(tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("curl or openssl is not installed")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith(START))
    run_script(lines[:at], tmp_path)
    world = SimulatedCell(designs=("snapshot",))
    world.start_member([0, 1], [])
    for number in range(3):
        world.start_agent(f"node-{number}", {"usage": {"VCPU": 1}})
    world.run_well(60)
    with RunningService.over(world, access=Access(TokenFile(str(tmp_path / "tokens")))) as running:
        again = [line for line in lines[:at] if line.startswith("export TOKEN")]
        url = f"export NODESTATE_URL={running.listener.url}"
        rest = [
            line.replace("--max-time 3", "--max-time 0.3").replace("wait=1s", "wait=0s") for line in lines[at + 1 :]
        ]
        shown = run_script([*again, url, *rest], tmp_path)
    assert "\n304\n" in shown
    assert "event: nodes" in shown
    assert shown.count('"status"') >= 4
