"""The server: its addresses, its start and stop, and the errors of a start that fails."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from harness.commands import start_command
from harness.servers import MemcachedServer
from harness.waiting import PATIENCE_S
from nodestate.cli import main
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.serve.server import listen
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService

STORE = ["--store", "memcached://127.0.0.1:1"]


def listening_url(process: Any) -> str:
    """Return the URL that the command prints once it accepts requests."""
    return str(json.loads(process.stdout.readline())["listening"])


@pytest.mark.service
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
def test_the_command_prints_its_port_and_ends_cleanly_on_a_signal(
    memcached: MemcachedServer, number: signal.Signals
) -> None:
    """A store without a cell is no reason to end: the service lives, is not ready, and refuses views."""
    words = ("serve", "--listen", "127.0.0.1:0", "--json", "--log-level", "error")
    with start_command({"NODESTATE_STORE": memcached.url}, *words) as process:
        url = listening_url(process)
        assert httpx.get(f"{url}/livez", trust_env=False).json() == {"status": "pass"}
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 503
        refused = httpx.get(f"{url}/v1/view", trust_env=False)
        assert (refused.status_code, refused.json()["type"]) == (503, "stale-view")
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, told) == (0, b"")


def test_a_unix_socket_is_for_its_user_only_and_replaces_that_of_a_dead_process(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    dead = listen(f"unix:{path}")
    dead.socket.close()
    with RunningService.over(SimulatedCell(), address=f"unix:{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/livez").json() == {"status": "pass"}
        with pytest.raises(ConfigError, match="in use"):
            listen(f"unix:{path}")
    RunningService.wait_until_stopped()
    assert not path.exists()


@pytest.mark.parametrize("address", ["8790", "localhost", "127.0.0.1:x", "127.0.0.1:70000", "unix:/no/such/folder/s"])
def test_an_address_that_cannot_be_used_is_refused_by_name(address: str) -> None:
    answer = CliRunner().invoke(main, ["serve", *STORE, "--listen", address])
    assert answer.exit_code == 2
    assert address in answer.output


def test_a_taken_port_is_refused_with_a_remedy() -> None:
    first = listen("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match="give another port"):
            listen(f"127.0.0.1:{first.socket.getsockname()[1]}")
    finally:
        first.close()


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nodestate.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    answer = CliRunner().invoke(main, ["serve", *STORE])
    assert answer.exit_code == 2
    assert "pip install 'nodestate[serve]'" in answer.output


def test_a_store_within_this_process_is_refused() -> None:
    answer = CliRunner().invoke(main, ["serve"], env={"NODESTATE_STORE": Config().store})
    assert answer.exit_code == 2
    assert "--store" in answer.output
