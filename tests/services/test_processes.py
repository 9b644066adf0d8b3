"""A forked process is a process like any other: arguments, environment, streams, exit code, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.fork_server import ForkServer
from harness.processes import COMMAND
from harness.run_cost import processor_seconds
from harness.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.skipif(not ForkServer.is_possible(), reason="processes can be forked on Linux only")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.close()


def test_a_forked_process_has_its_own_arguments_environment_streams_and_exit_code(
    server: ForkServer, tmp_path: Path
) -> None:
    process = server.start(
        "tests.services.self_report", ["one", "two"], {"A": "ä"}, folder=tmp_path, stdin=subprocess.PIPE
    )
    out, err = process.communicate(b"input", PATIENCE_S)
    words, given, environment, folder, leads_session, descriptors = json.loads(out)
    assert (words, given, environment["A"], folder) == (["one", "two"], "input", "ä", str(tmp_path))
    assert "PATH" not in environment
    assert leads_session
    assert descriptors == [0, 1, 2], "it has no stream of the server or of another process"
    assert (process.returncode, err) == (3, b"told")


def test_a_forked_command_prints_what_a_new_interpreter_prints(server: ForkServer) -> None:
    words = ["view", "--broker", "amqp://127.0.0.1:1", "--store", "memcached://127.0.0.1:1", "--json"]
    with server.start(COMMAND, words, os.environ) as forked:
        said = forked.communicate(timeout=PATIENCE_S)
    new = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", COMMAND, *words], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (forked.returncode, *said) == (new.returncode, new.stdout, new.stderr)
    assert b"does not answer" in said[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_a_forked_process_by_a_signal_is_seen(server: ForkServer, number: signal.Signals) -> None:
    settings = {"NODESTATE_BROKER": "amqp://127.0.0.1:1", "NODESTATE_STORE": "memcached://127.0.0.1:1"}
    with server.start(COMMAND, ["consume"], {**os.environ, **settings}) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.stderr is not None
        assert b"control record" in process.stderr.readline()
        process.send_signal(number)
        code = process.wait(PATIENCE_S)
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 1)  # the command catches SIGTERM
    process.kill()  # it has ended: does nothing


def test_processes_that_run_at_the_same_time_keep_their_own_exit_codes(server: ForkServer) -> None:
    good = [server.start(COMMAND, ["--version"], os.environ) for _ in range(3)]
    bad = [server.start(COMMAND, ["nonsense"], os.environ) for _ in range(3)]
    for process in (*bad, *good):
        process.communicate(timeout=PATIENCE_S)
    assert [process.returncode for process in (*good, *bad)] == [0, 0, 0, 2, 2, 2]


def test_the_cost_of_a_test_includes_forked_processes(server: ForkServer) -> None:
    before = processor_seconds()
    wait_until(
        lambda: server.start(COMMAND, ["--version"], os.environ).communicate() and processor_seconds() - before > 0.1,
        "the time of forked processes does not count",
    )
