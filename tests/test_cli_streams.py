"""Standard streams that are closed, full, or pipes without a reader: logs are lost and counted, work goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from harness.processes import environment_without_settings
from harness.waiting import PATIENCE_S
from nodestate.broker import KombuResyncSender
from nodestate.cli import streams
from nodestate.cli.streams import OutputError
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.ports import Resync

SERVERS = "--broker amqp://127.0.0.1:1 --store memcached://127.0.0.1:1"
FULL = "/dev/full"
RUNS = {
    "agent": f"agent {SERVERS} --source simulated --nodes 2 --seconds 0",
    "boot": f"boot {SERVERS} --resources VCPU=1",
    "check": f"check {SERVERS}",
    "consume": f"consume {SERVERS} --seconds 0.1",
    "design status": f"design status {SERVERS}",
    "doctor": f"doctor {SERVERS}",
    "publish": f"publish {SERVERS} --timeout 0.1 -",
    "reservations": f"reservations {SERVERS}",
    "resync": f"resync {SERVERS} --all",
    "select": f"select {SERVERS} -",
    "sql status": "sql status --sql sqlite:///empty.db",
    "top": f"top {SERVERS} --once",
    "up": "up --nodes 2 --seconds 1",
    "view": f"view {SERVERS} --on-stale flag",
}
"""Each command as it runs without servers. Those that print a result then print one."""
FAULTS = [">/dev/full", ">&-", "2>/dev/full", "2>&-", "<&-", ">&- 2>&- <&-", "| true", "2> >(true)"]


@contextmanager
def descriptor(path: str) -> Iterator[int]:
    number = os.open(path, os.O_WRONLY)
    yield number
    os.close(number)


def run(words: str, fault: str = "", cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command by a shell, which makes the faults of its streams."""
    return subprocess.run(  # noqa: S603 - our own words
        ["bash", "-c", f"{sys.executable} -m nodestate.cli {words} {fault}"],  # noqa: S607 - the shell of the machine
        env={**environment_without_settings(), "PYTHONPATH": str(Path(__file__).parent.parent), **environ},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="latin-1",
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_log_line_that_cannot_be_written_is_lost_and_counted() -> None:
    """A full disk, a closed stream, and a pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with descriptor(FULL) as full:
        outputs = [
            streams._LogOutput(full, is_open=True),
            streams._LogOutput(writing, is_open=True),
            streams._LogOutput(writing, is_open=False),
        ]
        for output in outputs:
            assert output.write(b"one\ntwo\n") == 8
            assert output.write(b"three") == 5
            assert output.lost == 3
    os.close(writing)


def test_a_log_whose_reader_does_not_read_delays_the_work_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is full while its reader is stopped. After it reads again, lines arrive again."""
    monkeypatch.setattr(streams, "LOG_PATIENCE_S", 0.01)
    reading, writing = os.pipe()
    output = streams._LogOutput(writing, is_open=True)
    line = b"x" * 9_999 + b"\n"
    while not output.lost:
        output.write(line)
    assert output._patience_s == 0
    while len(os.read(reading, 1 << 20)) == 1 << 20:
        pass
    lost = output.lost
    output.write(b"again\n")
    assert output.lost == lost
    assert os.read(reading, 100).endswith(b"again\n")
    os.close(reading)
    os.close(writing)


def test_a_result_that_cannot_be_written_is_an_error_once() -> None:
    """At the end of the process Python writes the rest again, which must not print a traceback."""
    with descriptor(FULL) as full:
        output = streams._Output(full, is_open=True)
        with pytest.raises(OutputError, match="No space left"):
            output.write(b"result")
        assert output.write(b"result") == 6
    with pytest.raises(OutputError, match="closed"):
        streams._Output(1, is_open=False).write(b"result")


def test_a_reader_that_left_ends_the_command_as_click_does() -> None:
    """``nodestate view | head``: no message."""
    reading, writing = os.pipe()
    os.close(reading)
    with closing(os.fdopen(writing, "wb", buffering=0)), pytest.raises(BrokenPipeError) as caught:
        streams._Output(writing, is_open=True).write(b"result")
    assert caught.value.errno == errno.EPIPE


def test_consume_goes_on_without_its_log_and_says_how_much_was_lost() -> None:
    """Regression: a consumer whose log disk was full ended with exit code 1 and without a word."""
    ended = run(RUNS["consume"] + " --json", "2>/dev/full")
    assert json.loads(ended.stdout)["lost_log_lines"] > 0


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", RUNS)
def test_no_command_ends_with_a_traceback_whatever_its_streams_are(name: str, fault: str, tmp_path: Path) -> None:
    ended = run(RUNS[name], fault, tmp_path)
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "Exception ignored" not in ended.stderr
    assert ended.returncode in {0, 1, 2}
    printed = run(RUNS[name], "", tmp_path).stdout if fault.startswith((">/", ">&- ")) or fault == ">&-" else ""
    if printed and "2>&-" not in fault:
        assert ended.returncode == 1
        assert "can't be written to stdout" in ended.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("name", RUNS)
def test_the_result_of_a_command_can_be_printed_in_any_encoding(name: str, tmp_path: Path) -> None:
    """Regression: ``PYTHONIOENCODING=latin-1`` ended doctor and view with a traceback."""
    ended = run(RUNS[name], "", tmp_path, PYTHONIOENCODING="latin-1")
    assert "Traceback" not in ended.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    [
        "resync --all --broker 'amqp://u:s3cret@[::1:5672//'",
        "resync --all --broker 'amqp://u:s3cret@127.0.0.1:1//?foo=bar'",
        "resync --all --broker 'redis://:s3cret@127.0.0.1:1/0?foo=bar'",
        "view --store 'memcached://u:s3cret@[::1'",
        "sql status --sql 'mariadb://u:s3cret@[::1/db'",
        "sql status --sql 'mariadb://u:s3cret@127.0.0.1:port/db'",
        "sql status --sql 'mariadb://u:s3cret@127.0.0.1:1/db?foo=bar'",
        "sql status --sql 'postgresql://u:s3cret@127.0.0.1:1/db?foo=bar'",
        "sql status --sql 'sqlite:////tmp/empty.db?password=s3cret'",
    ],
)
def test_a_url_that_no_command_understands_is_bad_usage_and_its_password_is_not_shown(words: str) -> None:
    """Regression: some of them ended in a traceback, and errors showed the URL with its password."""
    ended = run(words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("nodestate: ")
    assert "s3cret" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "url",
    ["amqp://u:s3cret@[::1:5672//", "amqp://u:s3cret@127.0.0.1:1//?foo=bar", "redis://:s3cret@127.0.0.1:port/0"],
)
def test_a_broker_url_that_cannot_be_parsed_is_a_config_error_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="setting broker") as caught:
        KombuResyncSender(Config(broker=url)).request_resync(Resync())
    assert "s3cret" not in str(caught.value)
